"""Auto-PGD: projected gradient ascent that chooses its step size by itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ntkit._checks import check_choice, check_integer
from ntkit.attacks.attack import Attack
from ntkit.attacks.balls import like
from ntkit.attacks.losses import Loss, log_odds, margin, targeted_dlr
from ntkit.attacks.problem import Model
from ntkit.attacks.shrinking import shrinking_loop
from ntkit.attacks.task import Task, ascent

# Croce & Hein 2020 (arXiv:2003.01690), section 3: momentum α (eq. 1), the share ρ of steps that must have increased the
# loss, and the checkpoints, p₁ of the steps and then less by 0.03 each time, but at least 0.06.
MOMENTUM = 0.75
RHO = 0.75
FIRST_PERIOD, SHORTER, LEAST_PERIOD = 0.22, 0.03, 0.06


class _Climb(NamedTuple):
    """Of each image. `increases`: steps of this period that increased the loss. `reduced`: whether the last checkpoint
    halved the step size, when the best loss was `checked`."""

    x: Array
    before: Array
    gradient: Array
    loss: Array
    size: Array
    best: Array
    best_gradient: Array
    best_loss: Array
    increases: Array
    reduced: Array
    checked: Array
    found: Array
    done: Array


@dataclasses.dataclass(frozen=True)
class APGD(Attack):
    """Steps of momentum whose size is halved, from the best point so far, where the loss no longer grows: Auto-PGD.

    Croce & Hein 2020 (arXiv:2003.01690), algorithm 1. An image is left alone once the model is wrong about it.

    **Fields:**

    - `ball`: [`Linf`][ntkit.attacks.Linf] or [`L2`][ntkit.attacks.L2].
    - `steps`: gradient steps of each start.
    - `restarts`: starts, of each target.
    - `loss`: `"cross_entropy"`, or `"targeted_dlr"`, the difference of logits ratio toward one class after the other.
    - `targets`: for `"targeted_dlr"`, how many classes to aim at, no more than there are; the likeliest wrong one
      first. Called with a `target`, the attack aims at that alone.

    Of each image the first that fools the model is kept, or else the one of the largest loss.

    **Raises:** `ValueError` that names the field.
    """

    steps: int = dataclasses.field(default=100, kw_only=True)
    restarts: int = dataclasses.field(default=1, kw_only=True)
    loss: Literal["cross_entropy", "targeted_dlr"] = dataclasses.field(default="cross_entropy", kw_only=True)
    targets: int = dataclasses.field(default=9, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "restarts", "targets"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))
        check_choice("loss", self.loss, ("cross_entropy", "targeted_dlr"))

    def harm(self) -> Loss:
        return log_odds if self.loss == "cross_entropy" else margin

    def perturb(self, model: Model, task: Task) -> tuple[Array, Array]:
        order = None if self.loss == "cross_entropy" else task.aims(model, self.targets)
        starts = self.restarts * (1 if order is None else order.shape[1])

        def again(start: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            kept, score, done = best
            aims = None if order is None else order[:, start // self.restarts]
            found, losses, wrong = self._climb(model, task, aims, task.surface(task.own_keys(start)), done)
            better = ~done & (wrong | (losses > score))
            return task.keep(~better, kept, found), jnp.where(better, losses, score), done | wrong

        def unfinished(carry: tuple[Array, tuple[Array, Array, Array]]) -> Array:
            return (carry[0] < starts) & ~jnp.all(carry[1][2])

        nothing = jnp.full(len(task.x), -jnp.inf, task.x.dtype)
        first = (jnp.zeros((), jnp.int32), (task.x, nothing, task.done))
        _, (found, _, done) = lax.while_loop(unfinished, lambda carry: (carry[0] + 1, again(*carry)), first)
        return found, done

    def _climb(
        self, model: Model, task: Task, aims: Array | None, start: Array, done: Array
    ) -> tuple[Array, Array, Array]:
        """Give what one start found, its losses, and whether the model is wrong about it; `aims`: classes to go for."""
        period = jnp.asarray(checkpoints(self.steps))

        def where(condition: Array, a: Array, b: Array) -> Array:
            return jnp.where(like(condition, a), a, b)

        def score(task: Task, aims: Array | None) -> Callable[[Array], Array]:
            if aims is None:
                return functools.partial(task.goal.loss, log_odds)
            return lambda outputs: targeted_dlr(outputs, task.goal.rivals(outputs), aims)

        def step(i: Array, fixed: tuple[Task, Array | None], s: _Climb) -> _Climb:
            task, aims = fixed
            ahead = task.project(s.x + like(s.size, s.x) * task.steepest(s.gradient))
            # Eq. 1; the first step has no momentum.
            alpha = jnp.where(i == 0, 1.0, MOMENTUM).astype(s.x.dtype)
            moved = task.project(s.x + alpha * (ahead - s.x) + (1 - alpha) * (s.x - s.before))
            gradient, losses, outputs = ascent(model, score(task, aims), moved)
            wrong = task.reached(outputs) & ~s.done
            improved = losses > s.best_loss
            after = s._replace(
                x=moved,
                before=s.x,
                gradient=gradient,
                loss=losses,
                best=where(improved, moved, s.best),
                best_gradient=where(improved, gradient, s.best_gradient),
                best_loss=jnp.where(improved, losses, s.best_loss),
                increases=s.increases + (losses > s.loss),
            )
            length = period[i]
            # Conditions 1 and 2 of section 3.
            rarely = after.increases < RHO * length
            stuck = ~s.reduced & (after.best_loss <= s.checked)
            check = length > 0
            halve = check & (rarely | stuck)
            after = after._replace(
                size=jnp.where(halve, s.size / 2, s.size),
                x=where(halve, after.best, after.x),
                gradient=where(halve, after.best_gradient, after.gradient),
                loss=jnp.where(halve, after.best_loss, after.loss),
                increases=jnp.where(check, 0, after.increases),
                reduced=jnp.where(check, halve, s.reduced),
                checked=jnp.where(check, after.best_loss, s.checked),
            )
            # Who is done stays where it is, at what fooled the model.
            after = jax.tree.map(lambda new, old: where(s.done, old, new), after, s)
            return after._replace(found=where(wrong, moved, after.found), done=s.done | wrong)

        gradient, losses, outputs = ascent(model, score(task, aims), start)
        wrong = task.reached(outputs) & ~done
        n, dtype = len(task.x), task.x.dtype
        state = _Climb(
            x=start,
            before=start,
            gradient=gradient,
            loss=losses,
            size=jnp.full(n, 2 * task.radius_each, dtype),
            best=start,
            best_gradient=gradient,
            best_loss=losses,
            increases=jnp.zeros(n, jnp.int32),
            reduced=jnp.ones(n, bool),
            checked=losses,
            found=start,
            done=done | wrong,
        )
        state = shrinking_loop(step, lambda state: state.done, (task, aims), state, self.steps)
        wrong = state.done & ~done
        return where(wrong, state.found, state.best), state.best_loss, wrong


def checkpoints(steps: int) -> np.ndarray:
    """Give after which steps the step size is looked at: (steps,), for each of these the length of its period, or 0."""
    least, shorter = max(int(LEAST_PERIOD * steps), 1), max(int(SHORTER * steps), 1)
    period = max(int(FIRST_PERIOD * steps), 1)
    found = np.zeros(steps, np.int32)
    at = period
    while at <= steps:
        found[at - 1] = period
        period = max(period - shorter, least)
        at += period
    return found
