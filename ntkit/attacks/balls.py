"""The balls in which adversarial examples are looked for: all that an attack knows of a norm.

A point that `project` gives is inside the ball and the bounds as the numbers themselves are, and not only up to
rounding: the difference of the two float32 images, taken in exact arithmetic, is no longer than the radius.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ntkit._checks import check_number, check_positive, wrong


@dataclasses.dataclass(frozen=True)
class Ball(abc.ABC):
    """The images no further than `radius` from one. A value: hashable, equal by norm and radius.

    Subclasses are [`Linf`][] and [`L2`][]. Each method takes a batch (n, …) and treats every image by itself, with a
    key of its own where it draws, so that what comes out does not depend on the batch that an image is in.

    **Fields:** `radius`: in the units of the pixels, above 0; for images in [0, 1] for example `8 / 255`.

    **Raises:** `ValueError` if the radius is not a finite number above 0.
    """

    radius: float
    norm: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", check_positive("radius", self.radius, unit="units of the pixels"))

    @abc.abstractmethod
    def size(self, perturbation: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """Give the norm of each perturbation (n,)."""

    @abc.abstractmethod
    def dual_size(self, gradient: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """Give the dual norm of each gradient (n,): how much a linear function changes by a step of norm 1."""

    @abc.abstractmethod
    def steepest(self, gradient: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Give the step of norm 1 along which a linear function with this gradient grows most; 0 for none."""

    @abc.abstractmethod
    def random(self, keys: Array, x: Float[Array, "n ..."], bounds: tuple[float, float]) -> Float[Array, "n ..."]:
        """Give a point of each image's ball, uniformly drawn, and then brought into the bounds."""

    @abc.abstractmethod
    def surface(self, keys: Array, x: Float[Array, "n ..."], bounds: tuple[float, float]) -> Float[Array, "n ..."]:
        """Give a point on each ball's surface in a random direction, and then brought into the bounds."""

    @abc.abstractmethod
    def project(
        self, x: Float[Array, "n ..."], candidate: Float[Array, "n ..."], bounds: tuple[float, float]
    ) -> Float[Array, "n ..."]:
        """Give the point of the ball around `x` next to `candidate`, then within the bounds, as is `x`."""


class Linf(Ball):
    """Each pixel and channel changes by at most `radius`."""

    norm: ClassVar[str] = "l∞"

    def size(self, perturbation: Array) -> Array:
        return jnp.max(jnp.abs(_flat(perturbation)), axis=1)

    def dual_size(self, gradient: Array) -> Array:
        return jnp.sum(jnp.abs(_flat(gradient)), axis=1)

    def steepest(self, gradient: Array) -> Array:
        return jnp.sign(gradient)

    def random(self, keys: Array, x: Array, bounds: tuple[float, float]) -> Array:
        return self.project(x, x + self.radius * _uniform(keys, x), bounds)

    def surface(self, keys: Array, x: Array, bounds: tuple[float, float]) -> Array:
        noise = _uniform(keys, x)
        return self.project(x, x + self.radius * noise / like(self.size(noise), x), bounds)

    def project(self, x: Array, candidate: Array, bounds: tuple[float, float]) -> Array:
        radius = _at_most(self.radius, x.dtype)
        candidate = jnp.clip(candidate, _toward(x, -radius), _toward(x, radius))
        return jnp.clip(candidate, *bounds)


class L2(Ball):
    """The Euclidean norm of an image's perturbation is at most `radius`."""

    norm: ClassVar[str] = "l2"

    def size(self, perturbation: Array) -> Array:
        return jnp.sqrt(_sum_of_squares(_flat(perturbation)))

    def dual_size(self, gradient: Array) -> Array:
        return self.size(gradient)

    def steepest(self, gradient: Array) -> Array:
        # Scaled first: squares of small gradients would be zero.
        largest = like(jnp.max(jnp.abs(_flat(gradient)), axis=1), gradient)
        scaled = gradient / jnp.where(largest > 0, largest, 1)
        norm = like(self.size(scaled), gradient)
        return scaled / jnp.where(norm > 0, norm, 1)

    def random(self, keys: Array, x: Array, bounds: tuple[float, float]) -> Array:
        length = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), x.dtype))(keys)
        length = self.radius * length ** (1 / math.prod(x.shape[1:]))
        return self.project(x, x + like(length, x) * self.steepest(_normal(keys, x)), bounds)

    def surface(self, keys: Array, x: Array, bounds: tuple[float, float]) -> Array:
        return self.project(x, x + self.radius * self.steepest(_normal(keys, x)), bounds)

    def project(self, x: Array, candidate: Array, bounds: tuple[float, float]) -> Array:
        # By how much the norm can come out too small: half of the rounding of each sum of two, a handful elsewhere.
        rounding = (math.log2(math.prod(x.shape[1:])) + 8) * jnp.finfo(x.dtype).eps
        radius = _at_most(self.radius, x.dtype) * (1 - rounding)
        change = candidate - x
        norm = like(self.size(change), x)
        scaled = change * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1), 1)
        return jnp.clip(_toward(x, scaled), *bounds)


def check_ball(ball: object, bounds: object) -> None:
    """Raise `ValueError` unless `ball` is one that fits into bounds that are (lowest, highest)."""
    if not isinstance(ball, Ball):
        raise wrong("ball", ball, "ntkit.attacks.Linf(radius) or L2(radius)")
    expected = "(lowest, highest) of the pixels, such as (0, 1)"
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise wrong("bounds", bounds, expected)
    try:
        low, high = (check_number("bounds", bound) for bound in bounds)
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise wrong("bounds", bounds, expected)
    if isinstance(ball, Linf) and ball.radius > bounds[1] - bounds[0]:
        raise ValueError(
            f"ball: got a radius of {ball.radius:g}, expected at most {bounds[1] - bounds[0]:g}, the range of the "
            f"pixels' bounds {tuple(bounds)}; is it in units of 255?"
        )


def like(values: Array, x: Array) -> Array:
    """Give one value for each image, (n,), the shape in which it broadcasts against images."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _uniform(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype, -1.0, 1.0))(keys)


def _normal(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def _flat(a: Array) -> Array:
    return a.reshape(len(a), -1)


def _at_most(radius: float, dtype: np.dtype) -> np.ndarray:
    """The largest number of a dtype that is no larger than a radius."""
    rounded = np.asarray(radius, dtype)
    return rounded if float(rounded) <= radius else np.nextafter(rounded, np.asarray(0, dtype))


def _toward(x: Array, change: Array | np.ndarray) -> Array:
    """Give x + change, rounded toward x."""
    total = x + change
    # What rounding left out of the sum, exactly (Knuth, The Art of Computer Programming 2, 4.2.2, theorem B).
    added = total - x
    rest = (x - (total - added)) + (change - added)
    beyond = jnp.where(change > 0, rest < 0, rest > 0) & (total != x)
    return jnp.where(beyond, jnp.nextafter(total, x), total)


def _sum_of_squares(a: Array) -> Array:
    """Sum (n, d) over d by halves, whose rounding grows with the logarithm of d only."""
    squares = a**2
    while (d := squares.shape[1]) > 1:
        half = d // 2
        rest = lax.slice_in_dim(squares, 2 * half, d, axis=1)
        squares = squares[:, :half] + squares[:, half : 2 * half]
        squares = jnp.concatenate([squares, rest], axis=1) if d % 2 else squares
    return squares[:, 0]
