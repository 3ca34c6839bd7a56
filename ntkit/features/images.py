"""What a feature looks at: its gradient by the pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit.attacks.losses import margin
from ntkit.attacks.problem import Model, problem


def gradient_images(model: Model, x: Float[ArrayLike, "n ..."], labels: Int[ArrayLike, " n"]) -> Float[Array, "n ..."]:
    """Give, for each image, the direction in pixels that makes a feature, or any model, say its label more clearly.

    The gradient of the margin: of the true class's output over the largest other one; of y f for labels y of −1 and +1
    and one output. Its negative is what FGSM steps along (Tsilivis & Kempe 2022, arXiv:2210.05577, figure 3).

    **Arguments:** as in [`ntkit.features.usefulness`][].

    **Returns:** as `x`.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if outputs or gradients are not finite.
    """
    found = problem(model, x, labels)
    found.check_differentiable()
    gradient = _gradient(found.model, found.x, found.classes)
    if not bool(jnp.isfinite(gradient).all()):
        raise FloatingPointError("model: its gradient is NaN or infinite, expected finite values")
    return gradient


@jax.jit
def _gradient(model: Model, x: Array, classes: Array) -> Array:
    return jax.grad(lambda x: -jnp.sum(margin(model(x), classes)))(x)
