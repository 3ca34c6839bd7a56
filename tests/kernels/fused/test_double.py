"""Near images in networks that pool: in float32 as in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.architectures import Activation, Architecture, AveragePool, Conv, Dense, Flatten, GlobalAveragePool
from ntkit.kernels.fused import double, near
from tests.precision import in_double

pytestmark = pytest.mark.skipif(
    not hasattr(jax, "enable_x64"),
    reason="JAX below 0.8 compiles one precision a program; there the old limit is warned of (test_regression.py)",
)

RELU, DENSE = Activation("relu"), Dense(1.5, 0.125)
ODD = Architecture(
    (
        Conv(1.5, 0.125, (2, 3), padding="VALID"),
        RELU,
        AveragePool((2, 3)),
        Conv(1.25, 0.25, (3, 2), (2, 1), "CIRCULAR"),
        Activation("erf"),
        Conv(1.25, None, (3, 3), (1, 2)),
        Activation("leaky_relu"),
        GlobalAveragePool(),
        DENSE,
        Activation("abs"),
        DENSE,
    ),
    "odd",
)
ARCHITECTURES = {
    "convnet": ntkit.convnet(2, W_std=1.5, b_std=0.125),
    "global pool": Architecture((Conv(1.5, 0.125), RELU, GlobalAveragePool(), DENSE), "global pool"),
    "no bias": ntkit.convnet(1, W_std=1.5, b_std=None),
    "standard": ntkit.convnet(1, W_std=1.5, b_std=0.125, parameterization="standard"),
    "pool, flatten": Architecture((AveragePool((2, 2)), Conv(1.5, 0.125), RELU, Flatten(), DENSE), "pool, flatten"),
    "odd": ODD,
}
RNG = np.random.default_rng(0)
# Neighbours of each other by 1e-6 to 0.01 of their size, and others.
IMAGES = RNG.normal(size=(1, 9, 8, 2)) + np.array([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0])[
    :, None, None, None
] * RNG.normal(size=(6, 9, 8, 2))
IMAGES = np.concatenate([IMAGES, IMAGES[:1]]).astype(np.float32)
KERNELS = {"ntk": ntkit.ntk, "nngp": ntkit.nngp}


def in_float64(kernel, *inputs):
    with in_double():
        return np.asarray(kernel(*(x.astype(np.float64) for x in inputs)))


@pytest.mark.parametrize("get", KERNELS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_pair_is_that_of_the_recursion_in_float64(name, get) -> None:
    kernel = KERNELS[get](ARCHITECTURES[name])
    images = kernel._images(jnp.asarray(IMAGES[:, :8]))
    found = double.kernel(kernel._recursion, kernel._stages(images), images[-2:-1], images)
    expected = in_float64(kernel, IMAGES[-2:-1, :8], IMAGES[:, :8])[0]
    np.testing.assert_allclose(found, expected, rtol=2e-7)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("name", [pytest.param("convnet", marks=pytest.mark.slow), "global pool"])
def test_near_images(name) -> None:
    kernel = ntkit.ntk(ARCHITECTURES[name])
    expected = in_float64(kernel, IMAGES)
    for found in (kernel(IMAGES), kernel(IMAGES, IMAGES), jax.jit(kernel)(IMAGES)):
        # Far from each other as before, near ones to the last bit but one.
        np.testing.assert_allclose(found, expected, rtol=2e-6)
        np.testing.assert_allclose(found[:5, :5], expected[:5, :5], rtol=3e-7)
    symmetric = np.asarray(kernel(IMAGES))
    np.testing.assert_array_equal(symmetric, symmetric.T)
    # A copy stays a copy.
    np.testing.assert_allclose(symmetric[0, 6], symmetric[0, 0], rtol=2e-7)
    batched = jax.vmap(kernel)(jnp.stack([IMAGES, IMAGES[::-1]]))
    np.testing.assert_allclose(batched[0], symmetric, rtol=3e-7)
    np.testing.assert_allclose(batched[1], symmetric[::-1, ::-1], rtol=3e-7)


def test_what_was_lost_without_it(monkeypatch) -> None:
    kernel = ntkit.ntk(ARCHITECTURES["global pool"])
    expected = in_float64(kernel, IMAGES)
    kept = np.abs(kernel(IMAGES) / expected - 1)[:5, :5].max()
    monkeypatch.setattr(double, "supports", lambda *_: False)
    jax.clear_caches()
    lost = np.abs(kernel(IMAGES) / expected - 1)[:5, :5].max()
    jax.clear_caches()
    assert lost > 10 * kept
    assert kernel.loses_angles(IMAGES.shape[1:])


@pytest.mark.slow
def test_derivatives_are_those_of_the_recursion(monkeypatch) -> None:
    kernel = ntkit.ntk(ARCHITECTURES["no bias"])

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(kernel(x)[0] * jnp.arange(len(x))))(x)

    found = gradient(IMAGES)
    monkeypatch.setattr(double, "supports", lambda *_: False)
    jax.clear_caches()
    expected = gradient(IMAGES)
    jax.clear_caches()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_goes_through_transformations() -> None:
    kernel, x = ntkit.ntk(ntkit.convnet(1)), jnp.asarray(IMAGES[:4, :8])
    expected = kernel(x)
    np.testing.assert_array_equal(jax.jit(jax.checkpoint(kernel))(x), expected)
    np.testing.assert_array_equal(jax.lax.scan(lambda x, _: (x, kernel(x)), x, None, length=2)[1][1], expected)
    np.testing.assert_allclose(kernel.matmul(x, x, jnp.eye(4)), expected, rtol=2e-7)

    def total(x):
        return jnp.sum(kernel(x))

    gradient = jax.grad(total)(x)
    for other in (
        jax.vmap(jax.grad(jax.checkpoint(total)))(x[None])[0],
        jax.grad(lambda x: jnp.sum(jax.vmap(kernel)(x[None])))(x),
        jax.grad(lambda x: jnp.sum(jax.lax.scan(lambda c, _: (c, total(c)), x, None, length=1)[1]))(x),
    ):
        np.testing.assert_allclose(other, gradient, rtol=1e-5, atol=1e-6)


def test_where_it_is_used() -> None:
    def way(architecture, images):
        kernel = ntkit.ntk(architecture)
        images = kernel._images(images)
        return near.way(kernel._stages(images), images)

    images = jnp.zeros((1, 8, 8, 2), jnp.float32)
    assert way(ntkit.convnet(1), images).kernel is double.kernel
    assert way(ntkit.conv(1), images).kernel is near.kernel
    assert way(ntkit.convnet(1), jnp.zeros((1, 64, 64, 2), jnp.float32)) is None
    with in_double():
        assert way(ntkit.convnet(1), images.astype(jnp.float64)) is None
    assert not ntkit.ntk(ntkit.convnet(1)).loses_angles((8, 8, 2))
    assert ntkit.ntk(ntkit.convnet(1)).loses_angles((64, 64, 2))
