"""The nonlinearities whose infinite-width kernels are known in closed form."""

from __future__ import annotations

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

ACTIVATIONS: dict[str, ActivationFunction] = {
    "relu": ActivationFunction(jax.nn.relu, lambda stax: stax.Relu()),
    "leaky_relu": ActivationFunction(jax.nn.leaky_relu, lambda stax: stax.LeakyRelu(0.01)),
    "abs": ActivationFunction(jnp.abs, lambda stax: stax.Abs()),
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
    "square": ActivationFunction(jnp.square, lambda stax: stax.Monomial(2)),
    "identity": ActivationFunction(lambda x: x, lambda stax: stax.Identity()),
}
