"""How accurate a model is under attack, with what speaks against believing it."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ntkit._checks import check_key, wrong
from ntkit.attacks.adversary import Adversary
from ntkit.attacks.balls import Ball, into_bounds
from ntkit.attacks.gradient import ascent
from ntkit.attacks.losses import fooled, log_odds
from ntkit.attacks.problem import BATCH_SIZE, Bounds, Model, Problem, all_outputs, problem

# Attacks along the gradient, from those whose result masked gradients spoil.
WHITE_BOX = ("fgsm", "pgd", "apgd")
# Of this share of the images a sign must show: below it may be chance.
TOLERANCE = 0.01
# Steps along a gradient, in units of the radius, of which one at least should increase the loss.
STEPS = (1.0, 0.1, 0.01)


class MaskedGradientsWarning(UserWarning):
    """A model resists attacks along its gradients for reasons other than being robust."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What [`evaluate`][] found.

    **Fields:**

    - `clean`: accuracy on the images as they are, in [0, 1].
    - `robust`: accuracy under each attack, by its name; of AutoAttack also after each of its stages, by
      `"autoattack after apgd-ce"` and so on.
    - `worst`: share of the images that no attack made the model wrong about.
    - `standing` (n,): which images these are.
    - `signs`: of masked gradients, one sentence each; if there are any, `robust` says too much.
    """

    clean: float
    robust: dict[str, float]
    worst: float
    standing: Bool[np.ndarray, " n"]
    signs: tuple[str, ...]


def evaluate(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    attacks: Adversary | Sequence[Adversary] | Mapping[str, Adversary],
    *,
    key: Array | None = None,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Give a model's accuracy on images, under each of some attacks, and under the worst of them for each image.

    Each attack is run by itself on all images about which the model is right.

    **Arguments:**

    - `model`, `x`, `labels`, `batch_size`: as in [`ntkit.attacks.pgd`][]. A model of preprocessed images is one of
      pixels as [`Preprocessed`][].
    - `attacks`: one or several [`Adversary`][]; named by a mapping, or else by their attacks.
    - `key`: of the attacks (default: `jax.random.key(0)`).

    **Returns:** an [`Evaluation`][].

    **Warns:** [`MaskedGradientsWarning`][] where the signs of masked gradients show (Athalye et al. 2018,
    arXiv:1802.00420, section 3.1; Carlini et al. 2019, arXiv:1902.06705): gradients that are zero or do not point to
    where the loss is larger, one step that is better than many, or Square, which sees no gradients, that is better than
    the attacks that do.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if outputs or gradients are not finite.
    """
    named = _named(attacks)
    key = jax.random.key(0) if key is None else key
    check_key("key", key)
    first = next(iter(named.values()))
    found = problem(model, x, labels, first.ball, first.bounds, gradient=False, batch_size=batch_size)
    for adversary in named.values():
        into_bounds("x", found.x, adversary.bounds)
    size = min(int(batch_size), len(found.x))
    right = ~np.asarray(fooled(found.clean, found.classes))
    signs = _blind_gradients(found, np.flatnonzero(right), size)
    robust: dict[str, float] = {}
    standing: dict[str, np.ndarray] = {}
    for i, (name, adversary) in enumerate(named.items()):
        record = functools.partial(_record, robust, name) if adversary.attack == "autoattack" else None
        standing[name] = _standing(found, adversary, labels, right, jax.random.fold_in(key, i), size, record)
        robust[name] = float(np.mean(standing[name]))
    all_of_them = np.all([right, *standing.values()], axis=0)
    signs += _contradictions(named, standing)
    for sign in signs:
        warnings.warn(f"masked gradients: {sign}; do not believe these robust accuracies", MaskedGradientsWarning, 2)
    return Evaluation(float(np.mean(right)), robust, float(np.mean(all_of_them)), all_of_them, tuple(signs))


def _named(attacks: object) -> dict[str, Adversary]:
    if isinstance(attacks, Adversary):
        attacks = [attacks]
    if isinstance(attacks, Mapping):
        named = {str(name): attack for name, attack in attacks.items()}
    elif isinstance(attacks, Sequence):
        named = {getattr(attack, "attack", "?"): attack for attack in attacks}
        if len(named) < len(attacks):
            raise ValueError("attacks: got several of one name, expected a mapping from names to them")
    else:
        named = {}
    if not named or not all(isinstance(attack, Adversary) for attack in named.values()):
        raise wrong("attacks", attacks, "an ntkit.attacks.Adversary, or several")
    return named


def _record(robust: dict[str, float], name: str, stage: str, share: float) -> None:
    if stage != "clean":
        robust[f"{name} after {stage}"] = share


def _standing(
    found: Problem,
    adversary: Adversary,
    labels: ArrayLike,
    right: np.ndarray,
    key: Array,
    size: int,
    record: Callable[[str, float], None] | None,
) -> np.ndarray:
    """Give which of the images that a model is right about it is right about under an attack."""
    still, left = right.copy(), np.flatnonzero(right)
    if record is not None:
        # It looks for those that stand itself.
        attacked = adversary(found.model, found.x, labels, key, batch_size=size, record=record)
        return still & ~np.asarray(fooled(all_outputs(found.model, attacked, size), found.classes))
    if len(left):
        rows = np.resize(left, -(-len(left) // size) * size)
        attacked = adversary(found.model, found.x[rows], np.asarray(labels)[rows], key, batch_size=size)
        outputs = all_outputs(found.model, attacked, size)
        still[left] = ~np.asarray(fooled(outputs, found.classes[rows]))[: len(left)]
    return still


def _blind_gradients(found: Problem, right: np.ndarray, size: int) -> list[str]:
    """Look at the gradient of the cross-entropy where the model is right: whether it says anything of the loss."""
    if not len(right) or not found.differentiable:
        return []
    rows = np.resize(right, -(-len(right) // size) * size)
    parts = [
        _signal(found.ball, found.bounds, found.wide, found.x[some].astype(found.dtype), found.classes[some])
        for some in np.split(rows, len(rows) // size)
    ]
    zero, useless = (float(np.mean(np.concatenate(part)[: len(right)])) for part in zip(*parts, strict=True))
    signs = []
    if zero > TOLERANCE:
        signs.append(
            f"the gradient of the cross-entropy is exactly zero at {zero:.0%} of the images that the model gets right"
        )
    if useless > TOLERANCE:
        signs.append(
            f"no step along the gradient of the cross-entropy, small or large, increases it at {useless:.0%} of the "
            "images that the model gets right"
        )
    return signs


@functools.partial(jax.jit, static_argnums=(0, 1))
def _signal(ball: Ball, bounds: Bounds, model: Any, x: Array, classes: Array) -> tuple[Array, Array]:
    """Give where the gradient is zero, and where it is not, but no step along it increases the loss."""
    gradient, losses, _ = ascent(model, log_odds, x, classes)
    zero = jnp.all(gradient.reshape(len(x), -1) == 0, axis=1)
    useless = ~zero
    for share in STEPS:
        moved = ball.project(x, x + share * ball.radius * ball.steepest(gradient), bounds)
        stays = jnp.all((moved == x).reshape(len(x), -1), axis=1)
        useless &= ~stays & (log_odds(model(moved), classes) <= losses)
    return zero, useless


def _contradictions(named: Mapping[str, Adversary], standing: Mapping[str, np.ndarray]) -> list[str]:
    """Compare attacks that have the same ball: of these each should do what a weaker one does."""
    signs = []
    for name, adversary in named.items():
        others = {
            other: standing[other]
            for other, against in named.items()
            if (against.ball, against.bounds) == (adversary.ball, adversary.bounds) and against.attack in WHITE_BOX
        }
        if adversary.attack == "square" and others:
            found = float(np.mean(~standing[name] & np.all(list(others.values()), axis=0)))
            if found > TOLERANCE:
                names = " and ".join(others)
                signs.append(
                    f"{name}, which sees no gradient, fools the model at {found:.1%} of the images where "
                    f"{names} can not"
                )
        if adversary.attack == "fgsm":
            for other, still in others.items():
                if named[other].attack != "fgsm" and np.mean(still) > np.mean(standing[name]) + TOLERANCE:
                    signs.append(
                        f"{name}, a single step, leaves {np.mean(standing[name]):.1%} standing, {other}, with many, "
                        f"{np.mean(still):.1%}"
                    )
    return signs
