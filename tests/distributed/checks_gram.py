"""Gram matrices over a mesh equal those of one device."""

import jax
import numpy as np
import pytest

import ntkit

X1, X2 = (np.random.default_rng(seed).standard_normal((n, 5)).astype(np.float32) for seed, n in ((0, 37), (1, 11)))
KERNEL = ntkit.ntk(ntkit.fc(1))


def equal(got, expected):
    # Relative to the kernel's scale: blocks of other shapes are rounded otherwise, which entries near 0 make visible.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def check_in_memory(mesh, directory):
    # 8 devices: 15 blocks, of which 5 on the diagonal, so that some devices wait in either last round.
    whole = ntkit.gram(KERNEL, X1, block_size=8)
    sharded = ntkit.gram(KERNEL, X1, block_size=8, mesh=mesh)
    equal(sharded, whole)
    np.testing.assert_array_equal(sharded, np.asarray(sharded).T)
    equal(ntkit.gram(KERNEL, X1, X2, block_size=8, mesh=mesh), KERNEL(X1, X2))


def check_default_block_size(mesh, directory):
    equal(ntkit.gram(KERNEL, X1, mesh=mesh), KERNEL(X1))


def check_store(mesh, directory):
    stored = ntkit.gram(KERNEL, X1, block_size=8, mesh=mesh, store=directory / "gram")
    equal(stored, KERNEL(X1))
    again = ntkit.gram(KERNEL, X1, mesh=mesh, store=directory / "gram")
    np.testing.assert_array_equal(again, stored)


def check_an_error_of_one_process_reaches_all(mesh, directory):
    if jax.process_count() == 1:
        return
    mine = X1 + jax.process_index()
    message = "holds another Gram matrix" if jax.process_index() else "process 1 failed"
    with pytest.raises((ValueError, RuntimeError), match=message):
        ntkit.gram(KERNEL, mine, mesh=mesh, store=directory / "other")


def check_other_inputs_are_refused(mesh, directory):
    if jax.process_count() == 1:
        return
    mine = jax.process_index()
    with pytest.raises(ValueError, match=f"^x1: got .* in process {mine} and another value in process {1 - mine}"):
        ntkit.gram(KERNEL, X1 + mine, mesh=mesh)


def check_a_mesh_of_one_process(mesh, directory):
    local = jax.sharding.Mesh(np.array(jax.local_devices()), ("all",))
    equal(ntkit.gram(KERNEL, X1, block_size=8, mesh=local), KERNEL(X1))
