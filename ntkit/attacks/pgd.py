"""Steps of one size along the gradient: FGSM, which takes one, and PGD."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ntkit._checks import check_call, check_flag, check_integer, check_option, check_positive, told
from ntkit._loops import fast_in_loops
from ntkit.attacks.attack import Attack
from ntkit.attacks.losses import LOSSES, Loss
from ntkit.attacks.problem import Model, Problem
from ntkit.attacks.shrinking import shrinking_loop
from ntkit.attacks.task import Task, ascent


@dataclasses.dataclass(frozen=True)
class _Ascent(Attack):
    """What climbs a loss by its gradient."""

    loss: str | Loss = dataclasses.field(default="cross_entropy", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check = check_option("loss", self.loss, LOSSES, "a function of outputs and classes")
        if not isinstance(self.loss, str):
            object.__setattr__(self, "loss", check)

    def harm(self) -> Loss:
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    def check(self, found: Problem) -> None:
        super().check(found)
        if isinstance(self.loss, str):
            return
        outputs = jax.ShapeDtypeStruct((len(found.x), found.outputs), found.dtype)
        losses = check_call("loss", self.loss, outputs, found.classes)
        if not hasattr(losses, "shape") or losses.shape != (len(found.x),):
            raise ValueError(f"loss: got one that gives {told(losses)}, expected one loss for each image")


@dataclasses.dataclass(frozen=True)
class FGSM(_Ascent):
    """One step to the ball's surface, along the gradient: the fast gradient sign method, and its like for L2.

    Goodfellow et al. 2015 (arXiv:1412.6572), section 4. It draws nothing and needs no key.

    **Fields:** `ball`, `loss`: as of [`PGD`][ntkit.attacks.PGD].
    """

    @property
    def needs_key(self) -> bool:
        return False

    def perturb(self, model: Model, task: Task) -> tuple[Array, Array]:
        gradient, _, _ = ascent(model, functools.partial(task.goal.loss, self.harm()), task.x)
        return task.project(task.x + task.radius * task.steepest(gradient)), jnp.zeros_like(task.done)


@dataclasses.dataclass(frozen=True)
class PGD(_Ascent):
    """Steps of one size along the steepest ascent of a loss, each brought back into the ball: PGD.

    Madry et al. 2018 (arXiv:1706.06083), section 2.1.

        attack = ntkit.attacks.PGD(ntkit.attacks.Linf(8 / 255), steps=20)
        adversarial = attack(model, x, labels, key=jax.random.key(0))

    **Fields:**

    - `ball`: [`Linf`][ntkit.attacks.Linf] or [`L2`][ntkit.attacks.L2].
    - `steps`: gradient steps of each start.
    - `step_size`: in the units of the radius (default: 2.5 · radius / steps).
    - `restarts`: starts; of several the worst for the model is kept.
    - `random_start`: begin at a random point of the ball (else at the image; then there is nothing to restart, and no
      key is needed).
    - `stop_early`: leave an image alone once the model is wrong about it. Without it all steps are taken, for a large
      loss rather than a wrong class: for adversarial training.
    - `loss`: `"cross_entropy"`, `"mse"`, `"margin"`, or a function of outputs (n, outputs) and classes (n,) that gives
      (n,) (of labels −1 and +1 the classes are 0 and 1). The cross-entropy's gradient is taken so that the scale of
      the logits does not matter. With a target the loss of that class is lowered.

    **Raises:** `ValueError` that names the field.
    """

    steps: int = dataclasses.field(default=20, kw_only=True)
    step_size: float | None = dataclasses.field(default=None, kw_only=True)
    restarts: int = dataclasses.field(default=1, kw_only=True)
    random_start: bool = dataclasses.field(default=True, kw_only=True)
    stop_early: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps", check_integer("steps", self.steps))
        object.__setattr__(self, "restarts", check_integer("restarts", self.restarts))
        if self.step_size is not None:
            object.__setattr__(self, "step_size", check_positive("step_size", self.step_size))
        check_flag("random_start", self.random_start)
        check_flag("stop_early", self.stop_early)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts: got {self.restarts} with random_start=False, expected 1: all would be the same"
            )

    @property
    def needs_key(self) -> bool:
        return self.random_start

    def perturb(self, model: Model, task: Task) -> tuple[Array, Array]:
        loss = self.harm()

        def step(_: Array, task: Task, state: tuple[Array, Array]) -> tuple[Array, Array]:
            current, done = state
            gradient, _, outputs = ascent(model, functools.partial(task.goal.loss, loss), current)
            if self.stop_early:
                done = done | task.reached(outputs)
            size = 2.5 * task.radius / self.steps if self.step_size is None else self.step_size
            moved = task.project(current + size * task.steepest(gradient))
            return task.keep(done, current, moved), done

        def from_one_start(restart: Array | int, done: Array) -> tuple[Array, Array]:
            start = task.x
            if self.random_start:
                start = task.keep(done, start, task.random(task.own_keys(restart)))
            return shrinking_loop(step, lambda state: state[1], task, (start, done), self.steps, halve=self.stop_early)

        done = task.done & self.stop_early
        if self.restarts == 1:
            return from_one_start(0, done)

        def again(restart: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            kept, score, done = best
            found, _ = from_one_start(restart, done)
            outputs = fast_in_loops(model)(found)
            losses = task.goal.loss(loss, outputs).astype(found.dtype)
            wrong = jnp.zeros_like(done)
            if self.stop_early:
                # The model is wrong about it, and then how wrong.
                wrong = task.reached(outputs)
                losses = jnp.where(wrong, jnp.inf, losses)
            better = ~done & (losses > score)
            return task.keep(~better, kept, found), jnp.where(better, losses, score), done | wrong

        nothing = jnp.full(len(task.x), -jnp.inf, task.x.dtype)
        kept, _, done = lax.fori_loop(0, self.restarts, again, (task.x, nothing, done))
        return kept, done
