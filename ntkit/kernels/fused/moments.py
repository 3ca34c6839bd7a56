"""Gaussian moments of a nonlinearity: E[σ(u)σ(v)] and E[σ'(u)σ'(v)] for (u, v) of given covariance.

They are what turns one layer's kernels into the next one's (Cho & Saul 2009; Williams 1997 for erf). Each comes with a
derivative rule of its own, so that nothing is differentiated through an arccos or a clip, and derivatives of every
order are finite everywhere: where σ' jumps and both inputs are equal, E[σ'σ'] has a cusp, and its derivative there is
taken as 0.

There are two forms of each: of covariances, which is the faster one, and of the gap 1 − cos θ between two inputs at the
angle θ, which of near inputs a covariance in float32 has lost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
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
    """Give the norms and their inverses."""
    norm = root(v)
    return norm, inverse(norm)


def inverse(length: Array) -> Array:
    """Give 1 / length, and 0 for 0."""
    positive = length > 0
    return jnp.where(positive, 1 / jnp.where(positive, length, 1.0), 0.0)


@jax.custom_jvp
def root(square: Array) -> Array:
    """Give a square root of which every derivative at 0 is 0."""
    return jnp.sqrt(square)


@root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value = root(*primals)
    return value, inverse(value) / 2 * tangents[0]


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
        self.root = keep(root(gap))
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def rectifier_of_gaps(negative: float, positive: float, gap: Array) -> tuple[Array, Array]:
    """Give the gap of the outputs, and E[σ'(u)σ'(v)], of σ as in [`rectifier`][].

    Of unit vectors, E[σσ] = half · cos θ + jump · (sin θ − θ cos θ) and E[σ'σ'] = half − jump · θ with
    half = (negative² + positive²) / 2 and jump = (positive − negative)² / 2π.
    """
    half, jump = _half(negative, positive), _jump(negative, positive)
    obtuse = gap > 1
    acute = jnp.where(obtuse, 2 - gap, gap)
    side = root(acute)
    angle = _acute_angle(side)
    # sin θ − θ cos θ of π − θ is that of θ, and π cos θ more.
    share = jump / half
    flat = jnp.where(obtuse, 2 - share * math.pi - (1 - share * math.pi) * acute, gap)
    slope = half - jump * jnp.where(obtuse, math.pi - angle, angle)
    return flat - share * _acute_excess(side), slope


@rectifier_of_gaps.defjvp
def _rectifier_of_gaps_jvp(
    negative: float, positive: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    [gap], [d_gap] = primals, tangents
    found, slope = rectifier_of_gaps(negative, positive, gap)
    per_gap = -_jump(negative, positive) * inverse(root(gap * (2 - gap)))
    return (found, slope), (slope / _half(negative, positive) * d_gap, per_gap * d_gap)


def _half(negative: float, positive: float) -> float:
    return (negative**2 + positive**2) / 2


def _jump(negative: float, positive: float) -> float:
    return (positive - negative) ** 2 / (2 * math.pi)


def _erf_of_gaps(gap: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """Give the gap of the outputs, and E[σ'(u)σ'(v)], of σ(x) = erf(x) with inputs of these variances."""
    (lean1,), (lean2,) = (_erf_maps(v) for v in (v1, v2))
    share1, share2 = (root(2 * v) * lean for v, lean in ((v1, lean1), (v2, lean2)))
    share = share1 * share2
    # 1 − sin and 1 + sin of the angle whose sine is 2k / sqrt((1 + 2v)(1 + 2v')): sums of what is positive.
    rest = ((share1 - share2) ** 2 + lean1**2 + lean2**2) / 2
    cosine = jnp.sqrt((share * gap + rest) * (share * (2 - gap) + rest))
    inverses = [inverse(root(_erf_angle(v))) for v in (v1, v2)]
    found = 1 - jnp.arctan2(share * (1 - gap), cosine) * (inverses[0] * inverses[1])
    # The function is smooth: nothing is lost if outputs as near as this are equal.
    found = jnp.where(found <= ROUNDING * jnp.finfo(gap.dtype).eps, 0.0, found)
    return found, 4 / math.pi * lean1 * lean2 / cosine


class Moments(NamedTuple):
    """The moments of one nonlinearity.

    **Fields:** `maps`: what of each input's variances the pairs need, computed once for each input. `pair`: from
    covariances and the maps of both inputs, E[σ(u)σ(v)] and E[σ'(u)σ'(v)], as in [`rectifier`][]. `diagonal`: the same
    for an input with itself, from its variance alone, and exact. `of_gaps`: from the gap 1 − cos θ between inputs and
    their variances, the gap between the outputs, and E[σ'(u)σ'(v)]. `gain`: the ratio of the output's deviation to the
    input's, `None` if it is not always the same.
    """

    maps: Callable[[Array], Maps]
    pair: Callable[[Keep, Array, Maps, Maps], tuple[Array, Array]]
    diagonal: Callable[[Array], tuple[Array, Array]]
    of_gaps: Callable[[Array, Array, Array], tuple[Array, Array]]
    gain: float | None


def _rectifier_moments(negative: float, positive: float) -> Moments:
    half = _half(negative, positive)
    return Moments(
        norms,
        functools.partial(rectifier, negative, positive),
        lambda v: (half * v, jnp.full_like(v, half)),
        lambda gap, v1, v2: rectifier_of_gaps(negative, positive, gap),
        math.sqrt(half),
    )


def _erf_maps(v: Array) -> Maps:
    return (1 / jnp.sqrt(1 + 2 * v),)


def _erf_diagonal(v: Array) -> tuple[Array, Array]:
    return 2 / math.pi * _erf_angle(v), 4 / (math.pi * jnp.sqrt(1 + 4 * v))


def _erf_angle(v: Array) -> Array:
    """Give arcsin(2v / (1 + 2v)), without loss at either end."""
    return jnp.arctan2(2 * v, jnp.sqrt(1 + 4 * v))


# By the names of `ntkit.activations`.
MOMENTS = {
    "relu": _rectifier_moments(0.0, 1.0),
    "leaky_relu": _rectifier_moments(0.01, 1.0),
    "abs": _rectifier_moments(-1.0, 1.0),
    "identity": Moments(
        lambda v: (),
        lambda keep, k, one, other: (k, jnp.ones_like(k)),
        lambda v: (v, jnp.ones_like(v)),
        lambda gap, v1, v2: (gap, jnp.ones_like(gap)),
        1.0,
    ),
    "erf": Moments(_erf_maps, erf, _erf_diagonal, _erf_of_gaps, None),
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
# (sin θ − θ cos θ) / (1 − cos θ)^(3/2), likewise, with a relative error of 1.5e-8.
_EXCESS = (
    0.9999999854700485,
    -0.07079479510631483,
    0.018778924540958176,
    -0.007566169084371438,
    0.0034000978107413702,
    -0.0012498084798143625,
    0.00024082012978555986,
)


def _acute_angle(root: Array) -> Array:
    """Give arccos(1 − root²) for a root in [0, 1]: in float32 by a polynomial, which is several times faster."""
    if root.dtype != jnp.float32:
        # arccos itself would lose half of a small gap's digits: 1 − cos θ = 2 sin²(θ/2).
        return 2 * jnp.arcsin(root / 2**0.5)
    return _polynomial(_ARCCOS, 1 - root**2) * root


def _acute_excess(root: Array) -> Array:
    """Give sin θ − θ cos θ of θ = arccos(1 − root²), for a root in [0, 1]."""
    if root.dtype == jnp.float32:
        return _polynomial(_EXCESS, 1 - root**2) * root**3
    angle = _acute_angle(root)
    # Of a small angle the difference would leave nothing; θ³ / 3 − θ⁵ / 30 + … does.
    terms = [(-1) ** (k + 1) * 2 * k / math.factorial(2 * k + 1) for k in range(1, 9)]
    small = _polynomial(terms, angle**2) * angle**3
    return jnp.where(angle < 0.5, small, root * jnp.sqrt(2 - root**2) - angle * (1 - root**2))


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value
