"""The nonlinearities whose infinite-width kernels are known in closed form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class ActivationFunction(NamedTuple):
    """One nonlinearity in two readings.

    **Fields:** `function`: the pointwise function itself. `stax`: given the module `neural_tangents.stax`, its layer
    with the closed-form kernel.
    """

    function: Callable[[jax.Array], jax.Array]
    stax: Callable[[Any], Any]


# The scale of neural-tangents' `Sigmoid_like`, (erf(x / scale) + 1) / 2, which is closest to the logistic sigmoid.
_SIGMOID_LIKE_SCALE = 2.4020563531719796


def _with_exact_diagonal(layer: Any, second_moment: float) -> Any:
    """Take the rounding noise out of a ReLU-like layer where its kernel meets an input with itself.

    neural-tangents finds the angle between two inputs from sqrt(v1 v2 − K²): a rounding error of eps in K is one of
    sqrt(eps) in the angle, which makes the tangent kernel's diagonal too small by 1e-4 in float32, and the matrix
    indefinite. But an input's angle with itself is 0. There σ multiplies variances, and σ' the tangent kernel, by
    E[σ'²] = `second_moment`.
    """
    init_fn, apply_fn, kernel_fn = layer

    @functools.wraps(kernel_fn)  # with its attributes: what it requires of the layers before it
    def exact(k: Any, *args: Any, **kwargs: Any) -> Any:
        out = kernel_fn(k, *args, **kwargs)
        if k.cov2 is not None:  # two batches: which inputs are equal is not known
            return out
        same = jnp.eye(k.nngp.shape[0], dtype=bool)
        for size in k.nngp.shape[2 :: 1 if k.diagonal_spatial else 2]:
            same = same[..., None] if k.diagonal_spatial else same[..., None, None] & jnp.eye(size, dtype=bool)
        nngp = jnp.where(same, second_moment * k.nngp, out.nngp)
        return out.replace(nngp=nngp, ntk=None if out.ntk is None else jnp.where(same, second_moment * k.ntk, out.ntk))

    return init_fn, apply_fn, exact


ACTIVATIONS: dict[str, ActivationFunction] = {
    "relu": ActivationFunction(jax.nn.relu, lambda stax: _with_exact_diagonal(stax.Relu(), 1 / 2)),
    "leaky_relu": ActivationFunction(
        jax.nn.leaky_relu, lambda stax: _with_exact_diagonal(stax.LeakyRelu(0.01), (1 + 0.01**2) / 2)
    ),
    "abs": ActivationFunction(jnp.abs, lambda stax: _with_exact_diagonal(stax.Abs(), 1.0)),
    "erf": ActivationFunction(jax.scipy.special.erf, lambda stax: stax.Erf()),
    "gelu": ActivationFunction(lambda x: jax.nn.gelu(x, approximate=False), lambda stax: stax.Gelu()),
    "sigmoid_like": ActivationFunction(
        lambda x: 0.5 * (jax.scipy.special.erf(x / _SIGMOID_LIKE_SCALE) + 1), lambda stax: stax.Sigmoid_like()
    ),
    "sin": ActivationFunction(jnp.sin, lambda stax: stax.Sin()),
    "cos": ActivationFunction(jnp.cos, lambda stax: stax.Cos()),
    "rbf": ActivationFunction(
        lambda x: math.sqrt(2) * jnp.sin(math.sqrt(2) * x + math.pi / 4), lambda stax: stax.Rbf()
    ),
    "exp": ActivationFunction(jnp.exp, lambda stax: stax.Exp()),
    "gaussian": ActivationFunction(lambda x: jnp.exp(-(x**2)), lambda stax: stax.Gaussian()),
    "gabor": ActivationFunction(lambda x: jnp.exp(-(x**2)) * jnp.sin(x), lambda stax: stax.Gabor()),
    "square": ActivationFunction(jnp.square, lambda stax: stax.Monomial(2)),
    "identity": ActivationFunction(lambda x: x, lambda stax: stax.Identity()),
}
