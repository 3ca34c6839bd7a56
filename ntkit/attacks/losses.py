"""What an attack increases, for each image: how wrong a model is about it.

A model with one output is a classifier by its sign: it stands for the two logits (−f, f).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ntkit.data.targets import cross_entropies, squared_errors, targets_of

Loss: TypeAlias = Callable[[Array, Array], Array]

# Logits within the one of each other are spread to the other.
CLOSE, APART = 0.1, 10.0
# By how many units in the last place of 1 the sum of probabilities may be beside it.
ROUNDINGS = 100


def logits(outputs: Float[Array, "n outputs"]) -> Float[Array, "n classes"]:
    """Give the outputs of a model with several, and (−f, f) of a model with one.

    Of an image's outputs that are probabilities, which a softmax gives, their logarithms: these are logits too, and
    have gradients where the probabilities themselves are 0 and 1 up to rounding.
    """
    if outputs.shape[1] == 1:
        return _pair(outputs)
    limits = jnp.finfo(outputs.dtype)
    sums = jnp.sum(outputs, axis=1, keepdims=True)
    probabilities = jnp.all(outputs >= 0, axis=1, keepdims=True) & (jnp.abs(sums - 1) <= ROUNDINGS * limits.eps)
    return jnp.where(probabilities, jnp.log(jnp.maximum(outputs, limits.tiny)), outputs)


def fooled(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Array:
    """Whether each output names another class than the true one.

    Ties go to the first class, as in `argmax`; 0 from one output is class +1.
    """
    if outputs.shape[1] == 1:
        return (outputs[:, 0] >= 0) != (classes == 1)
    return jnp.argmax(outputs, axis=1) != classes


def cross_entropy(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Float[Array, " n"]:
    """Give −log softmax(z)_y; of one output log(1 + e^(−2 y f))."""
    return cross_entropies(outputs, classes)


def log_odds(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Float[Array, " n"]:
    """Give u = log Σ_{k≠y} exp(z_k − z_y) − log(K − 1): of the wrong classes, by the model's own probabilities.

    The cross-entropy is log(1 + (K − 1) eᵘ), which grows with u, so that an ascent goes the same way by either. But the
    gradient of the cross-entropy rounds to nothing for logits far apart, where that of u goes on to be that of the
    margin. Logits that are all close, by which softmax does not tell which other class is the likeliest, are first
    spread apart, and the odds brought back: so it is no matter how small they are, either.
    """
    z = logits(outputs)
    spread = lax.stop_gradient(jnp.max(z, axis=1, keepdims=True) - jnp.min(z, axis=1, keepdims=True))
    scale = jnp.where(spread < CLOSE, APART / jnp.where(spread > 0, spread, 1), 1)
    z = z * scale
    largest = lax.stop_gradient(jnp.max(_of_others(classes, z), axis=1))
    true = jax.nn.one_hot(classes, z.shape[1], dtype=bool)
    # By differences from 1: where all logits are close, the sum of exponentials is K − 1 up to rounding.
    beside = jnp.expm1(jnp.where(true, 0, z - largest[:, None]))
    return (largest - _of(classes, z) + jnp.log1p(jnp.sum(beside, axis=1) / (z.shape[1] - 1))) / scale[:, 0]


def mse(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Float[Array, " n"]:
    """Give half the squared error against centred one-hot targets, or against −1 and +1 for one output."""
    return 0.5 * squared_errors(outputs, targets_of(classes, outputs.shape[1]))


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
    divisor = ordered[:, -1] - lower
    return difference / jnp.where(divisor > 0, divisor, 1)


def likeliest(outputs: Float[Array, "n outputs"], classes: Int[Array, " n"]) -> Int[Array, "n others"]:
    """Give the wrong classes of each image by their logits, the largest first, (n, classes − 1)."""
    return jnp.argsort(-_of_others(classes, logits(outputs)), axis=1)[:, :-1]


def _pair(outputs: Array) -> Array:
    return jnp.concatenate([-outputs, outputs], axis=1) if outputs.shape[1] == 1 else outputs


def _of_others(classes: Array, values: Array) -> Array:
    """Give −∞ in place of the true class's value."""
    return jnp.where(jax.nn.one_hot(classes, values.shape[1], dtype=bool), -jnp.inf, values)


def _of(classes: Array, values: Array) -> Array:
    return jnp.take_along_axis(values, classes[:, None], axis=1)[:, 0]


# What an attack climbs by the name of a loss.
LOSSES: dict[str, Loss] = {"cross_entropy": log_odds, "mse": mse, "margin": margin}
