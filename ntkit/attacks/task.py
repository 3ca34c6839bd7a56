"""What the compiled part of an attack is given: images, what a model should say of them, and how they may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkit._loops import fast_in_loops
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.attacks.balls import Ball, like
from ntkit.attacks.goals import Goal
from ntkit.attacks.losses import likeliest


@pytree_dataclass
class Task:
    """A batch of n images to attack. A pytree, whose rows are images.

    An attack asks it for everything that depends on the ball, on the images' own radii, on the mask and on the goal,
    and so serves all of these without a word on them.

    **Fields:**

    - `ball`: static. `radii` (n,): each image's own radius, or `None`: the ball's.
    - `x` (n, …): the images, within the bounds.
    - `goal`: the [`Goal`][ntkit.attacks.Goal], what a model should say of them.
    - `keys` (n,): a key for each image.
    - `done` (n,): images to leave as they are.
    - `clearance` (n,): the margin from which an image counts as done.
    - `mask` (n, …): which values may change, or `None`: all.
    """

    ball: Ball = static_field()
    x: Float[Array, "n ..."]
    goal: Goal
    keys: Array
    done: Bool[Array, " n"]
    clearance: Float[Array, " n"]
    radii: Float[Array, " n"] | None = None
    mask: Bool[Array, "n ..."] | None = None

    @property
    def radius(self) -> Any:
        """The radius as it broadcasts against images."""
        return self.ball.radius_of(self.radii, self.x)

    @property
    def radius_each(self) -> Any:
        """The radius as it broadcasts against one number for each image."""
        return self.ball.radius if self.radii is None else self.radii

    def own_keys(self, number: Array | int) -> Array:
        """Give each image another key, for the `number`-th draw."""
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(self.keys)

    def masked(self, perturbation: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Give a perturbation, or gradient, that is 0 where nothing may change."""
        return perturbation if self.mask is None else jnp.where(self.mask, perturbation, 0)

    def project(self, candidate: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Give the allowed image next to each candidate: in its ball and the bounds, and changed only in the mask."""
        if self.mask is not None:
            candidate = jnp.where(self.mask, candidate, self.x)
        return self.ball.project(self.x, candidate, self.radii)

    def random(self, keys: Array) -> Float[Array, "n ..."]:
        """Draw an allowed image for each, uniformly from its ball."""
        return self.ball.random(keys, self.x, self.radii, self.mask)

    def surface(self, keys: Array) -> Float[Array, "n ..."]:
        """Draw an allowed image for each, in a random direction on the surface of its ball."""
        return self.ball.surface(keys, self.x, self.radii, self.mask)

    def steepest(self, gradient: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Give the allowed step of norm 1 along which a function with this gradient grows most; 0 for none."""
        return self.ball.steepest(self.masked(gradient))

    def size(self, perturbation: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """Give the norm of each perturbation."""
        return self.ball.size(perturbation)

    def reached(self, outputs: Float[Array, "n outputs"]) -> Bool[Array, " n"]:
        """Whether a model with these outputs is fooled about each image, clearly enough to stop there."""
        return self.goal.reached(outputs) & (self.goal.margin(outputs) >= self.clearance)

    def aims(self, model: Any, most: int) -> Int[Array, "n classes"]:
        """Give the classes to aim at, `most` at most: the wrong ones, the likeliest first, or the goal's targets."""
        if self.goal.targets is not None:
            return self.goal.targets[:, None]
        return likeliest(model(self.x), self.goal.classes)[:, :most]

    def keep(self, done: Bool[Array, " n"], old: Array, new: Array) -> Array:
        """Give the `old` value for images that are done, and the `new` one for the others."""
        return jnp.where(like(done, old), old, new)


def ascent(
    model: Any, score: Callable[[Array], Array], x: Float[Array, "n ..."]
) -> tuple[Float[Array, "n ..."], Float[Array, " n"], Float[Array, "n outputs"]]:
    """Give the gradient of each image's score, a function of the outputs that gives (n,); the scores; the outputs."""

    def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
        outputs = model(x)
        scores = score(outputs)
        return jnp.sum(scores), (scores, outputs)

    gradient, (scores, outputs) = fast_in_loops(jax.grad(total, has_aux=True))(x)
    return gradient, scores, outputs
