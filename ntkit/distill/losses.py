"""What distillation minimizes: how far predictions on a target batch are from its targets."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ntkit.data.targets import Loss, classes_of, cross_entropies, mse

# Makes a gap of 1 between two classes a likelihood ratio of e¹⁰.
TEMPERATURE = 0.1


def cross_entropy(
    predictions: Float[Array, "n classes"], targets: Float[Array, "n classes"], *, temperature: ArrayLike = TEMPERATURE
) -> Float[Array, ""]:
    """Softmax cross-entropy of predictions / temperature against the class with the largest target.

    **Arguments:**

    - `predictions`: outputs of a kernel predictor, on the scale of the targets (about 1 from class to class).
    - `targets`: one-hot targets, centred or not.
    - `temperature`: above 0; 0.1 makes a gap of 1 between two classes a likelihood ratio of e¹⁰. It may be traced.
    """
    return jnp.mean(cross_entropies(predictions, classes_of(targets), temperature=temperature))


LOSSES: dict[str, Loss] = {"mse": mse, "cross_entropy": cross_entropy}
