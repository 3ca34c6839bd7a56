"""The balls in which adversarial examples are looked for: all that an attack knows of a norm.

A point that `project` or `settle` gives is inside the ball and the bounds as the numbers themselves are, and not only
up to rounding: the difference of the two images, taken in exact arithmetic, is no longer than the radius.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ntkit._checks import check_number, check_positive, traced, wrong

Images = TypeVar("Images", np.ndarray, Array)

# By how many units in the last place of the bounds images may be beyond them.
ROUNDINGS = 8
# Halvings of a perturbation's length, to float32's last bit.
SETTLING = 25


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

    @abc.abstractmethod
    def settle(
        self, x: Float[Array, "n ..."], candidate: Float[Array, "n ..."], bounds: tuple[float, float]
    ) -> Float[Array, "n ..."]:
        """Give a point next to `candidate`, which was projected, inside the ball and the bounds, of the dtype of `x`.

        The numbers of that dtype may be farther apart than those of the candidate's. `x` may be beyond the bounds by
        less than the radius, which `project` does not expect.
        """


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
        return jnp.clip(candidate, *within(bounds, x.dtype))

    def settle(self, x: Array, candidate: Array, bounds: tuple[float, float]) -> Array:
        exact = x.astype(candidate.dtype)
        radius = _at_most(self.radius, candidate.dtype)
        low, high = (_rounded(_toward(exact, change), x) for change in (-radius, radius))
        # Between two numbers of a dtype rounding stays between them.
        return jnp.clip(jnp.clip(candidate.astype(x.dtype), low, high), *within(bounds, x.dtype))


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
        radius = self._safe_radius(x)
        change = candidate - x
        norm = like(self.size(change), x)
        scaled = change * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1), 1)
        return jnp.clip(_toward(x, scaled), *within(bounds, x.dtype))

    def settle(self, x: Array, candidate: Array, bounds: tuple[float, float]) -> Array:
        exact, radius = x.astype(candidate.dtype), self._safe_radius(candidate)
        change, limits = candidate - exact, within(bounds, x.dtype)

        def point(share: Array) -> Array:
            return jnp.clip((exact + like(share, x) * change).astype(x.dtype), *limits)

        def halve(_: int, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            # What is measured is what was computed before, and not, with other roundings, what is computed again.
            low, high, tried, best = state
            middle = (low + high) / 2
            inside = self.size(tried.astype(exact.dtype) - exact) <= radius
            low, high = jnp.where(inside, middle, low), jnp.where(inside, high, middle)
            return low, high, point((low + high) / 2), jnp.where(like(inside, x), tried, best)

        # First the whole change is tried; without any there is the image itself, within the bounds.
        zero = jnp.zeros(len(x), exact.dtype)
        return lax.fori_loop(0, SETTLING, halve, (zero, zero + 2, point(zero + 1), jnp.clip(x, *limits)))[3]

    def _safe_radius(self, x: Array) -> Array:
        # By how much the norm can come out too small: half of the rounding of each sum of two, a handful elsewhere.
        rounding = (math.log2(math.prod(x.shape[1:])) + 8) * jnp.finfo(x.dtype).eps
        return _at_most(self.radius, x.dtype) * (1 - rounding)


def check_ball(ball: object, bounds: Any) -> tuple[float, float]:
    """Give bounds that are (lowest, highest) as floats; raise `ValueError` unless `ball` is one that fits into them."""
    if not isinstance(ball, Ball):
        raise wrong("ball", ball, "ntkit.attacks.Linf(radius) or L2(radius)")
    expected = "(lowest, highest) of the pixels, such as (0, 1)"
    several = isinstance(bounds, tuple | list) or (isinstance(bounds, np.ndarray | jax.Array) and bounds.ndim == 1)
    if not several or len(bounds) != 2:
        raise wrong("bounds", bounds, expected)
    try:
        low, high = (check_number("bounds", bound) for bound in bounds)
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise wrong("bounds", bounds, expected)
    if isinstance(ball, Linf) and ball.radius > high - low:
        raise ValueError(
            f"ball: got a radius of {ball.radius:g}, expected at most {high - low:g}, the range of the pixels' bounds "
            f"({low:g}, {high:g}); is it in units of 255?"
        )
    return low, high


def into_bounds(
    name: str, x: Images, bounds: tuple[float, float], expected: str = "pixels within the bounds", hint: str = ""
) -> Images:
    """Give images within the bounds: as they are, or clipped if they are beyond by rounding only.

    **Raises:** `ValueError` if they are beyond by more, unless they are traced.
    """
    if not traced(x):
        # Not by JAX: here an array on a CPU is not copied, and nothing is compiled.
        values = np.asarray(x)
        least, most = float(values.min()), float(values.max())
        excess = max(bounds[0] - least, most - bounds[1])
        if excess <= 0:
            return x
        # What was standardized and back, for example, is beyond by a few units in the last place.
        if not excess <= ROUNDINGS * float(jnp.finfo(values.dtype).eps) * max(map(abs, bounds)):
            raise ValueError(
                f"{name}: got values from {least!r} to {most!r}, beyond by {excess:.2g}, expected {expected} "
                f"({bounds[0]:g}, {bounds[1]:g}){hint}"
            )
    return x.clip(*within(bounds, x.dtype))


def within(bounds: tuple[float, float], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Give the least and the largest number of a dtype within bounds."""
    low, high = bounds
    return -_at_most(-low, dtype), _at_most(high, dtype)


def like(values: Array, x: Array) -> Array:
    """Give one value for each image, (n,), the shape in which it broadcasts against images."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _uniform(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype, -1.0, 1.0))(keys)


def _normal(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def _flat(a: Array) -> Array:
    return a.reshape(len(a), -1)


def _at_most(value: float, dtype: np.dtype) -> np.ndarray:
    """The largest number of a dtype that is no larger than a value."""
    rounded = np.asarray(value, dtype)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.asarray(-np.inf, dtype))


def _toward(x: Array, change: Array | np.ndarray) -> Array:
    """Give x + change, rounded toward x."""
    total = x + change
    # What rounding left out of the sum, exactly (Knuth, The Art of Computer Programming 2, 4.2.2, theorem B).
    added = total - x
    rest = (x - (total - added)) + (change - added)
    beyond = jnp.where(change > 0, rest < 0, rest > 0) & (total != x)
    return jnp.where(beyond, jnp.nextafter(total, x), total)


def _rounded(value: Array, x: Array) -> Array:
    """Give values in the dtype of x, which may be coarser, rounded toward x."""
    # The barrier keeps a compiler from leaving out that they are rounded.
    nearest = lax.optimization_barrier(value.astype(x.dtype))
    back, exact = nearest.astype(value.dtype), x.astype(value.dtype)
    beyond = jnp.where(value > exact, back > value, back < value)
    return jnp.where(beyond, jnp.nextafter(nearest, x), nearest)


def _sum_of_squares(a: Array) -> Array:
    """Sum (n, d) over d by halves, whose rounding grows with the logarithm of d only."""
    squares = a**2
    while (d := squares.shape[1]) > 1:
        half = d // 2
        rest = lax.slice_in_dim(squares, 2 * half, d, axis=1)
        squares = squares[:, :half] + squares[:, half : 2 * half]
        squares = jnp.concatenate([squares, rest], axis=1) if d % 2 else squares
    return squares[:, 0]
