"""Conjugate gradients over a mesh give what they give on one device."""

import functools

import jax
import numpy as np

from ntkit import regression
from tests.solvers.gaussian import Gaussian

RNG = np.random.default_rng(0)
# Neither the rows of K nor its tiles divide among 8 devices, or 4.
X, Y, TEST = RNG.standard_normal((61, 5)), RNG.standard_normal((61, 3)), RNG.standard_normal((7, 5))
KERNEL = Gaussian(0.1)
SOLVER = regression.CG(tolerance=1e-11, rank=16)


def check_fit_of_an_array(mesh, directory):
    equal_to_one_device(mesh, lambda: np.asarray(KERNEL(X)))
    equal_to_one_device(mesh, lambda: KERNEL(X))


def check_fit_from_disk(mesh, directory):
    def stored():
        path = directory / f"gram of process {jax.process_index()}"
        np.asarray(KERNEL(X)).tofile(path)
        return np.memmap(path, np.float64, "r", shape=(61, 61))

    equal_to_one_device(mesh, stored, block_size=31)


def check_fit_recomputed(mesh, directory):
    equal_to_one_device(mesh)
    equal_to_one_device(mesh, block_size=3)


def equal_to_one_device(mesh, gram=lambda: None, **options):
    with x64():
        one, predictions = of_one_device()
        all_ = regression.fit(KERNEL, X, Y, 1e-3, solver=SOLVER, gram=gram(), mesh=mesh, **options)
        assert all_.report.converged.all()
        assert all_.report.rank == one.report.rank == 16
        np.testing.assert_allclose(all_.weights, one.weights, rtol=1e-6, atol=1e-6 * np.abs(one.weights).max())
        # What comes back lies with this process, like all else that it predicts with.
        np.testing.assert_allclose(all_(TEST), predictions, rtol=1e-6, atol=1e-8)


@functools.cache
def of_one_device():
    # Of one form of K: that one device gives the same for all of them is a test of the solvers.
    one = regression.fit(KERNEL, X, Y, 1e-3, solver=SOLVER, gram=KERNEL(X))
    return one, one(TEST)


def x64():
    # Where the switch is depends on the version of JAX.
    return (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True)
