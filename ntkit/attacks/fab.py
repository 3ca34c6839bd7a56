"""FAB: the closest image on the other side of a decision boundary."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ntkit._checks import check_integer
from ntkit._loops import fast_in_loops
from ntkit.attacks.attack import Attack
from ntkit.attacks.balls import Ball, Linf, check_norm, like
from ntkit.attacks.losses import Loss, logits
from ntkit.attacks.problem import Model
from ntkit.attacks.shrinking import shrinking_loop
from ntkit.attacks.task import Task

# Croce & Hein 2020 (arXiv:1907.02044), section 3: overshoot η, bias α toward the image, and backward step β.
OVERSHOOT = 1.05
MOST_BIAS = 0.1
BACKWARD = 0.9
# Halvings of an interval that holds the projection's multiplier: to float32's last bit.
HALVINGS = 30


# The point of each image, the closest one that fools the model, its distance, and whether that is inside of the ball.
_State: TypeAlias = tuple[Array, Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class FAB(Attack):
    """The closest image that a model takes for one class after the other: targeted FAB.

    Croce & Hein 2020 (arXiv:1907.02044), algorithm 1, with the boundary between the true class and one other, as in
    AutoAttack (arXiv:2003.01690). Unlike the others it does not begin with a radius; an image is left alone once the
    model is wrong about one inside the ball. Where nothing was found an image stays as it is.

    **Fields:**

    - `ball`: [`Linf`][ntkit.attacks.Linf] or [`L2`][ntkit.attacks.L2].
    - `steps`: of each start.
    - `restarts`: starts, of each target; the first is the image itself.
    - `targets`: how many classes to aim at, the likeliest wrong one first; no more than there are. Called with a
      `target`, the attack aims at that alone.

    **Raises:** `ValueError` that names the field.
    """

    steps: int = dataclasses.field(default=100, kw_only=True)
    restarts: int = dataclasses.field(default=1, kw_only=True)
    targets: int = dataclasses.field(default=9, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norm("ball", self.ball)
        for name in ("steps", "restarts", "targets"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))

    def harm(self) -> Loss | None:
        return None

    def perturb(self, model: Model, task: Task) -> tuple[Array, Array]:
        x, order = task.x, task.aims(model, self.targets)

        def again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            start, best, least = carry
            target, restart = start // self.restarts, start % self.restarts
            # In a ball half as large as what was found (section 3.3), and the image itself at first.
            reach = jnp.minimum(least, task.radius_each) / 2 / task.radius_each
            somewhere = x + like(reach, x) * (task.random(task.own_keys(start)) - x)
            begin = jnp.where(restart == 0, x, jnp.clip(somewhere, *task.ball.bounds))
            best, least = self._search(model, task, order[:, target], begin, best, least)
            return start + 1, best, least

        def unfinished(carry: tuple[Array, Array, Array]) -> Array:
            start, _, least = carry
            return (start < order.shape[1] * self.restarts) & ~jnp.all(least <= task.radius_each)

        least = jnp.where(task.done, 0.0, jnp.inf).astype(x.dtype)
        _, best, least = lax.while_loop(unfinished, again, (jnp.zeros((), jnp.int32), x, least))
        # What is closer than the radius by a rounded norm is brought into the ball to the last bit.
        return task.project(best), least <= task.radius_each

    def _search(
        self, model: Model, task: Task, aims: Array, start: Array, best: Array, least: Array
    ) -> tuple[Array, Array]:
        """Go from one start toward the boundary with `aims`; give the closest image found and its distance."""

        def step(_: Array, fixed: tuple[Task, Array], state: _State) -> _State:
            (task, aims), (z, best, least, done) = fixed, state
            x, ball = task.x, task.ball

            def gap(z: Array) -> tuple[Array, Array]:
                values = logits(model(z))
                rows = jnp.arange(len(z))
                difference = values[rows, aims] - values[rows, task.goal.rivals(values)]
                return jnp.sum(difference), difference

            normal, value = fast_in_loops(jax.grad(gap, has_aux=True))(z)
            normal = task.masked(normal)
            offset = value - jnp.sum(normal * z, axis=tuple(range(1, z.ndim)))
            from_here = to_hyperplane(ball, z, normal, offset)
            from_image = to_hyperplane(ball, x, normal, offset)
            here, there = ball.size(from_here), ball.size(from_image)
            # Eq. 9 and 10.
            bias = like(jnp.minimum(here / jnp.maximum(here + there, jnp.finfo(x.dtype).tiny), MOST_BIAS), x)
            moved = (1 - bias) * (z + OVERSHOOT * from_here) + bias * (x + OVERSHOOT * from_image)
            moved = jnp.clip(moved, *ball.bounds)
            wrong = task.reached(fast_in_loops(model)(moved)) & ~done
            distance = ball.size(moved - x)
            closer = wrong & (distance < least)
            # Eq. 11: back toward the image.
            back = x + BACKWARD * (moved - x)
            z = task.keep(done, z, jnp.where(like(wrong, x), back, moved))
            least = jnp.where(closer, distance, least)
            return z, task.keep(~closer, best, moved), least, least <= task.radius_each

        state = (start, best, least, least <= task.radius_each)
        _, best, least, _ = shrinking_loop(step, lambda state: state[3], (task, aims), state, self.steps)
        return best, least


def to_hyperplane(
    ball: Ball, x: Float[Array, "n ..."], normal: Array, offset: Float[Array, " n"]
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
    room = jnp.where(direction > 0, ball.bounds[1] - x, x - ball.bounds[0])
    most = jnp.max(jnp.where(direction == 0, 0, room / jnp.maximum(jnp.abs(direction), tiny)), axis=axes)
    ratio = jnp.log(jnp.maximum(most / jnp.maximum(least, tiny), 1))

    def moved(exponent: Array) -> Array:
        return jnp.clip(x + like(least * jnp.exp(exponent * ratio), x) * direction, *ball.bounds)

    def halve(_: int, between: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = between
        middle = (low + high) / 2
        across = (jnp.sum(normal * moved(middle), axis=axes) + offset) * jnp.sign(value) <= 0
        return jnp.where(across, low, middle), jnp.where(across, middle, high)

    zero = jnp.zeros_like(value)
    # By its logarithm: values of the normal, and with them their ways to the bounds, differ by many orders.
    _, high = lax.fori_loop(0, HALVINGS, halve, (zero, zero + 1))
    return moved(high) - x
