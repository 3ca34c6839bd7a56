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
    """The images no further than `radius` from one, and within bounds. A value: hashable, equal by its fields.

    Subclasses are [`Linf`][] and [`L2`][]. Each method takes a batch (n, …) and treats every image by itself, with a
    key of its own where it draws, so that what comes out does not depend on the batch that an image is in. `radii` (n,)
    gives each image a radius of its own.

    **Fields:** `radius`: in the units of the pixels, above 0; for images in [0, 1] for example `8 / 255`. `bounds`:
    (lowest, highest) of the pixels.

    **Raises:** `ValueError` that names the field.
    """

    radius: float
    bounds: tuple[float, float] = (0.0, 1.0)
    norm: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", check_positive("radius", self.radius, unit="units of the pixels"))
        object.__setattr__(self, "bounds", _check_bounds(self.bounds))
        self.check_radius("radius", self.radius)

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
    def random(
        self, keys: Array, x: Float[Array, "n ..."], radii: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "n ..."]:
        """Give a point of each image's ball, uniformly drawn, and then brought into the bounds.

        `mask` (n, …): which values may be drawn; the others stay.
        """

    @abc.abstractmethod
    def surface(
        self, keys: Array, x: Float[Array, "n ..."], radii: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "n ..."]:
        """Give a point on each ball's surface in a random direction, and then brought into the bounds."""

    @abc.abstractmethod
    def project(
        self, x: Float[Array, "n ..."], candidate: Float[Array, "n ..."], radii: Array | None = None
    ) -> Float[Array, "n ..."]:
        """Give the point of the ball around `x` next to `candidate`, then within the bounds, as is `x`."""

    @abc.abstractmethod
    def settle(
        self, x: Float[Array, "n ..."], candidate: Float[Array, "n ..."], radii: Array | None = None
    ) -> Float[Array, "n ..."]:
        """Give a point next to `candidate`, which was projected, inside the ball and the bounds, of the dtype of `x`.

        The numbers of that dtype may be farther apart than those of the candidate's. `x` may be beyond the bounds by
        less than the radius, which `project` does not expect.
        """

    def check_radius(self, name: str, radius: float) -> None:
        """Raise `ValueError` if a radius is so large that its unit must be another."""
        low, high = self.bounds
        if radius > self.largest:
            raise ValueError(
                f"{name}: got {radius:g}, expected at most {self.largest:g}, the range of the pixels' bounds "
                f"({low:g}, {high:g}); is it in units of 255?"
            )

    @property
    def largest(self) -> float:
        """The largest radius that bounds anything."""
        return math.inf

    def radius_of(self, radii: Array | None, x: Array) -> Any:
        """Give the radius: the number, or each image's own, as it broadcasts against images."""
        return self.radius if radii is None else like(jnp.asarray(radii), x)

    def check_pixels(self, name: str, x: Images) -> Images:
        """Give images within the bounds: as they are, or clipped if they are beyond by rounding only.

        **Raises:** `ValueError` that calls them `name` if they are beyond by more, unless they are traced.
        """
        if not traced(x):
            # Not by JAX: here an array on a CPU is not copied, and nothing is compiled.
            values = np.asarray(x)
            least, most = float(values.min()), float(values.max())
            excess = max(self.bounds[0] - least, most - self.bounds[1])
            if excess <= 0:
                return x
            # What was standardized and back, for example, is beyond by a few units in the last place.
            if not excess <= ROUNDINGS * float(jnp.finfo(values.dtype).eps) * max(map(abs, self.bounds)):
                raise ValueError(
                    f"{name}: got values from {least!r} to {most!r}, beyond by {excess:.2g}, expected pixels within "
                    f"the bounds ({self.bounds[0]:g}, {self.bounds[1]:g}) of the ball; a model of preprocessed images "
                    "is one of pixels by ntkit.data.of_pixels"
                )
        return x.clip(*within(self.bounds, x.dtype))


class Linf(Ball):
    """Each pixel and channel changes by at most `radius`."""

    norm: ClassVar[str] = "l∞"

    def size(self, perturbation: Array) -> Array:
        return jnp.max(jnp.abs(_flat(perturbation)), axis=1)

    def dual_size(self, gradient: Array) -> Array:
        return jnp.sum(jnp.abs(_flat(gradient)), axis=1)

    def steepest(self, gradient: Array) -> Array:
        return jnp.sign(gradient)

    @property
    def largest(self) -> float:
        low, high = self.bounds
        return high - low

    def random(self, keys: Array, x: Array, radii: Array | None = None, mask: Array | None = None) -> Array:
        return self.project(x, x + self.radius_of(radii, x) * _masked(_uniform(keys, x), mask), radii)

    def surface(self, keys: Array, x: Array, radii: Array | None = None, mask: Array | None = None) -> Array:
        noise = _masked(_uniform(keys, x), mask)
        size = like(self.size(noise), x)
        size = size if mask is None else jnp.where(size > 0, size, 1)
        return self.project(x, x + self.radius_of(radii, x) * noise / size, radii)

    def project(self, x: Array, candidate: Array, radii: Array | None = None) -> Array:
        radius = _at_most(self.radius_of(radii, x), x.dtype)
        candidate = jnp.clip(candidate, _toward(x, -radius), _toward(x, radius))
        return jnp.clip(candidate, *within(self.bounds, x.dtype))

    def settle(self, x: Array, candidate: Array, radii: Array | None = None) -> Array:
        exact = x.astype(candidate.dtype)
        radius = _at_most(self.radius_of(radii, x), candidate.dtype)
        low, high = (_rounded(_toward(exact, change), x) for change in (-radius, radius))
        # Between two numbers of a dtype rounding stays between them.
        return jnp.clip(jnp.clip(candidate.astype(x.dtype), low, high), *within(self.bounds, x.dtype))


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

    def random(self, keys: Array, x: Array, radii: Array | None = None, mask: Array | None = None) -> Array:
        length = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), x.dtype))(keys)
        dimensions = math.prod(x.shape[1:]) if mask is None else jnp.maximum(jnp.sum(_flat(mask), axis=1), 1)
        length = (self.radius if radii is None else radii) * length ** (1 / dimensions)
        return self.project(x, x + like(length, x) * self.steepest(_masked(_normal(keys, x), mask)), radii)

    def surface(self, keys: Array, x: Array, radii: Array | None = None, mask: Array | None = None) -> Array:
        direction = self.steepest(_masked(_normal(keys, x), mask))
        return self.project(x, x + self.radius_of(radii, x) * direction, radii)

    def project(self, x: Array, candidate: Array, radii: Array | None = None) -> Array:
        radius = self._safe_radius(x, radii)
        change = candidate - x
        norm = like(self.size(change), x)
        scaled = change * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1), 1)
        return jnp.clip(_toward(x, scaled), *within(self.bounds, x.dtype))

    def settle(self, x: Array, candidate: Array, radii: Array | None = None) -> Array:
        exact, radius = x.astype(candidate.dtype), jnp.ravel(self._safe_radius(candidate, radii))
        change, limits = candidate - exact, within(self.bounds, x.dtype)

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

    def _safe_radius(self, x: Array, radii: Array | None) -> Array:
        # By how much the norm can come out too small: half of the rounding of each sum of two, a handful elsewhere.
        rounding = (math.log2(math.prod(x.shape[1:])) + 8) * jnp.finfo(x.dtype).eps
        return _at_most(self.radius_of(radii, x), x.dtype) * (1 - rounding)


def check_ball(name: str, ball: object) -> Ball:
    """Give a ball, or raise `ValueError` that names the argument."""
    if not isinstance(ball, Ball):
        raise wrong(name, ball, "ntkit.attacks.Linf(radius) or L2(radius)")
    return ball


def check_norm(name: str, ball: Ball) -> None:
    """Raise `ValueError` unless a ball is one of the two norms that an attack knows."""
    if not isinstance(ball, Linf | L2):
        raise wrong(name, ball, "ntkit.attacks.Linf(radius) or L2(radius)")


def _check_bounds(bounds: Any) -> tuple[float, float]:
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
    return low, high


def within(bounds: tuple[float, float], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Give the least and the largest number of a dtype within bounds."""
    low, high = bounds
    return -_at_most(-low, dtype), _at_most(high, dtype)


def like(values: Any, x: Array) -> Any:
    """Give one value for each image, (n,), the shape in which it broadcasts against images; a number as it is."""
    return values if isinstance(values, int | float) else values.reshape(-1, *(1,) * (x.ndim - 1))


def _uniform(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype, -1.0, 1.0))(keys)


def _normal(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def _masked(values: Array, mask: Array | None) -> Array:
    return values if mask is None else jnp.where(mask, values, 0)


def _flat(a: Array) -> Array:
    return a.reshape(len(a), -1)


def _at_most(value: Any, dtype: np.dtype) -> Any:
    """The largest number of a dtype that is no larger than a value, or than each of several."""
    if isinstance(value, jax.Array):
        near = value.astype(dtype)
        return jnp.where(near.astype(value.dtype) > value, jnp.nextafter(near, jnp.zeros_like(near)), near)
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
