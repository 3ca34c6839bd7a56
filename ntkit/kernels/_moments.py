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

Keep: TypeAlias = "Callable[[Array], Array]"


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def rectifier(negative: float, positive: float, keep: Keep, k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """Give the moments of σ(x) = negative · min(x, 0) + positive · max(x, 0).

    **Arguments:** `negative`, `positive`: the slopes, for ReLU 0 and 1. `keep`: marks what XLA is to compute once and
    store, rather than again in each place that reads it. `k`: covariances. `v1`, `v2`: variances, which broadcast
    against `k`.

    **Returns:** E[σ(u)σ(v)] and E[σ'(u)σ'(v)], of the shape of `k`.
    """
    return _Angle(keep, k, v1, v2).moments(negative, positive)


@rectifier.defjvp
def _rectifier_jvp(
    negative: float, positive: float, keep: Keep, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    k, v1, v2 = primals
    d_k, d_v1, d_v2 = tangents
    angle = _Angle(keep, k, v1, v2)
    first, second = angle.moments(negative, positive)
    jump = (positive - negative) ** 2 / (2 * math.pi)
    relative = keep(d_v1 / (2 * _positive(v1)) + d_v2 / (2 * _positive(v2)))
    # d arccos(c) = −dc / sin θ; below the rounding of c the angle is 0 and the cusp is flat.
    flat = angle.opposite**2 <= 4 * jnp.finfo(k.dtype).eps * angle.scale**2
    per_k = keep(jnp.where(flat, 0.0, jump / jnp.where(flat, 1.0, angle.opposite)))
    d_first = second * d_k + jump * angle.opposite * relative
    d_second = per_k * (d_k - k * relative)
    return (first, second), (d_first, d_second)


class _Angle:
    """The angle θ between two inputs, from their covariance and variances.

    **Fields:** `scale`: the product of their norms. `root`: sqrt(1 − |cos θ|), computed without cancellation.
    `opposite`: `scale` times sin θ.
    """

    def __init__(self, keep: Keep, k: Array, v1: Array, v2: Array) -> None:
        norm1, norm2 = keep(jnp.sqrt(_positive(v1))), keep(jnp.sqrt(_positive(v2)))
        self.keep, self.k, self.scale = keep, k, norm1 * norm2
        gap = jnp.maximum(self.scale - jnp.abs(k), 0.0) * (keep(1 / norm1) * keep(1 / norm2))
        # Once, since it is rounding noise between equal inputs: sin θ and θ must not be of different noise.
        self.root = keep(jnp.sqrt(gap))
        self.opposite = self.scale * self.root * jnp.sqrt(2 - self.root**2)

    def moments(self, negative: float, positive: float) -> tuple[Array, Array]:
        jump = (positive - negative) ** 2 / (2 * math.pi)
        acute = _acute_angle(self.root)
        angle = jnp.where(self.k < 0, math.pi - acute, acute)
        second = self.keep((negative**2 + positive**2) / 2 - jump * angle)
        return self.keep(jump * self.opposite + self.k * second), second


def erf(keep: Keep, k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """Give the moments of σ(x) = erf(x) (Williams 1997, eq. 11)."""
    scale = (1 + 2 * v1) * (1 + 2 * v2)
    sine = 2 * k / jnp.sqrt(scale)
    return keep(2 / math.pi * jnp.arcsin(sine)), keep(4 / (math.pi * jnp.sqrt(scale - 4 * k**2)))


def _identity(keep: Keep, k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    return k, jnp.ones_like(k)


def _unkept(value: Array) -> Array:
    return value


class Moments(NamedTuple):
    """The moments of one nonlinearity.

    **Fields:** `pair`: from covariances and the variances of both inputs, E[σ(u)σ(v)] and E[σ'(u)σ'(v)], as in
    [`rectifier`][]. `diagonal`: the same for an input with itself, from its variance alone, and exact.
    """

    pair: Callable[[Keep, Array, Array, Array], tuple[Array, Array]]
    diagonal: Callable[[Array], tuple[Array, Array]]


def _rectifier_moments(negative: float, positive: float) -> Moments:
    half = (negative**2 + positive**2) / 2
    return Moments(functools.partial(rectifier, negative, positive), lambda v: (half * v, jnp.full_like(v, half)))


# By the names of `ntkit.activations`.
MOMENTS = {
    "relu": _rectifier_moments(0.0, 1.0),
    "leaky_relu": _rectifier_moments(0.01, 1.0),
    "abs": _rectifier_moments(-1.0, 1.0),
    "identity": Moments(_identity, lambda v: (v, jnp.ones_like(v))),
    "erf": Moments(erf, lambda v: erf(_unkept, v, v, v)),
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


def _positive(v: Array) -> Array:
    """Variances, with a tiny one for an input that is zero: its covariances are zero too."""
    return jnp.maximum(v, jnp.finfo(v.dtype).tiny ** 0.5)
