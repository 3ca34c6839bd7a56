"""Gaussian moments of a nonlinearity: E[σ(u)σ(v)] and E[σ'(u)σ'(v)] for (u, v) of given covariance.

They are what turns one layer's kernels into the next one's (Cho & Saul 2009; Williams 1997 for erf). Each comes with a
derivative rule of its own, so that nothing is differentiated through an arccos or a clip, and the derivatives are
finite everywhere: where σ' jumps and both inputs are equal, E[σ'σ'] has a cusp, and its derivative there is taken as 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Two inputs are equal where 1 − |cos θ| is no more than this many times the dtype's eps, about what rounding leaves of
# it after a few sums over windows and channels. In float32 that is an angle of 0.001.
ROUNDING = 4

Keep: TypeAlias = "Callable[[Array], Array]"
Maps: TypeAlias = "tuple[Array, ...]"


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def rectifier(negative: float, positive: float, keep: Keep, k: Array, one: Maps, other: Maps) -> tuple[Array, Array]:
    """Give the moments of σ(x) = negative · min(x, 0) + positive · max(x, 0).

    **Arguments:** `negative`, `positive`: the slopes, for ReLU 0 and 1. `keep`: marks what XLA is to compute once and
    store, rather than again in each place that reads it. `k`: covariances. `one`, `other`: what `norms` gives of the
    variances, which broadcast against `k`.

    **Returns:** E[σ(u)σ(v)] and E[σ'(u)σ'(v)], of the shape of `k`.
    """
    return _Angle(keep, k, one, other).moments(negative, positive)


@rectifier.defjvp
def _rectifier_jvp(
    negative: float, positive: float, keep: Keep, primals: tuple[Array, Maps, Maps], tangents: tuple[Array, Maps, Maps]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    k, one, other = primals
    # A norm's inverse is there for speed; all derivatives go through the norm.
    d_k, (d_norm1, _), (d_norm2, _) = tangents
    angle = _Angle(keep, k, one, other)
    first, second = angle.moments(negative, positive)
    jump = (positive - negative) ** 2 / (2 * math.pi)
    relative = keep(d_norm1 * one[1] + d_norm2 * other[1])
    # d arccos(c) = −dc / sin θ; at the cusp the angle is 0 and so is its derivative.
    flat = angle.root == 0
    per_k = keep(jnp.where(flat, 0.0, jump / jnp.where(flat, 1.0, angle.opposite)))
    d_first = second * d_k + jump * angle.opposite * relative
    d_second = per_k * (d_k - k * relative)
    return (first, second), (d_first, d_second)


def norms(v: Array) -> Maps:
    """Give the norms and their inverses; a tiny norm for an input that is zero, whose covariances are zero too."""
    norm = jnp.sqrt(jnp.maximum(v, jnp.finfo(v.dtype).tiny ** 0.5))
    return norm, 1 / norm


class _Angle:
    """The angle θ between two inputs, from their covariance and norms.

    **Fields:** `scale`: the product of the norms. `root`: sqrt(1 − |cos θ|), computed without cancellation.
    `opposite`: `scale` times sin θ.
    """

    def __init__(self, keep: Keep, k: Array, one: Maps, other: Maps) -> None:
        self.keep, self.k, self.scale = keep, k, one[0] * other[0]
        gap = (self.scale - jnp.abs(k)) * (one[1] * other[1])
        # So small a gap is rounding, which XLA spreads over k and the norms as it likes: the inputs are equal.
        gap = jnp.where(gap <= ROUNDING * jnp.finfo(k.dtype).eps, 0.0, gap)
        # Once, since sin θ and θ must not be of different rounding.
        self.root = keep(jnp.sqrt(gap))
        self.opposite = self.scale * self.root * jnp.sqrt(2 - self.root**2)

    def moments(self, negative: float, positive: float) -> tuple[Array, Array]:
        jump = (positive - negative) ** 2 / (2 * math.pi)
        acute = _acute_angle(self.root)
        angle = jnp.where(self.k < 0, math.pi - acute, acute)
        second = self.keep((negative**2 + positive**2) / 2 - jump * angle)
        return self.keep(jump * self.opposite + self.k * second), second


def erf(keep: Keep, k: Array, one: Maps, other: Maps) -> tuple[Array, Array]:
    """Give the moments of σ(x) = erf(x) (Williams 1997, eq. 11), with 1 / sqrt(1 + 2v) of each variance."""
    scale = one[0] * other[0]
    sine = 2 * k * scale
    # The square of the cosine is least for inputs of one direction; so small a gap to that is rounding, as above.
    least = one[0] ** 2 + other[0] ** 2 - scale**2
    square = (1 - sine) * (1 + sine)
    cosine = jnp.sqrt(jnp.where(square - least <= ROUNDING * jnp.finfo(k.dtype).eps, least, square))
    return keep(2 / math.pi * _arcsin(sine, cosine)), keep(4 / math.pi * scale / cosine)


@jax.custom_jvp
def _arcsin(sine: Array, cosine: Array) -> Array:
    """Give arcsin of a sine that rounding may take beyond 1; the cosine is for its derivative."""
    return jnp.arcsin(jnp.clip(sine, -1, 1))


@_arcsin.defjvp
def _arcsin_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _arcsin(*primals), tangents[0] / primals[1]


class Moments(NamedTuple):
    """The moments of one nonlinearity.

    **Fields:** `maps`: what of each input's variances the pairs need, computed once for each input. `pair`: from
    covariances and the maps of both inputs, E[σ(u)σ(v)] and E[σ'(u)σ'(v)], as in [`rectifier`][]. `diagonal`: the same
    for an input with itself, from its variance alone, and exact.
    """

    maps: Callable[[Array], Maps]
    pair: Callable[[Keep, Array, Maps, Maps], tuple[Array, Array]]
    diagonal: Callable[[Array], tuple[Array, Array]]


def _rectifier_moments(negative: float, positive: float) -> Moments:
    half = (negative**2 + positive**2) / 2
    pair = functools.partial(rectifier, negative, positive)
    return Moments(norms, pair, lambda v: (half * v, jnp.full_like(v, half)))


def _erf_diagonal(v: Array) -> tuple[Array, Array]:
    return 2 / math.pi * jnp.arcsin(2 * v / (1 + 2 * v)), 4 / (math.pi * jnp.sqrt(1 + 4 * v))


# By the names of `ntkit.activations`.
MOMENTS = {
    "relu": _rectifier_moments(0.0, 1.0),
    "leaky_relu": _rectifier_moments(0.01, 1.0),
    "abs": _rectifier_moments(-1.0, 1.0),
    "identity": Moments(
        lambda v: (), lambda keep, k, one, other: (k, jnp.ones_like(k)), lambda v: (v, jnp.ones_like(v))
    ),
    "erf": Moments(lambda v: (1 / jnp.sqrt(1 + 2 * v),), erf, _erf_diagonal),
}

# arccos(c) / sqrt(1 − c) on [0, 1], a minimax fit with an error of 2.2e-8, a fifth of float32's rounding.
_ARCCOS = (
    1.5707963049951363,
    -0.2145988038204087,
    0.0889790496661096,
    -0.05017471381113691,
    0.030893049117686252,
    -0.01708980473560971,
    0.006671288788008629,
    -0.001262829626135826,
)


def _acute_angle(root: Array) -> Array:
    """Give arccos(1 − root²) for a root in [0, 1]: in float32 by a polynomial, which is several times faster."""
    if root.dtype != jnp.float32:
        # arccos itself would lose half of a small gap's digits: 1 − cos θ = 2 sin²(θ/2).
        return 2 * jnp.arcsin(root / 2**0.5)
    cosine = 1 - root**2
    value = jnp.full_like(cosine, _ARCCOS[-1])
    for coefficient in _ARCCOS[-2::-1]:
        value = value * cosine + coefficient
    return value * root
