"""What an attack is: a value with one verb, and one method that a new attack writes."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_key, check_named, wrong
from ntkit.attacks.balls import Ball, check_ball, like
from ntkit.attacks.goals import Goal
from ntkit.attacks.losses import Loss, logits, margin
from ntkit.attacks.problem import BATCH_SIZE, Model, Problem, batches, outputs_of, problem
from ntkit.attacks.task import Task

# By how many roundings of its outputs a model must be wrong about an image for an attack to stop there: of the first
# attempt, and of others where the model, compiled by itself, then disagreed.
CLEARANCES = (1, 32, 1024)


@dataclasses.dataclass(frozen=True)
class Attack(abc.ABC):
    """A search for adversarial examples in a ball. A value: hashable, equal by its fields.

    A subclass is a frozen dataclass with options as its fields and one method,
    [`perturb`][ntkit.attacks.Attack.perturb]. Arguments, batches, compilation, what is kept of what was found, masks,
    radii, targets and the last bit of the ball's boundary are written here once.

    **Fields:** `ball`: [`Linf`][] or [`L2`][], with the bounds of the pixels.

    **Class attributes:** `name`: in tables and on the command line (default: that of the class in lower case).
    `needs_gradient`: whether the model must be differentiable.
    """

    ball: Ball
    name: ClassVar[str]
    needs_gradient: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()
        jax.tree_util.register_static(cls)

    def __post_init__(self) -> None:
        check_ball("ball", self.ball)

    @abc.abstractmethod
    def perturb(self, model: Model, task: Task) -> tuple[Array, Array]:
        """Attack a batch, within jit.

        **Arguments:** `model`: from images to outputs (n, outputs), in the dtype of the images. `task`: the images,
        with all that depends on the ball, the goal, the mask and the radii.

        **Returns:** images (n, …), and about which of them the model was fooled by a margin of the task's `clearance`
        (n,); `task.done` ones as they were.
        """

    def harm(self) -> Loss | None:
        """Give the loss that says which of two images is kept if the model is wrong about both, or neither.

        `None`: an image changes only for a wrong class.
        """
        return margin

    @property
    def needs_key(self) -> bool:
        """Whether it draws at random."""
        return True

    def __call__(
        self,
        model: Model,
        x: Float[ArrayLike, "n ..."],
        labels: Int[ArrayLike, " n"],
        *,
        key: Array | None = None,
        target: Int[ArrayLike, " n"] | int | None = None,
        mask: ArrayLike | None = None,
        radius: Float[ArrayLike, " n"] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Float[Array, "n ..."]:
        """Attack a model at images.

        Also inside `jit`, `grad` and `vmap`, where values are not checked.

        **Arguments:**

        - `model`: any callable from images to logits (n, classes), or to one output (n, 1), whose sign is the class.
          Differentiable in JAX if the attack needs gradients; else it may also be a function of NumPy arrays. A pytree,
          such as a `Predictor` or a `TrainedNetwork`, is handed to the compiled attack with its arrays; any other
          function or object is compiled again only if it changed. One of preprocessed images is one of pixels as
          [`of_pixels`][ntkit.data.of_pixels] makes it, one that draws at random as
          [`Randomized`][ntkit.attacks.Randomized].
        - `x`: images (n, height, width, channels) or (n, d), within the bounds; beyond them by rounding they are
          clipped.
        - `labels`: true classes (n,), integers from 0; −1 and +1 for a model with one output.
        - `key`: of what the attack draws. Every image has its own draws, which depend on its index alone.
        - `target`: the class that the model shall name, or one for each image; `None`: any other than the true one.
        - `mask`: booleans that broadcast to `x`: which values may change; `None`: all.
        - `radius`: each image's own radius (n,), in place of the ball's.
        - `batch_size`: images attacked at once.

        **Returns:** images as `x`, each inside its ball and the bounds, and none less harmful than it was: what fools
        the model still does, and where nothing does the loss is no smaller.

        **Raises:** `ValueError` that names the argument; `FloatingPointError` if outputs or gradients are not finite.
        """
        key = jax.random.key(0) if key is None and not self.needs_key else check_key("key", key)
        found = problem(model, x, labels, self.ball, batch_size=batch_size, target=target, mask=mask, radius=radius)
        return self.solve(found, key, batch_size)

    def solve(self, found: Problem, key: Array, batch_size: int) -> Array:
        """Attack images of which everything but what is the attack's own was checked."""
        self.check(found)
        return _solve(self, found, key, batch_size)

    def check(self, found: Problem) -> None:
        """Raise `ValueError` if the attack does not fit the images or the model."""
        if self.needs_gradient:
            found.check_differentiable()

    def check_pixels(self, images: np.ndarray) -> None:
        """Raise `ValueError` unless all values of a data set are within the bounds, before any of it is attacked."""
        self.ball.check_pixels("images", images)


def check_attack(name: str, attack: object) -> Attack:
    """Give an attack, or raise `ValueError` that names the argument."""
    if not isinstance(attack, Attack):
        raise wrong(name, attack, "an ntkit.attacks.Attack, such as PGD(Linf(8 / 255))")
    return attack


def check_attacks(name: str, attacks: object) -> None:
    """Raise `ValueError` unless `attacks` are attacks by their names, or none."""
    expected = "attacks such as ntkit.attacks.PGD(Linf(8 / 255)), by their names"
    if not all(isinstance(attack, Attack) for attack in check_named(name, attacks, expected).values()):
        raise wrong(name, attacks, expected)


def _solve(attack: Attack, found: Problem, key: Array, batch_size: int) -> Array:
    """Attack every image, batch by batch, and keep of what is found what is no less harmful.

    What is kept is judged by the model compiled by itself, for batches as large as those of the attack.
    """
    n = len(found.x)
    keys = _own_keys(n, key)
    if found.traced or n <= batch_size:
        adversarial, bad = _attack(attack, found, keys)
    else:
        parts = [
            [part[: n - start] for part in _attack(attack, found.rows(rows), keys[rows])]
            for start, rows in batches(n, batch_size)
        ]
        adversarial, bad = (jnp.concatenate(part) for part in zip(*parts, strict=True))
    if not found.traced and (count := int(np.sum(np.asarray(bad)))):
        raise FloatingPointError(
            f"model: its gradient is NaN or infinite at {count} of {n} images, expected finite values"
        )
    return adversarial


def _attack(attack: Attack, found: Problem, keys: Array) -> tuple[Array, Array]:
    """Attack a batch; also give where there was a NaN."""
    done, clearances = _begin(found.clean.astype(found.dtype), found.goal, found.rounding)
    tried = jnp.ones_like(done)
    best, bad = (found.x, found.clean), jnp.zeros_like(done)
    x = found.x.astype(found.dtype)
    for clearance in clearances:
        task = Task(attack.ball, x, found.goal, keys, done, clearance, found.radii, found.mask)
        candidates, stopped = _perturb(attack, found.wide, task)
        if found.given is not found.x or candidates.dtype != found.x.dtype:
            candidates = _settle(attack.ball, found.given, candidates, found.radii)
        new = (candidates, outputs_of(found.model, candidates))
        best, unsure, failed = _keep(attack.harm(), found.dtype, best, new, found.goal, tried, stopped)
        bad |= failed
        if found.traced or not np.asarray(unsure).any():
            break
        # The search stopped too early for these: it goes on, through where it has been, to a clearer case.
        tried, done = unsure, ~unsure
    return best[0], bad


@functools.partial(jax.jit, static_argnums=0)
def _perturb(attack: Attack, model: Any, task: Task) -> tuple[Array, Array]:
    return attack.perturb(model, task)


@functools.partial(jax.jit, static_argnums=0)
def _own_keys(n: int, key: Array) -> Array:
    """Give each image a key, which depends on its index alone."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))


@functools.partial(jax.jit, static_argnums=2)
def _begin(clean: Array, goal: Goal, rounding: float) -> tuple[Array, list[Array]]:
    """Give about which images a model is fooled as they are, and the clearances of each attempt, all (n,)."""
    scale = rounding * jnp.max(jnp.abs(logits(clean)), axis=1)
    return goal.reached(clean), [scale * times for times in CLEARANCES]


@functools.partial(jax.jit, static_argnums=0)
def _settle(ball: Ball, given: Array, candidates: Array, radii: Array | None) -> Array:
    return ball.settle(given, candidates, radii)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _keep(
    loss: Loss | None,
    dtype: Any,
    best: tuple[Array, Array],
    new: tuple[Array, Array],
    goal: Goal,
    tried: Array,
    stopped: Array,
) -> tuple[tuple[Array, Array], Array, Array]:
    """Of two pairs of images and outputs keep the more harmful ones; give also who only seemed to fool, and NaN."""
    bad = tried & ~jnp.all(jnp.isfinite(new[0]).reshape(len(tried), -1), axis=1)
    before, after = (outputs.astype(dtype) for _, outputs in (best, new))
    take = tried & (bad | ~goal.farther(loss, before, after))
    unsure = tried & stopped & ~goal.reached(after)
    images, outputs = (jnp.where(like(take, old), found, old) for found, old in zip(new, best, strict=True))
    return (images, outputs), unsure, bad
