"""How accurate a model is under attack, with what speaks against believing it."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ntkit._checks import check_key, wrong
from ntkit.attacks.attack import Attack
from ntkit.attacks.autoattack import AutoAttack
from ntkit.attacks.losses import fooled, log_odds
from ntkit.attacks.pgd import FGSM
from ntkit.attacks.problem import BATCH_SIZE, Model, Problem, all_outputs, problem, whole_batches
from ntkit.attacks.randomized import redrawn
from ntkit.attacks.task import Task, ascent

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
    - `correct` (n,): which images these are.
    - `signs`: of masked gradients, one sentence each; if there are any, `robust` says too much.
    """

    clean: float
    robust: dict[str, float]
    worst: float
    correct: Bool[np.ndarray, " n"]
    signs: tuple[str, ...]


def evaluate(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    attacks: Attack | Sequence[Attack] | Mapping[str, Attack],
    *,
    key: Array | None = None,
    target: Int[ArrayLike, " n"] | int | None = None,
    mask: ArrayLike | None = None,
    radius: Float[ArrayLike, " n"] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Give a model's accuracy on images, under each of some attacks, and under the worst of them for each image.

    Each attack is run by itself on all images about which the model is right.

    **Arguments:**

    - `model`, `x`, `labels`, `mask`, `radius`, `batch_size`: as of an [`Attack`][ntkit.attacks.Attack]. What was found
      for a [`Randomized`][ntkit.attacks.Randomized] model is judged by other draws than those that were attacked.
    - `attacks`: one or several [`Attack`][ntkit.attacks.Attack] values; named by a mapping, or else by their `name`.
    - `key`: of the attacks (default: `jax.random.key(0)`).
    - `target`: as of an attack; an image then stands unless the model names the target.

    **Returns:** an [`Evaluation`][].

    **Warns:** [`MaskedGradientsWarning`][] where the signs of masked gradients show (Athalye et al. 2018,
    arXiv:1802.00420, section 3.1; Carlini et al. 2019, arXiv:1902.06705): gradients that are zero or do not point to
    where the loss is larger, one step that is better than many, or Square, which sees no gradients, that is better than
    the attacks that do.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if outputs or gradients are not finite.
    """
    named = _named(attacks)
    key = jax.random.key(0) if key is None else check_key("key", key)
    first = next(iter(named.values()))
    found = problem(model, x, labels, first.ball, batch_size=batch_size, target=target, mask=mask, radius=radius)
    for attack in named.values():
        attack.ball.check_pixels("x", found.x)
    size = min(int(batch_size), len(found.x))
    right = ~np.asarray(fooled(found.clean, found.classes))
    signs = _blind_gradients(found, first, np.flatnonzero(right), size)
    robust: dict[str, float] = {}
    correct: dict[str, np.ndarray] = {}
    for i, (name, attack) in enumerate(named.items()):
        correct[name], stages = _correct_under(found, attack, right, jax.random.fold_in(key, i), size)
        robust |= {f"{name} after {stage}": share for stage, share in stages.items()}
        robust[name] = float(np.mean(correct[name]))
    all_of_them = np.all([right, *correct.values()], axis=0)
    signs += _contradictions(named, correct)
    for sign in signs:
        warnings.warn(f"masked gradients: {sign}; do not believe these robust accuracies", MaskedGradientsWarning, 2)
    return Evaluation(float(np.mean(right)), robust, float(np.mean(all_of_them)), all_of_them, tuple(signs))


def _named(attacks: object) -> dict[str, Attack]:
    if isinstance(attacks, Attack):
        attacks = [attacks]
    if isinstance(attacks, Mapping):
        named = {str(name): attack for name, attack in attacks.items()}
    elif isinstance(attacks, Sequence):
        named = {getattr(attack, "name", "?"): attack for attack in attacks}
        if len(named) < len(attacks):
            raise ValueError("attacks: got several of one name, expected a mapping from names to them")
    else:
        named = {}
    if not named or not all(isinstance(attack, Attack) for attack in named.values()):
        raise wrong("attacks", attacks, "an ntkit.attacks.Attack, such as PGD(Linf(8 / 255)), or several")
    return named


def _correct_under(
    found: Problem, attack: Attack, right: np.ndarray, key: Array, size: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Give which of the images that a model is right about it is right about under an attack, and shares by stage."""
    still, left = right.copy(), np.flatnonzero(right)
    judge = redrawn(found.model)
    if isinstance(attack, AutoAttack):
        # It looks for those that stand itself.
        attacked, stages = attack.by_stage(found, key, size)
        reached = found.goal.reached(all_outputs(judge, attacked, size))
        return still & ~np.asarray(reached), stages
    if len(left):
        some = found.rows(whole_batches(left, size))
        attacked = attack.solve(some, key, size)
        still[left] = ~np.asarray(some.goal.reached(all_outputs(judge, attacked, size)))[: len(left)]
    return still, {}


def _blind_gradients(found: Problem, attack: Attack, right: np.ndarray, size: int) -> list[str]:
    """Look at the gradient of the cross-entropy where the model is right: whether it says anything of the loss."""
    if not len(right) or found.gradient_error is not None:
        return []
    rows = whole_batches(right, size)
    # Nothing is drawn, and nothing is done.
    none = jnp.zeros(size, bool)
    batches = map(found.rows, np.split(rows, len(rows) // size))
    parts = [
        _signal(
            found.wide,
            Task(attack.ball, some.x.astype(found.dtype), some.goal, none, none, none, some.radii, some.mask),
        )
        for some in batches
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


@jax.jit
def _signal(model: Any, task: Task) -> tuple[Array, Array]:
    """Give where the gradient is zero, and where it is not, but no step along it increases the loss."""
    x, loss = task.x, functools.partial(task.goal.loss, log_odds)
    gradient, losses, _ = ascent(model, loss, x)
    zero = jnp.all(gradient.reshape(len(x), -1) == 0, axis=1)
    useless = ~zero
    for share in STEPS:
        moved = task.project(x + share * task.radius * task.steepest(gradient))
        stays = jnp.all((moved == x).reshape(len(x), -1), axis=1)
        useless &= ~stays & (loss(model(moved)) <= losses)
    return zero, useless


def _contradictions(named: Mapping[str, Attack], correct: Mapping[str, np.ndarray]) -> list[str]:
    """Compare attacks that have the same ball: of these each should do what a weaker one does."""
    signs = []
    for name, attack in named.items():
        others = {
            other: correct[other]
            for other, against in named.items()
            if against.ball == attack.ball and against.needs_gradient and not isinstance(against, AutoAttack)
        }
        if not attack.needs_gradient and others:
            found = float(np.mean(~correct[name] & np.all(list(others.values()), axis=0)))
            if found > TOLERANCE:
                names = " and ".join(others)
                signs.append(
                    f"{name}, which sees no gradient, fools the model at {found:.1%} of the images where "
                    f"{names} can not"
                )
        if isinstance(attack, FGSM):
            for other, still in others.items():
                if not isinstance(named[other], FGSM) and np.mean(still) > np.mean(correct[name]) + TOLERANCE:
                    signs.append(
                        f"{name}, a single step, leaves {np.mean(correct[name]):.1%} correct, {other}, with many, "
                        f"{np.mean(still):.1%}"
                    )
    return signs
