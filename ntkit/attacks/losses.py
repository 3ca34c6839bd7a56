"""What an attack increases, for each image: how wrong a model is about it.

A model with one output is a classifier by its sign: it stands for the two logits (−f, f).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Loss: TypeAlias = Callable[[Array, Array], Array]


def logits(outputs: Float[Array, "n outputs"]) -> Float[Array, "n classes"]:
    """Give the outputs of a model with several, and (−f, f) of a model with one."""
    return jnp.concatenate([-outputs, outputs], axis=1) if outputs.shape[1] == 1 else outputs


def fooled(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Array:
    """Whether each output names another class than the true one.

    Ties go to the first class, as in `argmax`; 0 from one output is class +1.
    """
    if outputs.shape[1] == 1:
        return (outputs[:, 0] >= 0) != (classes == 1)
    return jnp.argmax(outputs, axis=1) != classes


def cross_entropy(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Float[Array, " n"]:
    """Give −log softmax(z)_y; of one output log(1 + e^(−2 y f))."""
    return -_of(classes, jax.nn.log_softmax(logits(outputs)))


def mse(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Float[Array, " n"]:
    """Give half the squared error against centred one-hot targets, or against −1 and +1 for one output."""
    if outputs.shape[1] == 1:
        return 0.5 * (outputs[:, 0] - (2 * classes - 1)) ** 2
    targets = jax.nn.one_hot(classes, outputs.shape[1]) - 1 / outputs.shape[1]
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=1)


def margin(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Float[Array, " n"]:
    """Give by how much the largest other logit is above the true class's: positive where the model is wrong.

    Carlini & Wagner 2017 (arXiv:1608.04644), f₆.
    """
    return jnp.max(_of_others(classes, logits(outputs)), axis=1) - _of(classes, logits(outputs))


def targeted_dlr(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"], targets: Int[Array, " n"]) -> Array:
    """Give the targeted difference of logits ratio, eq. 7 of Croce & Hein 2020 (arXiv:2003.01690).

    −(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2), with logits sorted, π1 the largest: it does not change if all logits are
    scaled or shifted. Of three classes the divisor is z_π1 − z_π3; of two it is 1, since their only difference is what
    is divided.
    """
    z = logits(outputs)
    difference = _of(targets, z) - _of(classes, z)
    if z.shape[1] == 2:
        return difference
    ordered = jnp.sort(z, axis=1)
    lower = ordered[:, -3] if z.shape[1] == 3 else (ordered[:, -3] + ordered[:, -4]) / 2
    return difference / (ordered[:, -1] - lower + 1e-12)


def likeliest(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Int[Array, "n others"]:
    """Give the wrong classes of each image by their logits, the largest first, (n, classes − 1)."""
    return jnp.argsort(-_of_others(classes, logits(outputs)), axis=1)[:, :-1]


def _of_others(classes: Array, values: Array) -> Array:
    """Give −∞ in place of the true class's value."""
    return jnp.where(jax.nn.one_hot(classes, values.shape[1], dtype=bool), -jnp.inf, values)


def _of(classes: Array, values: Array) -> Array:
    return jnp.take_along_axis(values, classes[:, None], axis=1)[:, 0]


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse, "margin": margin}
