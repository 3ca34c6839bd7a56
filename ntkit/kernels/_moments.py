"""Gaussian moments of a nonlinearity: E[σ(u)σ(v)] and E[σ'(u)σ'(v)] for (u, v) of given covariance.

They are what turns one layer's kernels into the next one's (Cho & Saul 2009; Williams 1997 for erf). Each comes with a
derivative rule of its own, so that nothing is differentiated through an arccos or a clip, and the derivatives are
finite everywhere: where σ' jumps and both inputs are equal, E[σ'σ'] has a cusp, and its derivative there is taken as 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def rectifier(negative: float, positive: float, k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """Give the moments of σ(x) = negative · min(x, 0) + positive · max(x, 0).

    **Arguments:** `negative`, `positive`: the slopes, for ReLU 0 and 1. `k`: covariances. `v1`, `v2`: variances, which
    broadcast against `k`.

    **Returns:** E[σ(u)σ(v)] and E[σ'(u)σ'(v)], of the shape of `k`.
    """
    first, second, _, _, _ = _rectifier(negative, positive, k, v1, v2)
    return first, second


@rectifier.defjvp
def _rectifier_jvp(
    negative: float, positive: float, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    k, v1, v2 = primals
    d_k, d_v1, d_v2 = tangents
    first, second, cosine, sine, scale = _rectifier(negative, positive, k, v1, v2)
    jump = (positive - negative) ** 2 / (2 * math.pi)
    relative = d_v1 / (2 * _positive(v1)) + d_v2 / (2 * _positive(v2))
    d_first = second * d_k + jump * scale * sine * relative
    # d arccos(c) = −dc / sin θ; below the rounding of c the angle is 0 and the cusp is flat.
    flat = sine**2 <= 4 * jnp.finfo(k.dtype).eps
    d_cosine = d_k / scale - cosine * relative
    d_second = jnp.where(flat, 0.0, jump / jnp.where(flat, 1.0, sine)) * d_cosine
    return (first, second), (d_first, d_second)


def _rectifier(negative: float, positive: float, k: Array, v1: Array, v2: Array) -> tuple[Array, ...]:
    jump = (positive - negative) ** 2 / (2 * math.pi)
    scale = jnp.sqrt(_positive(v1)) * jnp.sqrt(_positive(v2))
    cosine = jnp.clip(k / scale, -1.0, 1.0)
    sine = jnp.sqrt((1 - cosine) * (1 + cosine))
    second = (negative**2 + positive**2) / 2 - jump * arccos(cosine)
    first = jump * scale * sine + k * second
    return first, second, cosine, sine, scale


def erf(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """Give the moments of σ(x) = erf(x) (Williams 1997, eq. 11)."""
    scale = (1 + 2 * v1) * (1 + 2 * v2)
    sine = 2 * k / jnp.sqrt(scale)
    return 2 / math.pi * jnp.arcsin(sine), 4 / (math.pi * jnp.sqrt(scale - 4 * k**2))


class Moments(NamedTuple):
    """The moments of one nonlinearity.

    **Fields:** `pair`: from covariances and the variances of both inputs, E[σ(u)σ(v)] and E[σ'(u)σ'(v)]. `diagonal`:
    the same for an input with itself, from its variance alone, and exact.
    """

    pair: Callable[[Array, Array, Array], tuple[Array, Array]]
    diagonal: Callable[[Array], tuple[Array, Array]]


def _rectifier_moments(negative: float, positive: float) -> Moments:
    half = (negative**2 + positive**2) / 2
    return Moments(functools.partial(rectifier, negative, positive), lambda v: (half * v, jnp.full_like(v, half)))


# By the names of `ntkit.activations`.
MOMENTS = {
    "relu": _rectifier_moments(0.0, 1.0),
    "leaky_relu": _rectifier_moments(0.01, 1.0),
    "abs": _rectifier_moments(-1.0, 1.0),
    "identity": Moments(lambda k, v1, v2: (k, jnp.ones_like(k)), lambda v: (v, jnp.ones_like(v))),
    "erf": Moments(erf, lambda v: erf(v, v, v)),
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


def arccos(c: Array) -> Array:
    """Give arccos(c) for c in [−1, 1]: in float32 by a polynomial, which is several times faster."""
    if c.dtype != jnp.float32:
        return jnp.arccos(c)
    magnitude = jnp.abs(c)
    value = jnp.full_like(c, _ARCCOS[-1])
    for coefficient in _ARCCOS[-2::-1]:
        value = value * magnitude + coefficient
    value = value * jnp.sqrt(1 - magnitude)
    return jnp.where(c < 0, math.pi - value, value)


def _positive(v: Array) -> Array:
    """Variances, with a tiny one for an input that is zero: its covariances are zero too."""
    return jnp.maximum(v, jnp.finfo(v.dtype).tiny ** 0.5)
