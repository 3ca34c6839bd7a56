"""Attacks along the gradient with a fixed step: FGSM and PGD."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_call, check_key, check_option, told
from ntkit._loops import fast_in_loops
from ntkit.attacks._standing import while_any_stands
from ntkit.attacks.balls import Ball, check_ball, like
from ntkit.attacks.losses import LOSSES, Loss, clear
from ntkit.attacks.problem import BATCH_SIZE, Bounds, Model, check_options, problem


def fgsm(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    ball: Ball,
    *,
    bounds: Bounds = (0, 1),
    loss: str | Loss = "cross_entropy",
    batch_size: int = BATCH_SIZE,
) -> Float[Array, "n ..."]:
    """Take one step to the ball's surface, along the gradient: the fast gradient sign method, and its like for L2.

    Goodfellow et al. 2015 (arXiv:1412.6572), section 4. Arguments, result and errors are those of [`pgd`][].
    """
    bounds = check_ball(ball, bounds)
    single = _Steps(ball, bounds, check_loss(loss), 1, 1, ball.radius, False, False)
    return _run(model, x, labels, single, jax.random.key(0), batch_size)


def pgd(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    ball: Ball,
    *,
    key: Array | None = None,
    bounds: Bounds = (0, 1),
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: str | Loss = "cross_entropy",
    stop_early: bool = True,
    batch_size: int = BATCH_SIZE,
) -> Float[Array, "n ..."]:
    """Take steps of one size along the steepest ascent of a loss, each brought back into the ball: PGD.

    Madry et al. 2018 (arXiv:1706.06083), section 2.1.

    **Arguments:**

    - `model`: any callable from images to logits (n, classes), or to one output (n, 1), whose sign is the class.
      Differentiable in JAX. A pytree, such as a `Predictor` or a `TrainedNetwork`, is handed to the compiled attack
      with its arrays; any other function or object is compiled again only if it changed.
    - `x`: images (n, height, width, channels) or (n, d), within the bounds; beyond them by rounding they are clipped.
    - `labels`: true classes (n,), integers from 0; −1 and +1 for a model with one output.
    - `ball`: [`Linf`][] or [`L2`][].
    - `key`: of random starts. Every image has its own draws, which depend on its index alone.
    - `bounds`: (lowest, highest) of the pixels.
    - `steps`: gradient steps of each start.
    - `step_size`: in the units of the radius (default: 2.5 · radius / steps).
    - `restarts`: starts; of several the worst for the model is kept.
    - `random_start`: begin at a random point of the ball (else at the image; then there is nothing to restart).
    - `loss`: `"cross_entropy"`, `"mse"`, `"margin"`, or a function of outputs (n, outputs) and classes (n,) that gives
      (n,) (of labels −1 and +1 the classes are 0 and 1). The cross-entropy's gradient is taken so that the scale of
      the logits does not matter.
    - `stop_early`: leave an image alone once the model is wrong about it. Without it all steps are taken, for a large
      loss rather than a wrong class: for adversarial training.
    - `batch_size`: images attacked at once.

    **Returns:** images as `x`, each inside its ball and the bounds, and none less harmful than it was: a class that is
    wrong stays so, and where none is the loss is no smaller.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if outputs or gradients are not finite.
    """
    bounds = check_ball(ball, bounds)
    steps, restarts, step_size = check_options(steps=steps, restarts=restarts, step_size=step_size)
    random_start, stop_early = check_options(random_start=random_start, stop_early=stop_early)
    if random_start:
        check_key("key", key)
    elif restarts > 1:
        raise ValueError(f"restarts: got {restarts} with random_start=False, expected 1: all would be the same")
    size = 2.5 * ball.radius / steps if step_size is None else step_size
    several = _Steps(
        ball,
        bounds,
        check_loss(loss),
        steps,
        restarts,
        size,
        random_start,
        stop_early,
    )
    return _run(model, x, labels, several, jax.random.key(0) if key is None else key, batch_size)


def check_loss(loss: object) -> Loss:
    """Give the loss of a name, or a function as it is."""
    return check_option("loss", loss, LOSSES, "a function of outputs and classes")


def ascent(model: Model, loss: Loss, x: Array, classes: Array) -> tuple[Array, Array, Array]:
    """Give the gradient of each image's loss, the losses (n,) and the outputs (n, outputs)."""

    def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
        outputs = model(x)
        losses = loss(outputs, classes)
        return jnp.sum(losses), (losses, outputs)

    gradient, (losses, outputs) = fast_in_loops(jax.grad(total, has_aux=True))(x)
    return gradient, losses, outputs


class _Steps(NamedTuple):
    """What the compiled attack is compiled for."""

    ball: Ball
    bounds: Bounds
    loss: Loss
    steps: int
    restarts: int
    size: float
    random_start: bool
    stop_early: bool


def _run(model: Model, x: ArrayLike, labels: ArrayLike, how: _Steps, key: Array, batch_size: int) -> Array:
    found = problem(model, x, labels, how.ball, how.bounds, batch_size=batch_size)
    if how.loss not in LOSSES.values():
        outputs = jax.ShapeDtypeStruct((len(found.x), found.outputs), found.dtype)
        losses = check_call("loss", how.loss, outputs, found.classes)
        if not hasattr(losses, "shape") or losses.shape != (len(found.x),):
            raise ValueError(f"loss: got one that gives {told(losses)}, expected one loss for each image")
    return found.solve(functools.partial(_pgd, how), key, batch_size, how.loss)


@functools.partial(jax.jit, static_argnums=0)
def _pgd(
    how: _Steps, model: Any, x: Array, classes: Array, keys: Array, done: Array, clearance: Array
) -> tuple[Array, Array]:
    def step(_: Array, fixed: tuple[Array, Array, Array], state: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, classes, clearance), (current, done) = fixed, state
        gradient, _, outputs = ascent(model, how.loss, current, classes)
        if how.stop_early:
            done = done | clear(outputs, classes, clearance)
        moved = how.ball.project(x, current + how.size * how.ball.steepest(gradient), how.bounds)
        return jnp.where(like(done, x), current, moved), done

    def from_one_start(restart: Array | int, done: Array) -> tuple[Array, Array]:
        start = x
        if how.random_start:
            random = how.ball.random(jax.vmap(lambda key: jax.random.fold_in(key, restart))(keys), x, how.bounds)
            start = jnp.where(like(done, x), x, random)
        fixed = (x, classes, clearance)
        return while_any_stands(step, lambda state: state[1], fixed, (start, done), how.steps, halve=how.stop_early)

    done = done & how.stop_early
    if how.restarts == 1:
        return from_one_start(0, done)

    def again(restart: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        kept, score, done = best
        found, _ = from_one_start(restart, done)
        outputs = fast_in_loops(model)(found)
        losses = how.loss(outputs, classes).astype(x.dtype)
        wrong = jnp.zeros_like(done)
        if how.stop_early:
            # The model is wrong about it, and then how wrong.
            wrong = clear(outputs, classes, clearance)
            losses = jnp.where(wrong, jnp.inf, losses)
        better = ~done & (losses > score)
        return jnp.where(like(better, x), found, kept), jnp.where(better, losses, score), done | wrong

    kept, _, done = lax.fori_loop(0, how.restarts, again, (x, jnp.full(len(x), -jnp.inf, x.dtype), done))
    return kept, done
