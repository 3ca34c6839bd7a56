"""The fused engine against neural-tangents, on inputs with duplicates and a zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit

ARCHITECTURES = {
    "linear": ntkit.fc(0),
    "relu": ntkit.fc(3),
    "leaky_relu": ntkit.fc(2, activation="leaky_relu"),
    "abs, no bias": ntkit.fc(2, activation="abs", b_std=None),
    "erf": ntkit.fc(2, activation="erf"),
    "identity": ntkit.fc(1, activation="identity"),
    "standard": ntkit.fc(2, parameterization="standard", width=64),
    "standard, no bias": ntkit.fc(2, parameterization="standard", b_std=None),
}
KERNELS = {"ntk": ntkit.ntk, "nngp": ntkit.nngp}
# The tangent kernel contains the other one; compiling both for all architectures takes a minute.
CASES = [*((name, "ntk") for name in ARCHITECTURES), ("relu", "nngp")]


def inputs(dtype: type) -> np.ndarray:
    """Images of which two are equal."""
    x = np.random.default_rng(0).normal(size=(9, 4, 4, 2)).astype(dtype)
    x[5] = x[3]
    return x


def close(found: jax.Array, expected: jax.Array, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("architecture", "kernel"), CASES)
def test_agrees_with_neural_tangents(architecture: str, kernel: str, x64: None) -> None:
    fused, reference = (KERNELS[kernel](ARCHITECTURES[architecture], engine) for engine in ("fused", "neural_tangents"))
    assert (fused.engine, reference.engine) == ("fused", "neural_tangents")
    x = inputs(np.float64)
    # neural-tangents knows no equal inputs in two batches: pairs of copies are compared in one.
    close(fused(x[:3], x[4:]), reference(x[:3], x[4:]), 1e-10)
    close(fused.diagonal(x), reference.diagonal(x), 1e-10)
    whole, expected = np.array(fused(x)), np.array(reference(x))
    whole[[3, 5], [5, 3]] = expected[[3, 5], [5, 3]]
    close(whole, expected, 1e-10)
    weights = np.random.default_rng(1).normal(size=(3, 5))

    def weighted(kernel: ntkit.Kernel, x1: jax.Array) -> jax.Array:
        return jnp.sum(kernel(x1, x[4:]) * weights)

    gradient = jax.jit(jax.grad(weighted, (0, 1)))  # to hyper-parameters and images
    found, wanted = (gradient(kernel, jnp.asarray(x[:3])) for kernel in (fused, reference))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        # A bias of the standard parameterization that does not matter has a derivative of rounding noise.
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(np.abs(b).max() + 1))


@pytest.mark.parametrize("architecture", ["relu", "erf", "standard"])
def test_agrees_with_neural_tangents_in_float32(architecture: str) -> None:
    fused, reference = (ntkit.ntk(ARCHITECTURES[architecture], engine) for engine in ("fused", "neural_tangents"))
    x = inputs(np.float32)
    close(fused(x[:3], x[4:]), reference(x[:3], x[4:]), 1e-5)
    gradient = [jax.grad(lambda x1, k=k: k(x1, x[4:]).sum())(jnp.asarray(x[:3])) for k in (fused, reference)]
    close(*gradient, 1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_are_finite_at_duplicates_and_zero(architecture: str) -> None:
    kernel = ntkit.ntk(ARCHITECTURES[architecture])
    x = jnp.asarray(inputs(np.float32)).at[7].set(0.0)

    def total(x: jax.Array) -> jax.Array:
        return kernel(x).sum() + kernel(x, x[::-1]).sum() + kernel.diagonal(x).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_equal_inputs_are_exact_on_the_diagonal(x64: None) -> None:
    x = inputs(np.float64)
    kernel = ntkit.ntk(ntkit.fc(2))
    exact = kernel.diagonal(x)
    np.testing.assert_allclose(jnp.diagonal(kernel(x.astype(np.float32))), exact, rtol=1e-6)


def test_what_is_not_fused_goes_to_neural_tangents() -> None:
    gelu = ntkit.fc(1, activation="gelu")
    assert ntkit.ntk(gelu).engine == ntkit.ntk(ntkit.conv(1)).engine == "neural_tangents"
    for architecture in (gelu, ntkit.conv(1)):
        with pytest.raises(ValueError, match="engine: got 'fused', expected 'auto' or 'neural_tangents'"):
            ntkit.ntk(architecture, "fused")
