"""The first stage in one kernel of a GPU, interpreted, against the engine without it."""

import inspect
import sys
import types
from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import pallas

import ntkit
from ntkit.architectures import Activation, Architecture, AveragePool, Conv, Dense, Flatten
from ntkit.kernels.fused import first_stage

# A window and cells that are not square, on images whose last row is in no cell.
OBLONG = Architecture(
    (Conv(1.3, None, (2, 5)), Activation("leaky_relu"), AveragePool((2, 1)), Flatten(), Dense(1.2, 0.1)), "oblong"
)
KERNELS = {
    "convnet": (ntkit.ntk, ntkit.convnet(2)),
    "nngp": (ntkit.nngp, ntkit.convnet(1, activation="erf", b_std=0.3)),
    "oblong, standard": (ntkit.ntk, Architecture(OBLONG.layers, "oblong", "standard", 32)),
}


def images(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, 9, 8, 2)).astype(np.float32)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "oblong, standard" else []) for name in KERNELS]
)
def test_agrees_with_the_engine_without_it(name: str) -> None:
    make, architecture = KERNELS[name]
    # Neither number of images is a multiple of what the kernel computes at once; two images are equal.
    x, y = images(0, 18), images(1, 3)
    y[2] = x[1]
    kernels = [make(architecture, pallas=pallas) for pallas in (True, False)]
    assert [uses_it(kernel, x) for kernel in kernels] == [True, False]
    close(*(kernel(x, y) for kernel in kernels))


@pytest.mark.slow
def test_gradient() -> None:
    make, architecture = KERNELS["nngp"]

    @jax.jit
    def gradient(kernel: ntkit.Kernel) -> tuple[ntkit.Kernel, jax.Array]:
        return jax.grad(lambda kernel, x: kernel(x, images(1, 3)).sum(), (0, 1))(kernel, images(0, 2))

    found, expected = (gradient(make(architecture, pallas=pallas)) for pallas in (True, False))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(a, b)


def close(found: jax.Array, expected: jax.Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("architecture", [ntkit.conv(1), ntkit.myrtle(5), ntkit.fc(1), OBLONG], ids=lambda a: a.name)
def test_only_for_what_it_can_do(architecture: Architecture) -> None:
    x = jnp.zeros((2, 16, 16, 3))
    assert uses_it(ntkit.ntk(architecture, pallas=True), x) == (architecture is OBLONG)


def test_not_in_double_precision(x64: None) -> None:
    assert not uses_it(ntkit.ntk(OBLONG, pallas=True), jnp.zeros((2, 8, 8, 3)))


def uses_it(kernel: ntkit.Kernel, x: jax.Array) -> bool:
    return "pallas_call" in str(jax.make_jaxpr(kernel.gram, static_argnums=1)(x, None))


def test_compiles_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # As far as Triton's own program, which needs no GPU.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kernel = ntkit.ntk(ntkit.convnet(2), block_pairs=100, pallas=True)
    call = "__gpu$xla.gpu.triton"
    x = jnp.zeros((20, 16, 16, 3))
    with on_a_gpu():
        exported = export.export(
            jax.jit(lambda x: kernel.gram(x, x)),
            platforms=["cuda"],
            disabled_checks=[export.DisabledSafetyCheck.custom_call(call)],
        )(x)
    assert call in exported.mlir_module()


@pytest.mark.skipif(jax.__version_info__ < first_stage.LEAVES_OUT, reason="it is off by itself with this JAX")
def test_by_itself_where_the_arrays_are_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = ntkit.ntk(ntkit.convnet(1)), jnp.zeros((20, 8, 8, 1))
    assert not uses_it(kernel, x)
    monkeypatch.setattr(first_stage, "pays", lambda: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for platform in ("cuda", "cpu"):
        with on_a_gpu():
            exported = export.export(
                jax.jit(lambda x: kernel.gram(x, x)),
                platforms=[platform],
                disabled_checks=[export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
            )(x)
        assert ("__gpu$xla.gpu.triton" in exported.mlir_module()) == (platform == "cuda")


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("cpu", None, False),
        ("gpu", "9.0", True),
        ("gpu", "7.5", False),
        ("gpu", "12.0", True),
        ("gpu", "gfx90a", False),
    ],
)
def test_which_devices_it_pays_on(
    platform: str, capability: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda *_: [device])
    assert first_stage.pays() == (expected and jax.__version_info__ >= first_stage.LEAVES_OUT)
    # As in a JAX without Triton.
    monkeypatch.delattr(pallas, "triton", raising=False)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    assert not first_stage.pays()


def on_a_gpu() -> AbstractContextManager[object]:
    """Say which GPU to compile for; before JAX 0.11 any will do."""
    device = getattr(jax.sharding, "AbstractDevice", None)
    if device is None or "platform" not in inspect.signature(device).parameters:
        return nullcontext()
    h100 = device(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=h100)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize("pallas", [1, "yes"])
def test_bad_pallas(pallas: object) -> None:
    with pytest.raises(ValueError, match="pallas: got"):
        ntkit.ntk(ntkit.fc(1), pallas=pallas)
    with pytest.raises(ValueError, match="pallas: got True, expected False or None with the engine 'neural_tangents'"):
        ntkit.nngp(ntkit.fc(1), "neural_tangents", pallas=True)
