"""How much of what is predicted is rounding: a prediction is a sum of terms K(x, xᵢ) wᵢ, each of which is rounded.

Near inputs make K ill-conditioned and weights large, and what is left of the terms is then small beside them.
"""

from __future__ import annotations

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Predictions that rounding may change by more than this, relative to the largest target, are worth a word.
WORTH_A_WORD = 0.01
# An angle of which the gap 1 − cos θ is known to this many times the dtype's eps only.
ANGLE_NOISE = 4


class RoundingWarning(UserWarning):
    """The precision does not resolve the model: rounding changes its predictions by a percent or more."""


@jax.jit
def rounding(
    diagonal: Float[Array, " n"], weights: Float[Array, "n outputs"], y: Float[Array, "n outputs"]
) -> Float[Array, ""]:
    """Estimate the error that rounding leaves in predictions, relative to the largest target of an output.

    The terms K(x, xᵢ) wᵢ have independent relative errors of eps, with |K(x, xᵢ)|² ≤ K(x, x) K(xᵢ, xᵢ), and each number
    of a factorization is a sum of up to n.
    """
    eps = jnp.finfo(weights.dtype).eps * len(diagonal) ** 0.5
    return eps * jnp.sqrt(jnp.max(diagonal) * jnp.max(diagonal @ _in_targets(weights, y) ** 2))


@jax.jit
def rounding_of_angles(
    gram: Float[Array, "n n"], weights: Float[Array, "n outputs"], y: Float[Array, "n outputs"]
) -> Float[Array, ""]:
    """Estimate the same where near inputs have lost their angle θ: a tangent kernel falls by about θ / π of itself."""
    lengths = jnp.sqrt(jnp.diagonal(gram))
    scale = lengths[:, None] * lengths[None]
    noise = ANGLE_NOISE * jnp.finfo(weights.dtype).eps
    gap = jnp.maximum(1 - gram / jnp.where(scale > 0, scale, 1.0), noise)
    lost = jnp.where(jnp.eye(len(gram), dtype=bool), 0.0, noise / jnp.sqrt(gap) / math.pi * gram)
    return jnp.sqrt(jnp.max(lost**2 @ _in_targets(weights, y) ** 2))


def warn_of_rounding(what: str, error: float, dtype: np.dtype) -> None:
    """Warn if the estimated error of predictions is worth a word, in the name of the function that `what` names."""
    if error > WORTH_A_WORD:
        double = dtype == np.float64
        advice = "" if double else ", or double precision: jax.config.update('jax_enable_x64', True)"
        warnings.warn(
            f"{what}: {dtype} does not resolve this model: rounding changes its predictions by about "
            f"{min(error, 1.0):.2g} of the largest target. Inputs are nearly equal for the kernel, and their targets "
            f"are not; a larger ridge or a shorter time avoids it{advice}",
            RoundingWarning,
            stacklevel=4,
        )


def warn_of_rounding_of_variances(what: str, error: float, dtype: np.dtype) -> None:
    """Warn if the estimated error of variances, relative to their own size, is worth a word."""
    if error > WORTH_A_WORD:
        advice = "" if dtype == np.float64 else ", or double precision: jax.config.update('jax_enable_x64', True)"
        warnings.warn(
            f"{what}: {dtype} does not resolve this: rounding may change a variance by {min(error, 1.0):.2g} of itself "
            f"or more, where the data leave little of it. A larger noise avoids it{advice}",
            RoundingWarning,
            stacklevel=3,
        )


def _in_targets(weights: Array, y: Array) -> Array:
    """Give weights in units of each output's largest target."""
    largest = jnp.max(jnp.abs(y), axis=0)
    return weights / jnp.where(largest > 0, largest, 1.0)[None].astype(weights.dtype)
