"""FAB: the closest image on the other side of a decision boundary."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_key, wrong
from ntkit._loops import fast_in_loops
from ntkit.attacks._standing import while_any_stands
from ntkit.attacks.balls import L2, Ball, Linf, like
from ntkit.attacks.losses import clear, likeliest, logits
from ntkit.attacks.problem import BATCH_SIZE, Bounds, Model, check_options, problem

# Croce & Hein 2020 (arXiv:1907.02044), section 3: overshoot η, bias α toward the image, and backward step β.
OVERSHOOT = 1.05
MOST_BIAS = 0.1
BACKWARD = 0.9
# Halvings of an interval that holds the projection's multiplier: to float32's last bit.
HALVINGS = 30


def fab(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    ball: Ball,
    *,
    key: Array,
    bounds: Bounds = (0, 1),
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    batch_size: int = BATCH_SIZE,
) -> Float[Array, "n ..."]:
    """Look for the closest image that a model takes for one class after the other: targeted FAB.

    Croce & Hein 2020 (arXiv:1907.02044), algorithm 1, with the boundary between the true class and one other, as in
    AutoAttack (arXiv:2003.01690). Unlike the others it does not begin with a radius; an image is left alone once the
    model is wrong about one inside the ball.

    **Arguments:**

    - `model`, `x`, `labels`, `ball`, `bounds`, `batch_size`: as in [`ntkit.attacks.pgd`][].
    - `key`: of the starts after the first, which is the image itself.
    - `steps`: of each start.
    - `restarts`: starts, of each target.
    - `targets`: how many classes to aim at, the likeliest wrong one first; no more than there are.

    **Returns:** images as `x`: what fools the model inside the ball and the bounds, and where nothing was found the
    image itself.

    **Raises:** as [`ntkit.attacks.pgd`][].
    """
    steps, restarts, targets = check_options(steps=steps, restarts=restarts, targets=targets)
    check_key("key", key)
    if not isinstance(ball, Linf | L2):
        raise wrong("ball", ball, "ntkit.attacks.Linf(radius) or L2(radius)")
    found = problem(model, x, labels, ball, bounds, batch_size=batch_size)
    aims = min(targets, max(found.outputs, 2) - 1)
    how = _How(ball, found.bounds, steps, restarts, aims)
    return found.solve(functools.partial(_fab, how), key, batch_size, None)


def to_hyperplane(
    ball: Ball, x: Float[Array, "n ..."], normal: Array, offset: Float[Array, " n"], bounds: Bounds
) -> Float[Array, "n ..."]:
    """Give the change of the least norm that takes images within the bounds to `normal · z + offset = 0`.

    Where the plane does not meet the box of the bounds, to the corner of the box next to it. The minimizers of either
    norm are clip(x + λ s) for one λ ≥ 0, with s the signs of the normal, or itself, toward the plane (the conditions of
    Karush, Kuhn and Tucker); λ is found by halving, since what is left to the plane falls with it.

    **Arguments:** `normal`: (n, …), of each image's plane. `offset`: (n,).

    **Returns:** the changes (n, …).
    """
    axes, tiny = tuple(range(1, x.ndim)), jnp.finfo(x.dtype).tiny
    largest = jnp.max(jnp.abs(normal), axis=axes, keepdims=True)
    # A plane stays what it is if both are scaled.
    scale = jnp.where(largest > 0, largest, 1)
    normal, offset = normal / scale, offset / scale.reshape(-1)

    value = jnp.sum(normal * x, axis=axes) + offset
    direction = (jnp.sign(normal) if isinstance(ball, Linf) else normal) * -jnp.sign(like(value, x))
    # Without bounds this far, which they only make longer; and no further than until the last value is stopped by them.
    least = jnp.abs(value) / jnp.sum(jnp.abs(normal * direction), axis=axes, where=direction != 0, initial=tiny)
    room = jnp.where(direction > 0, bounds[1] - x, x - bounds[0])
    most = jnp.max(jnp.where(direction == 0, 0, room / jnp.maximum(jnp.abs(direction), tiny)), axis=axes)
    ratio = jnp.log(jnp.maximum(most / jnp.maximum(least, tiny), 1))

    def moved(exponent: Array) -> Array:
        return jnp.clip(x + like(least * jnp.exp(exponent * ratio), x) * direction, *bounds)

    def halve(_: int, between: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = between
        middle = (low + high) / 2
        across = (jnp.sum(normal * moved(middle), axis=axes) + offset) * jnp.sign(value) <= 0
        return jnp.where(across, low, middle), jnp.where(across, middle, high)

    zero = jnp.zeros_like(value)
    # By its logarithm: values of the normal, and with them their ways to the bounds, differ by many orders.
    _, high = lax.fori_loop(0, HALVINGS, halve, (zero, zero + 1))
    return moved(high) - x


class _How(NamedTuple):
    ball: Ball
    bounds: Bounds
    steps: int
    restarts: int
    targets: int


@functools.partial(jax.jit, static_argnums=0)
def _fab(
    how: _How, model: Any, x: Array, classes: Array, keys: Array, done: Array, clearance: Array
) -> tuple[Array, Array]:
    order = likeliest(model(x), classes)

    def again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, best, least = carry
        target, restart = start // how.restarts, start % how.restarts
        own = jax.vmap(lambda key: jax.random.fold_in(key, start))(keys)
        # In a ball half as large as what was found (section 3.3), and the image itself at first.
        reach = jnp.minimum(least, how.ball.radius) / 2 / how.ball.radius
        somewhere = x + like(reach, x) * (how.ball.random(own, x, how.bounds) - x)
        begin = jnp.where(restart == 0, x, jnp.clip(somewhere, *how.bounds))
        best, least = _search(how, model, x, classes, clearance, order[:, target], begin, best, least)
        return start + 1, best, least

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        start, _, least = carry
        return (start < how.targets * how.restarts) & ~jnp.all(least <= how.ball.radius)

    least = jnp.where(done, 0.0, jnp.inf).astype(x.dtype)
    _, best, least = lax.while_loop(unfinished, again, (jnp.zeros((), jnp.int32), x, least))
    # What is closer than the radius by a rounded norm is brought into the ball to the last bit.
    return how.ball.project(x, best, how.bounds), least <= how.ball.radius


def _search(
    how: _How,
    model: Any,
    x: Array,
    classes: Array,
    clearance: Array,
    targets: Array,
    start: Array,
    best: Array,
    least: Array,
) -> tuple[Array, Array]:
    """Go from one start toward the boundary with `targets`; give the closest image found and its distance."""
    ball, bounds = how.ball, how.bounds

    def step(
        _: Array, fixed: tuple[Array, Array, Array, Array], state: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        (x, classes, clearance, targets), (z, best, least) = fixed, state
        done = reached(state)

        def gap(z: Array) -> tuple[Array, Array]:
            values = logits(model(z))
            rows = jnp.arange(len(z))
            difference = values[rows, targets] - values[rows, classes]
            return jnp.sum(difference), difference

        normal, value = fast_in_loops(jax.grad(gap, has_aux=True))(z)
        offset = value - jnp.sum(normal * z, axis=tuple(range(1, z.ndim)))
        from_here = to_hyperplane(ball, z, normal, offset, bounds)
        from_image = to_hyperplane(ball, x, normal, offset, bounds)
        here, there = ball.size(from_here), ball.size(from_image)
        # Eq. 9 and 10.
        bias = like(jnp.minimum(here / jnp.maximum(here + there, jnp.finfo(x.dtype).tiny), MOST_BIAS), x)
        moved = (1 - bias) * (z + OVERSHOOT * from_here) + bias * (x + OVERSHOOT * from_image)
        moved = jnp.clip(moved, *bounds)
        wrong = clear(fast_in_loops(model)(moved), classes, clearance) & ~done
        distance = ball.size(moved - x)
        closer = wrong & (distance < least)
        # Eq. 11: back toward the image.
        back = x + BACKWARD * (moved - x)
        z = jnp.where(like(done, x), z, jnp.where(like(wrong, x), back, moved))
        return z, jnp.where(like(closer, x), moved, best), jnp.where(closer, distance, least)

    def reached(state: tuple[Array, Array, Array]) -> Array:
        return state[2] <= ball.radius

    fixed = (x, classes, clearance, targets)
    _, best, least = while_any_stands(step, reached, fixed, (start, best, least), how.steps)
    return best, least
