"""What distillation minimizes: how far predictions on a target batch are from its targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkit._checks import check_call, check_option, told

Loss: TypeAlias = Callable[[Array, Array], Array]


def mse(predictions: Float[Array, "n classes"], targets: Float[Array, "n classes"]) -> Float[Array, ""]:
    """Give half the squared error, summed over classes and averaged over inputs.

    The loss of KIP, eq. 7 of Nguyen, Chen, Lee 2021 (arXiv:2011.00050), per target.
    """
    return 0.5 * jnp.mean(jnp.sum((predictions - targets) ** 2, axis=-1))


def cross_entropy(
    predictions: Float[Array, "n classes"], targets: Float[Array, "n classes"], *, temperature: float = 0.1
) -> Float[Array, ""]:
    """Softmax cross-entropy of predictions / temperature against the class with the largest target.

    **Arguments:**

    - `predictions`: outputs of a kernel predictor, on the scale of the targets (about 1 from class to class).
    - `targets`: one-hot targets, centred or not.
    - `temperature`: 0.1 makes a gap of 1 between two classes a likelihood ratio of e¹⁰.
    """
    log_likelihood = jax.nn.log_softmax(predictions / temperature, axis=-1)
    labels = jnp.argmax(targets, axis=-1, keepdims=True)
    return -jnp.mean(jnp.take_along_axis(log_likelihood, labels, axis=-1))


LOSSES: dict[str, Loss] = {"mse": mse, "cross_entropy": cross_entropy}


def check_loss(loss: str | Loss, classes: int, dtype: np.dtype) -> Loss:
    """Give the loss of a name, or a function as it is if it gives a scalar; `ValueError` for anything else."""
    chosen = check_option("loss", loss, LOSSES, "a function of predictions and targets")
    outputs = jax.ShapeDtypeStruct((2, classes), dtype)
    found = check_call("loss", chosen, outputs, outputs)
    if getattr(found, "shape", None) != ():
        raise ValueError(f"loss: got one that gives {told(found)}, expected a scalar")
    return chosen
