"""Auto-PGD: projected gradient ascent that chooses its step size by itself."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_choice, check_key
from ntkit.attacks._standing import while_any_stands
from ntkit.attacks.balls import Ball, like
from ntkit.attacks.gradient import ascent
from ntkit.attacks.losses import Loss, clear, likeliest, log_odds, margin, targeted_dlr
from ntkit.attacks.problem import BATCH_SIZE, Bounds, Model, check_options, problem

# Croce & Hein 2020 (arXiv:2003.01690), section 3: momentum α (eq. 1), the share ρ of steps that must have increased the
# loss, and the checkpoints, p₁ of the steps and then less by 0.03 each time, but at least 0.06.
MOMENTUM = 0.75
RHO = 0.75
FIRST_PERIOD, SHORTER, LEAST_PERIOD = 0.22, 0.03, 0.06


def apgd(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    ball: Ball,
    *,
    key: Array,
    bounds: Bounds = (0, 1),
    loss: Literal["cross_entropy", "targeted_dlr"] = "cross_entropy",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    batch_size: int = BATCH_SIZE,
) -> Float[Array, "n ..."]:
    """Take steps of momentum whose size is halved, from the best point so far, where the loss no longer grows: APGD.

    Croce & Hein 2020 (arXiv:2003.01690), algorithm 1. An image is left alone once the model is wrong about it.

    **Arguments:**

    - `model`, `x`, `labels`, `ball`, `bounds`, `batch_size`: as in [`ntkit.attacks.pgd`][].
    - `key`: of random starts.
    - `loss`: `"cross_entropy"`, or `"targeted_dlr"`, the difference of logits ratio toward one class after the other.
    - `steps`: gradient steps of each start.
    - `restarts`: starts, of each target.
    - `targets`: for `"targeted_dlr"`, how many classes to aim at, no more than there are; the likeliest wrong one
      first.

    **Returns:** images as `x`, each inside its ball and the bounds: the first that fools the model, or else the one of
    the largest loss.

    **Raises:** as [`ntkit.attacks.pgd`][].
    """
    steps, restarts, targets = check_options(steps=steps, restarts=restarts, targets=targets)
    check_key("key", key)
    check_apgd_loss(loss)
    found = problem(model, x, labels, ball, bounds, batch_size=batch_size)
    aims = min(targets, max(found.outputs, 2) - 1) if loss == "targeted_dlr" else None
    how = _How(ball, found.bounds, steps, restarts, aims)
    return found.solve(functools.partial(_apgd, how), key, batch_size, log_odds if aims is None else margin)


def check_apgd_loss(loss: object) -> None:
    """Raise `ValueError` unless `loss` is the name of one."""
    check_choice("loss", loss, ("cross_entropy", "targeted_dlr"))


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


class _How(NamedTuple):
    ball: Ball
    bounds: Bounds
    steps: int
    restarts: int
    targets: int | None


class _State(NamedTuple):
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


@functools.partial(jax.jit, static_argnums=0)
def _apgd(
    how: _How, model: Any, x: Array, classes: Array, keys: Array, done: Array, clearance: Array
) -> tuple[Array, Array]:
    starts = how.restarts * (how.targets or 1)
    order = None if how.targets is None else likeliest(model(x), classes)

    def again(start: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        kept, score, done = best
        aims = None if order is None else order[:, start // how.restarts]
        own = jax.vmap(lambda key: jax.random.fold_in(key, start))(keys)
        found, losses, wrong = _from(
            how, model, x, classes, clearance, aims, how.ball.surface(own, x, how.bounds), done
        )
        better = ~done & (wrong | (losses > score))
        return jnp.where(like(better, x), found, kept), jnp.where(better, losses, score), done | wrong

    def unfinished(carry: tuple[Array, tuple[Array, Array, Array]]) -> Array:
        return (carry[0] < starts) & ~jnp.all(carry[1][2])

    first = (jnp.zeros((), jnp.int32), (x, jnp.full(len(x), -jnp.inf, x.dtype), done))
    _, (found, _, done) = lax.while_loop(unfinished, lambda carry: (carry[0] + 1, again(*carry)), first)
    return found, done


def _from(
    how: _How,
    model: Any,
    x: Array,
    classes: Array,
    clearance: Array,
    aims: Array | None,
    start: Array,
    done: Array,
) -> tuple[Array, Array, Array]:
    """Give what one start found, its losses, and whether the model is wrong about it; `aims`: classes to go for."""
    ball, bounds = how.ball, how.bounds
    period = jnp.asarray(checkpoints(how.steps))

    def where(condition: Array, a: Array, b: Array) -> Array:
        return jnp.where(like(condition, a), a, b)

    def loss_of(aims: Array | None) -> Loss:
        return log_odds if aims is None else functools.partial(targeted_dlr, targets=aims)

    def step(i: Array, fixed: tuple[Array, Array, Array, Array | None], s: _State) -> _State:
        x, classes, clearance, aims = fixed
        size = like(s.size, x)
        ahead = ball.project(x, s.x + size * ball.steepest(s.gradient), bounds)
        # Eq. 1; the first step has no momentum.
        alpha = jnp.where(i == 0, 1.0, MOMENTUM).astype(x.dtype)
        moved = ball.project(x, s.x + alpha * (ahead - s.x) + (1 - alpha) * (s.x - s.before), bounds)
        gradient, losses, outputs = ascent(model, loss_of(aims), moved, classes)
        wrong = clear(outputs, classes, clearance) & ~s.done
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

    gradient, losses, outputs = ascent(model, loss_of(aims), start, classes)
    wrong = clear(outputs, classes, clearance) & ~done
    state = _State(
        x=start,
        before=start,
        gradient=gradient,
        loss=losses,
        size=jnp.full(len(x), 2 * ball.radius, x.dtype),
        best=start,
        best_gradient=gradient,
        best_loss=losses,
        increases=jnp.zeros(len(x), jnp.int32),
        reduced=jnp.ones(len(x), bool),
        checked=losses,
        found=start,
        done=done | wrong,
    )
    state = while_any_stands(step, lambda state: state.done, (x, classes, clearance, aims), state, how.steps)
    wrong = state.done & ~done
    return where(wrong, state.found, state.best), state.best_loss, wrong
