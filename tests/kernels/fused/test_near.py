"""Near inputs in float32: lines, planes, tables, nearly equal images; against float64 and exact arithmetic."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.architectures import Activation, Architecture, Conv, Dense, Flatten
from ntkit.kernels.fused import near
from ntkit.kernels.fused.moments import MOMENTS
from ntkit.kernels.fused.stages import Recursion
from tests.kernels.recursion import relu_kernels
from tests.precision import in_double

ODD = Architecture(
    (
        Conv(1.4, 0.1, (2, 3), padding="VALID"),
        Activation("relu"),
        Conv(1.2, 0.2, (3, 2), (2, 1), "CIRCULAR"),
        Activation("relu"),
        Flatten(),
        Dense(1.1, 0.1),
    ),
    "odd",
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


VECTORS = {
    "line": np.linspace(20, 30, 9)[:, None],
    "neighbouring floats": np.nextafter(np.float32(20), np.float32(21) + np.zeros((2, 1), np.float32))
    * [[1.0], [1 + 1e-6]],
    "years": np.column_stack([np.arange(1995, 2004), np.ones(9)]),
    "table": 1 + 1e-3 * rng().normal(size=(9, 30)),
    "offset": 100 + rng().normal(size=(9, 300)),
    "one large column": np.column_stack([np.linspace(50_000, 50_100, 9), rng().normal(size=(9, 20))]),
}


def exact_cosine_gap(u: np.ndarray, v: np.ndarray) -> float:
    """1 − cos of an angle, to double precision: sums in rational arithmetic, and no difference of roots."""
    one, other = ([Fraction(float(a)) for a in side] for side in (u, v))
    product = sum(a * b for a, b in zip(one, other, strict=True))
    squares = sum(a * a for a in one) * sum(b * b for b in other)
    assert product > 0
    scale = float(squares) ** 0.5
    return float(squares - product**2) / (scale * (scale + float(product)))


@pytest.mark.parametrize("name", VECTORS)
def test_angle_of_different_vectors(name: str) -> None:
    # NNGP of fc(0): its gap is that of the inputs with a bias as one more component.
    x = VECTORS[name].astype(np.float32)
    a, b = (
        jnp.asarray(x[list(side)])[:, :, None, None]
        for side in zip(*itertools.combinations(range(len(x)), 2), strict=True)
    )
    pair = near._subtracted(a, b)
    pair = near._through(Recursion("ntk", False), Dense(jnp.float32(1.5), jnp.float32(0.1)), x.shape[1], pair)
    scaled = np.column_stack([1.5 * x.astype(np.float64) / x.shape[1] ** 0.5, np.full(len(x), float(np.float32(0.1)))])
    gaps = [exact_cosine_gap(scaled[i], scaled[j]) for i, j in itertools.combinations(range(len(x)), 2)]
    # The gap is half of the square of a small angle.
    np.testing.assert_allclose(np.sqrt(pair.gap[:, 0, 0]), np.sqrt(gaps), rtol=1e-5)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs"])
def test_gap_after_a_rectifier(name: str) -> None:
    gaps = np.concatenate([10.0 ** np.arange(-12, 0), np.linspace(0.1, 1.99, 40)])
    with in_double():
        exact, exact_slope = MOMENTS[name].of_gaps(jnp.asarray(gaps), None, None)
        # Of larger angles the covariances' own form is exact enough.
        ones = (jnp.ones(len(gaps)), jnp.ones(len(gaps)))
        first, slope = MOMENTS[name].pair(lambda value: value, jnp.asarray(1 - gaps), ones, ones)
        half = MOMENTS[name].gain ** 2
        np.testing.assert_allclose(exact[4:], 1 - first[4:] / half, rtol=1e-7)
        np.testing.assert_allclose(exact_slope[4:], slope[4:], rtol=1e-7)
    found, found_slope = MOMENTS[name].of_gaps(jnp.asarray(gaps, jnp.float32), None, None)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-7 * (name == "abs"))
    np.testing.assert_allclose(found_slope, exact_slope, atol=5e-7)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(
    "architecture", [ntkit.fc(1), ntkit.fc(3, activation="erf"), ntkit.fc(2, b_std=None)], ids=lambda a: a.name
)
def test_vectors_against_float64(name: str, architecture: Architecture) -> None:
    x = VECTORS[name].astype(np.float32)
    kernel = ntkit.ntk(architecture)
    expected = double(kernel, x)
    np.testing.assert_allclose(kernel(x), expected, rtol=2e-6)
    np.testing.assert_allclose(kernel(x[:4], x[1:]), expected[:4, 1:], rtol=2e-6)


def double(kernel: ntkit.Kernel, x: np.ndarray) -> np.ndarray:
    with in_double():
        return np.asarray(kernel(x.astype(np.float64)))


def images(name: str) -> np.ndarray:
    base = rng().normal(size=(1, 6, 5, 2))
    if name == "nearly equal":
        x = base + 1e-4 * rng().normal(size=(5, 6, 5, 2))
    elif name == "flat":
        x = np.linspace(20, 22, 5)[:, None, None, None] * np.ones((1, 6, 5, 2))
    else:
        x = 100 + rng().normal(size=(5, 6, 5, 2))
    return x.astype(np.float32)


@pytest.mark.parametrize("name", ["nearly equal", "flat", "offset"])
@pytest.mark.parametrize("architecture", [ntkit.conv(2), ODD], ids=lambda a: a.name)
def test_images_against_the_recursion_in_numpy(name: str, architecture: Architecture) -> None:
    x = images(name)
    _, expected = relu_kernels(architecture, x)
    kernel = ntkit.ntk(architecture)
    np.testing.assert_allclose(kernel(x), expected, rtol=2e-6)
    np.testing.assert_allclose(kernel(x[:2], x), expected[:2], rtol=2e-6)


def test_copies_stay_copies() -> None:
    for x, architecture in ((VECTORS["offset"], ntkit.fc(2)), (VECTORS["line"], ntkit.fc(2)), (images("flat"), ODD)):
        x = x.astype(np.float32)
        kernel = ntkit.ntk(architecture)
        np.testing.assert_allclose(jnp.diagonal(kernel(x, x)), kernel.diagonal(x), rtol=5e-7)


def test_derivatives_of_near_vectors() -> None:
    x = VECTORS["line"].astype(np.float32)
    kernel = ntkit.ntk(ntkit.fc(2))

    def gradient(dtype: type) -> np.ndarray:
        a = jnp.asarray(x, dtype)
        weights = jnp.asarray(rng().normal(size=(9, 9)), dtype)
        return np.asarray(jax.grad(lambda a: jnp.sum(kernel(a, jnp.asarray(x, dtype)) * weights))(a))

    found = gradient(np.float32)
    with in_double():
        expected = gradient(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "abs"])
@pytest.mark.parametrize("components", [2, 20])
def test_second_derivatives(activation: str, components: int) -> None:
    """With copies among the inputs: by W, of which the kernel is homogeneous."""
    x = np.eye(components, dtype=np.float32)[[0, 1, 0]]

    @jax.jit
    def f(W: jax.Array) -> jax.Array:
        kernel = ntkit.nngp(ntkit.fc(1, activation=activation, W_std=W, b_std=None))
        return kernel(x)[0, 1] + kernel.diagonal(x)[0] + kernel(x, x[::-1]).sum()

    right = 12 * f(1.2) / 1.2**2
    np.testing.assert_allclose(jax.hessian(f)(1.2), right, rtol=1e-4)
    np.testing.assert_allclose(jax.grad(jax.grad(f))(1.2), right, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-10, 1e-15, 1e15])
def test_homogeneity(size: float) -> None:
    x = np.array([[1, 0], [1, 1]], np.float32)
    kernel = ntkit.ntk(ntkit.fc(1, b_std=None))
    np.testing.assert_allclose(kernel(size * x) / np.float64(size) ** 2, kernel(x), rtol=1e-5)
    wide = np.eye(20, dtype=np.float32)[:3] + 0.5
    np.testing.assert_allclose(kernel(size * wide) / np.float64(size) ** 2, kernel(wide), rtol=1e-5)


@pytest.mark.slow
def test_deep_networks_without_bias() -> None:
    x = np.array([[1, 0], [1, 1]], np.float32)
    # Each layer leaves a twentieth of the variance.
    kernel = ntkit.ntk(ntkit.fc(15, W_std=0.3, b_std=None))
    np.testing.assert_allclose(kernel(x), double(kernel, x), rtol=1e-4)
