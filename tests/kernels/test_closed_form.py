"""Closed-form kernels against a recursion in NumPy, neural-tangents by hand, quadrature and finite differences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import ntkit
from ntkit import _neural_tangents as nt
from ntkit.activations import ACTIVATIONS
from ntkit.architectures import Activation, Architecture, AveragePool, Conv, Dense, Flatten, GlobalAveragePool
from ntkit.kernels.fused.moments import MOMENTS
from tests.kernels.recursion import relu_kernels


def by_hand(name, *layers):
    return Architecture((*layers, Dense(1.2, 0.3)), name)


RELU = Activation("relu")
ARCHITECTURES = {
    "fc": (ntkit.fc(2, W_std=1.3, b_std=0.2), (3, 3, 2)),
    "vectors": (ntkit.fc(1, b_std=None), (5,)),
    "conv": (ntkit.conv(2, W_std=1.5, b_std=0.1), (3, 4, 2)),
    "convnet, odd size": (ntkit.convnet(1, b_std=0.3), (5, 4, 1)),
    "valid": (by_hand("valid", Conv(1.4, None, (2, 3), padding="VALID"), RELU, AveragePool(), Flatten()), (5, 5, 1)),
    "circular": (
        by_hand("circular", Conv(1.4, 0.1, padding="CIRCULAR"), RELU, Conv(1.0, 0.2), RELU, GlobalAveragePool()),
        (3, 4, 2),
    ),
    "pixels, pooled before": (by_hand("pixels", Dense(1.3, 0.2), AveragePool((2, 1)), RELU, Flatten()), (4, 3, 2)),
    "strided": (by_hand("strided", Conv(1.4, 0.1, strides=(2, 2)), RELU, Flatten()), (4, 5, 1)),
}


def images(shape, n=4):
    """Random inputs: the second a copy of the first, the last zero."""
    x = np.random.default_rng(0).normal(size=(n, *shape))
    x[1], x[-1] = x[0], 0
    return x


SLOW = ("valid", "circular", "strided")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in ARCHITECTURES]
)
def test_equals_the_recursion(name: str, x64: None) -> None:
    architecture, shape = ARCHITECTURES[name]
    x = images(shape)
    nngp, ntk = relu_kernels(architecture, x)
    both = jax.jit(lambda x: (ntkit.nngp(architecture)(x), ntkit.ntk(architecture)(x)))
    # Between two copies the angle is known to the square root of the rounding error.
    for expected, found in zip((nngp, ntk), both(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["fc", "conv", "convnet, odd size"])
def test_float32(name: str) -> None:
    architecture, shape = ARCHITECTURES[name]
    x = images(shape)
    _, expected = relu_kernels(architecture, x)
    kernel = ntkit.ntk(architecture)
    found = kernel(jnp.asarray(x, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, found.T)
    # sqrt(eps) between copies; everywhere else rounding, the diagonal included.
    np.testing.assert_allclose(found, expected, rtol=3e-4)
    different = ~np.eye(4, dtype=bool)[[1, 0, 2, 3]]
    np.testing.assert_allclose(found[different], expected[different], rtol=2e-6)
    # Pixels of one image can be copies of each other too: all of them are in the image of zeros.
    np.testing.assert_allclose(kernel.diagonal(jnp.asarray(x, jnp.float32)), np.diag(expected), rtol=3e-5)
    assert np.linalg.eigvalsh(np.asarray(found, np.float64)).min() > -1e-6


def stax_conv(stax):
    return [
        stax.Conv(1, (3, 3), padding="SAME", W_std=1.3, b_std=0.2),
        stax.Gelu(),
        stax.AvgPool((2, 2), (2, 2), "VALID"),
        stax.Flatten(),
        stax.Dense(1, 1.3, 0.2),
    ]


def stax_standard(stax):
    options = {"W_std": 1.3, "b_std": 0.2, "parameterization": "standard"}
    return [stax.Flatten(), stax.Dense(7, **options), stax.Erf(), stax.Dense(1, **options)]


def stax_myrtle(stax):
    conv = [stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5, b_std=0.1), stax.Relu()]
    pool = [stax.AvgPool((2, 2), (2, 2), "VALID")]
    return [*conv, *conv, *pool, *conv, *pool, *conv, stax.GlobalAvgPool(), stax.Dense(1, 2**0.5, 0.1)]


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        (ntkit.convnet(1, activation="gelu", W_std=1.3, b_std=0.2), stax_conv),
        (ntkit.fc(1, activation="erf", W_std=1.3, b_std=0.2, parameterization="standard", width=7), stax_standard),
        pytest.param(ntkit.myrtle(5), stax_myrtle, marks=pytest.mark.slow),
    ],
    ids=["convnet", "standard", "myrtle5"],
)
def test_equals_neural_tangents_by_hand(architecture, layers) -> None:
    pytest.importorskip("neural_tangents")
    x1, x2 = random.normal(random.key(0), (2, 4, 4, 1)), random.normal(random.key(1), (3, 4, 4, 1))
    _, _, kernel_fn = nt.stax.serial(*layers(nt.stax))
    expected = jax.jit(lambda x1, x2: kernel_fn(x1, x2, "ntk"))(x1, x2)
    np.testing.assert_allclose(ntkit.ntk(architecture)(x1, x2), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_the_expectation_of_its_function(name: str) -> None:
    """E[σ(u) σ(v)] and E[σ'(u) σ'(v)] by quadrature, of the function that the flax network applies."""
    if name not in MOMENTS:
        pytest.importorskip("neural_tangents")
    W_std, b_std = 0.9, 0.4
    architecture = ntkit.fc(1, activation=name, W_std=W_std, b_std=b_std)
    x = np.array([[1.0, 0.5, -0.3], [0.2, -0.9, 0.4]], np.float32)
    first = W_std**2 * (x @ x.T).astype(np.float64) / 3 + b_std**2
    z, step = np.linspace(-9, 9, 601, retstep=True)
    weight = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * step
    factor = np.linalg.cholesky(first)
    u, v = factor[0, 0] * z[:, None] + 0 * z, factor[1, 0] * z[:, None] + factor[1, 1] * z
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(ACTIVATIONS[name].function)))(
        jnp.stack([u, v]).reshape(-1).astype(jnp.float32)
    )

    def expectation(f):
        f = np.asarray(f, np.float64).reshape(2, -1)
        return np.einsum("ap,bp,p->ab", f, f, np.outer(weight, weight).ravel())

    nngp = W_std**2 * expectation(values) + b_std**2
    ntk = nngp + W_std**2 * first * expectation(slopes)
    found = jax.jit(lambda x: (ntkit.nngp(architecture)(x), ntkit.ntk(architecture)(x)))(x)
    # A kink costs the trapezoidal rule accuracy, a jump of the slope more.
    kinked = name in ("relu", "leaky_relu", "abs")
    np.testing.assert_allclose(found[0], nngp, rtol=1e-4 if kinked else 1e-5)
    np.testing.assert_allclose(found[1], ntk, rtol=2e-2 if kinked else 1e-5)


def directional(f, at, direction, step):
    def moved(by):
        return f(jax.tree.map(lambda value, along: value + by * along, at, direction))

    return (moved(step) - moved(-step)) / (2 * step)


@pytest.mark.parametrize("get", [pytest.param("nngp", marks=pytest.mark.slow), "ntk"])
@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        pytest.param(ntkit.fc(1), (3,), id="fc"),
        pytest.param(ntkit.convnet(1), (4, 4, 1), id="convnet", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_finite_differences(architecture, shape, get, x64: None) -> None:
    """Of the images, through the diagonal and between copies, and of W_std and b_std."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, *shape))
    x[1] = x[0]
    weights = rng.normal(size=(4, 4))
    parameters = {"x": x, "kernel": getattr(ntkit, get)(architecture)}
    parameters = jax.tree.map(jnp.asarray, parameters)

    @jax.jit
    def f(parameters):
        return jnp.sum(weights * parameters["kernel"](parameters["x"]))

    gradient = jax.jit(jax.grad(f))(parameters)
    for part in ("x", "kernel"):
        zero = jax.tree.map(jnp.zeros_like, parameters)
        moved = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), parameters[part])
        direction = {**zero, part: moved}
        if part == "x":
            # Apart, two copies have a kink; as one they move smoothly.
            direction["x"] = direction["x"].at[1].set(direction["x"][0])
        expected = directional(f, parameters, direction, 1e-4)
        found = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # A kink is symmetric, and so its central difference is the middle of its slopes, which is what gradients give.
    direction = {**jax.tree.map(jnp.zeros_like, parameters), "x": jnp.asarray(rng.normal(size=x.shape))}
    expected = directional(f, parameters, direction, 1e-4)
    np.testing.assert_allclose(jnp.sum(gradient["x"] * direction["x"]), expected, rtol=1e-4)


@pytest.mark.parametrize("architecture", [ntkit.fc(1, b_std=None), ntkit.convnet(1)], ids=["fc", "convnet"])
def test_gradients_in_float32_at_copies_and_zeros(architecture) -> None:
    x = jnp.asarray(images((4, 4, 1)), jnp.float32)
    weights = random.normal(random.key(0), (4, 4))
    found = jax.jit(jax.grad(lambda kernel, x: jnp.sum(weights * kernel(x)), (0, 1)))(ntkit.ntk(architecture), x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.abs(found[1]).max() < 10


def test_std_may_be_traced_and_learned() -> None:
    x = random.normal(random.key(0), (3, 4))

    @jax.jit
    def trace_of(W_std, b_std):
        return jnp.trace(ntkit.nngp(ntkit.fc(1, W_std=W_std, b_std=b_std))(x))

    # NNGP of ReLU on the diagonal: W²/2 (W² |x|²/d + b²) + b².
    moment = jnp.sum(x**2) / 4
    np.testing.assert_allclose(trace_of(1.5, 0.5), 1.5**4 / 2 * moment + 3 * (1.5**2 / 2 + 1) * 0.25, rtol=1e-6)
    by_W, by_b = jax.grad(trace_of, (0, 1))(1.5, 0.5)
    np.testing.assert_allclose(by_W, 2 * 1.5**3 * moment + 3 * 1.5 * 0.25, rtol=1e-5)
    np.testing.assert_allclose(by_b, 3 * (1.5**2 / 2 + 1) * 2 * 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ntkit.ntk("fc"), r"architecture: got .fc., expected an ntkit\.Architecture"),
        (lambda: ntkit.ntk(ntkit.fc), "architecture: got <function"),
        (lambda: ntkit.nngp(ntkit.fc(1), engine="fast"), "engine: got 'fast', expected one of 'auto'"),
        (lambda: ntkit.from_stax(3), "kernel_fn: got 3, expected a stax kernel function"),
        (lambda: ntkit.from_stax(lambda params, x: x), "kernel_fn: got .*, expected a stax kernel function"),
        (lambda: ntkit.from_stax(len, "cov1"), "get: got 'cov1', expected 'ntk' or 'nngp'"),
        (lambda: ntkit.ntk(ntkit.conv(1))(np.zeros((2, 5), "f")), r"x: got inputs of shape \(5,\), expected \(height"),
        (lambda: ntkit.ntk(ntkit.convnet(3))(np.zeros((2, 7, 9, 1), "f")), "x: got images of 7×9 pixels"),
        (lambda: ntkit.ntk(by_hand("pixels"))(np.zeros((2, 3, 3, 1), "f")), "architecture: got pixels without Flatten"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


CONV, DENSE, ERF, POOL = Conv(1.2, 0.1), Dense(1.2, 0.1), Activation("erf"), AveragePool()


@pytest.mark.parametrize(
    ("layers", "place", "source"),
    [
        ((Flatten(), RELU), 1, "the inputs"),
        ((POOL, RELU, Flatten()), 1, "the inputs"),
        ((Flatten(), DENSE, ERF, RELU), 3, "the values of layers[2], Activation('erf')"),
        ((CONV, ERF, POOL, RELU, Flatten()), 3, "the values of layers[1], Activation('erf')"),
        ((CONV, ERF, GlobalAveragePool(), RELU), 3, "the values of layers[1], Activation('erf')"),
        ((Flatten(), DENSE, ERF, Activation("identity"), RELU), 4, "the values of layers[2], Activation('erf')"),
        # Of each pixel's own variance there is the mean of the nonlinearity, not the nonlinearity of the mean.
        ((CONV, Flatten(), RELU), 2, "the values of layers[1], Flatten"),
    ],
)
def test_a_nonlinearity_of_what_is_not_gaussian_is_refused(layers, place: int, source: str) -> None:
    architecture = by_hand("by hand", *layers)
    message = f"layers[{place}]: got Activation('relu') of {source}, expected Dense or Conv between them: "
    for read in (ntkit.nngp, ntkit.ntk, lambda a: ntkit.ntk(a, "neural_tangents"), Architecture.stax):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            read(architecture)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["fused", "neural_tangents"])
def test_identity_is_harmless_anywhere(engine: str) -> None:
    if engine == "neural_tangents":
        pytest.importorskip("neural_tangents")
    identity, x = Activation("identity"), random.normal(random.key(0), (3, 4))
    plain = ntkit.ntk(by_hand("plain", Flatten(), DENSE, RELU), engine)(x)
    layers = (identity, Flatten(), identity, DENSE, identity, RELU, identity)
    np.testing.assert_allclose(ntkit.ntk(by_hand("identities", *layers), engine)(x), plain, rtol=1e-6)
