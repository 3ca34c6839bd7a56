"""The fused engine against neural-tangents, on inputs with duplicates and a zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.architectures import Activation, Architecture, AveragePool, Conv, Dense, GlobalAveragePool
from ntkit.kernels.fused.stages import stages
from tests.kernels.recursion import relu_kernels
from tests.precision import in_double

VALID = Architecture(
    (
        Conv(1.4, 0.1, (2, 3), padding="VALID"),
        Activation("erf"),
        AveragePool(),
        Conv(1.2, 0.2, (3, 2), (2, 1), "CIRCULAR"),
        Activation("leaky_relu"),
        GlobalAveragePool(),
        Dense(1.3, 0.1),
    ),
    "valid",
)
ARCHITECTURES = {
    "linear": ntkit.fc(0),
    "relu": ntkit.fc(3),
    "leaky_relu": ntkit.fc(2, activation="leaky_relu"),
    "abs, no bias": ntkit.fc(2, activation="abs", b_std=None),
    "erf": ntkit.fc(2, activation="erf"),
    "identity": ntkit.fc(1, activation="identity"),
    "standard": ntkit.fc(2, parameterization="standard", width=64),
    "standard, no bias": ntkit.fc(2, parameterization="standard", b_std=None),
    "conv, standard": ntkit.conv(2, parameterization="standard", width=16),
    "convnet": ntkit.convnet(2, W_std=1.3, b_std=0.2),
    "valid": VALID,
}
KERNELS = {"ntk": ntkit.ntk, "nngp": ntkit.nngp}
# The tangent kernel contains the other one; compiling both for all architectures takes a minute.
SLOW = ("convnet", "valid", "conv, standard", "leaky_relu", "erf", "standard, no bias")
CASES = [
    pytest.param("relu", "nngp", marks=pytest.mark.slow),
    *(pytest.param(name, "ntk", marks=[pytest.mark.slow] if name in SLOW else []) for name in ARCHITECTURES),
]


def inputs(dtype: type) -> np.ndarray:
    """Images of which two are equal."""
    x = np.random.default_rng(0).normal(size=(9, 6, 5, 2)).astype(dtype)
    x[5] = x[3]
    return x


def close(found: jax.Array, expected: jax.Array, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("architecture", "kernel"), CASES)
def test_agrees_with_neural_tangents(architecture: str, kernel: str, x64: None) -> None:
    pytest.importorskip("neural_tangents")
    fused, reference = (KERNELS[kernel](ARCHITECTURES[architecture], engine) for engine in ("fused", "neural_tangents"))
    assert (fused.engine, reference.engine) == ("fused", "neural_tangents")
    x = jnp.asarray(inputs(np.float64))
    weights = np.random.default_rng(1).normal(size=(3, 5))

    @jax.jit  # all of it at once: to compile is most of this test
    def evaluate(kernel: ntkit.Kernel) -> tuple[tuple[jax.Array, ...], tuple[ntkit.Kernel, jax.Array]]:
        def weighted(kernel: ntkit.Kernel, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = kernel(x1, x[4:])
            return jnp.sum(values * weights), values

        # Of hyper-parameters and images. Between copies in two batches neural-tangents' angles are rounding noise: a
        # pair of copies is compared in one.
        gradient, values = jax.grad(weighted, (0, 1), has_aux=True)(kernel, x[:3])
        whole = kernel(x).at[jnp.array([3, 5]), jnp.array([5, 3])].set(0)
        return (values, kernel.diagonal(x), whole), gradient

    (found, gradient), (expected, expected_gradient) = evaluate(fused), evaluate(reference)
    for a, b in zip(found, expected, strict=True):
        close(a, b, 1e-10)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        # A bias of the standard parameterization that does not matter has a derivative of rounding noise.
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(np.abs(b).max() + 1))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["relu", "erf", "convnet"])
def test_agrees_with_neural_tangents_in_float32(architecture: str) -> None:
    pytest.importorskip("neural_tangents")
    fused, reference = (ntkit.ntk(ARCHITECTURES[architecture], engine) for engine in ("fused", "neural_tangents"))
    x = jnp.asarray(inputs(np.float32))

    @jax.jit
    def evaluate(kernel: ntkit.Kernel) -> tuple[jax.Array, jax.Array]:
        values, pull = jax.vjp(lambda x1: kernel(x1, x[4:]), x[:3])
        return values, pull(jnp.ones_like(values))[0]

    (found, gradient), (expected, expected_gradient) = evaluate(fused), evaluate(reference)
    close(found, expected, 1e-5)
    close(gradient, expected_gradient, 1e-4)


@pytest.mark.parametrize(
    "architecture", ["relu", "abs, no bias", "erf", pytest.param("convnet", marks=pytest.mark.slow)]
)
def test_values_and_gradients_are_finite_at_duplicates_and_zero(architecture: str) -> None:
    kernel = ntkit.ntk(ARCHITECTURES[architecture])
    x = jnp.asarray(inputs(np.float32)).at[7].set(0.0)

    def total(x: jax.Array) -> jax.Array:
        return kernel(x, x[::-1]).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 3e3, 1e6])
def test_erf_of_copies_of_any_size(size: float) -> None:
    # Two batches: that the inputs are equal is not known.
    x = np.array([[size, 0.3 * size], [-0.2 * size, size], [size, -size]], np.float32)
    kernel = ntkit.ntk(ntkit.fc(1, activation="erf", b_std=0.5))
    values, pull = jax.vjp(lambda x1, x2: kernel(x1, x2), jnp.asarray(x), jnp.asarray(x))
    with in_double():
        exact = kernel.diagonal(x.astype(np.float64))
    np.testing.assert_allclose(jnp.diagonal(values), exact, rtol=1e-4)
    for gradient in pull(jnp.ones_like(values)):
        assert np.isfinite(gradient).all()


def test_equal_inputs_are_exact_on_the_diagonal(x64: None) -> None:
    x = inputs(np.float64)
    kernel = ntkit.ntk(ntkit.fc(2))
    exact = kernel.diagonal(x)
    np.testing.assert_allclose(jnp.diagonal(kernel(x.astype(np.float32))), exact, rtol=1e-6)


@pytest.mark.slow
def test_blocks_of_pairs_do_not_show(x64: None) -> None:
    whole, blocks = (ntkit.ntk(ntkit.convnet(1), block_pairs=pairs) for pairs in (1000, 4))
    x = jnp.asarray(inputs(np.float64))
    weights = np.random.default_rng(1).normal(size=(9, 9))

    @jax.jit
    def evaluate(kernel: ntkit.Kernel) -> tuple[jax.Array, ...]:
        def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            square, strip = kernel(x), kernel(x[:4], x)
            return jnp.sum(square * weights) + jnp.sum(strip * weights[:4]), (square, strip)

        gradient, values = jax.grad(total, has_aux=True)(x)
        return gradient, *values

    found, expected = evaluate(blocks), evaluate(whole)
    for a, b in zip(found, expected, strict=True):
        # Copies are two inputs there.
        close(a, b, 1e-7)
    np.testing.assert_array_equal(found[1], found[1].T)


@pytest.mark.slow
def test_forward_mode_through_blocks(x64: None) -> None:
    kernel = ntkit.ntk(ntkit.fc(1), block_pairs=4)
    rng = np.random.default_rng(0)
    x, direction, weights = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)), rng.normal(size=(7, 7))

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(kernel(x) * weights)

    _, slope = jax.jvp(total, (x,), (direction,))
    np.testing.assert_allclose(slope, jnp.sum(jax.grad(total)(x) * direction), rtol=1e-10)


@pytest.mark.slow
def test_memory_is_that_of_a_block() -> None:
    kernel = ntkit.ntk(ntkit.convnet(1), block_pairs=4)

    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: kernel(x, x[::-1]).sum())(x)

    def temporary(n: int) -> int:
        compiled = jax.jit(gradient).lower(jnp.zeros((n, 12, 12, 1))).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    # 16 times the pairs: what grows is one number for each pair, and the images.
    assert temporary(64) < 4 * temporary(16)


@pytest.mark.slow
def test_real_size_in_float32(x64: None) -> None:
    """Smooth images, whose neighbouring pixels are nearly equal: what float32 is worst at."""
    random = np.random.default_rng(0)
    coarse = random.uniform(size=(3, 4, 4, 3))
    x = np.clip(np.kron(coarse, np.ones((1, 4, 4, 1))) + random.normal(size=(3, 16, 16, 3)) / 100, 0, 1)
    x[0, :8] = 1.0
    for architecture in (ntkit.convnet(3), ntkit.conv(2)):
        kernel = ntkit.ntk(architecture)
        _, expected = relu_kernels(architecture, x)
        np.testing.assert_allclose(kernel(x.astype(np.float32)), expected, rtol=1e-5)


def test_displacements_that_are_needed() -> None:
    def counts(architecture: Architecture, size: int) -> list[int]:
        return [len(stage.axes[0].displacements) for stage in stages(architecture, (size, size, 3))]

    assert counts(ntkit.convnet(3), 32) == [15, 7, 3, 1, 1]
    assert counts(ntkit.convnet(3), 33) == [15, 7, 3, 1, 1]
    assert counts(ntkit.conv(3), 32) == [1, 1]
    assert counts(ntkit.myrtle(5), 32) == [32, 16, 8, 1]


def test_what_is_not_fused_goes_to_neural_tangents() -> None:
    pytest.importorskip("neural_tangents")
    gelu = ntkit.fc(1, activation="gelu")
    assert ntkit.ntk(gelu).engine == "neural_tangents"
    with pytest.raises(ValueError, match=r"engine: got 'fused' for fc1, .* lacks layers\[2\], Activation\('gelu'\)$"):
        ntkit.ntk(gelu, "fused")


@pytest.mark.parametrize("block_pairs", [0, 1.5, True])
def test_bad_block_pairs(block_pairs: object) -> None:
    with pytest.raises(ValueError, match="block_pairs: got"):
        ntkit.ntk(ntkit.fc(1), block_pairs=block_pairs)
    with pytest.raises(ValueError, match="block_pairs: got 4, expected None"):
        ntkit.nngp(ntkit.fc(1), "neural_tangents", block_pairs=4)
