"""The kernels of near inputs, by the recursion of `covariances` where it has lost their angle.

A covariance in float32 no longer knows the angle between two inputs that are nearly parallel, as those of a table, a
line or a time axis are. Here what goes from layer to layer is the gap γ = 1 − cos θ of a pair, with the inputs' lengths
(the roots of their variances) and the difference of these, and nothing subtracts one large number from another:

- the gap of the inputs themselves is made of their difference;
- a bias turns an input of length n towards all others, by the angle φ with tan φ = b / (W n), so that
  1 − cos θ' = cos φ₁ cos φ₂ (1 − cos θ) + 1 − cos(φ₁ − φ₂);
- a mean over pixels p, of whose variance each input has the share ρ_p² there, gives
  1 − cos θ' = Σ ρ₁ρ₂ (1 − cos θ_p) + ½ Σ (ρ₁ − ρ₂)².

It takes several times as long. Of vectors with few components all pairs are computed so, of others those that are near,
where pixels meet only those at their own place in the other image (no pooling but `Flatten`); `double` has the others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ntkit.architectures import Activation, Conv, Dense
from ntkit.kernels.fused import double
from ntkit.kernels.fused.moments import MOMENTS, ROUNDING, inverse, root
from ntkit.kernels.fused.stages import Cells, Recursion, Stage

# Vectors of no more components than this are subtracted from each other, all pairs of them.
FEW = 16
# Of others those whose product gives a gap below this multiple of the dtype's eps: beyond it angles are right to 1e-5.
NEAR = 2**17
# Numbers of either input that are subtracted at once.
AT_ONCE = 2**15


class Pair(NamedTuple):
    """Pairs of inputs at each pixel, (…, height, width), of which the lengths may broadcast.

    **Fields:** `gap`: 1 − cos θ. `one`, `other`: lengths. `apart`: one − other. `tangent`: the tangent kernel so far.
    """

    gap: Array
    one: Array
    other: Array
    apart: Array
    tangent: Array


def supports(stages: tuple[Stage, ...]) -> bool:
    """Whether pixels meet only those at their own place."""
    return all(len(axis.displacements) == 1 for stage in stages for axis in stage.axes)


def kernel(recursion: Recursion, stages: tuple[Stage, ...], x1: Array, x2: Array) -> Array:
    """Give the kernel of pairs (…) of inputs (…, channels, height, width), which broadcast against each other."""
    pair = _subtracted(x1, x2)
    for stage in stages:
        for layer, fan_in in stage.layers:
            pair = _through(recursion, jax.tree.map(lambda std: jnp.asarray(std, x1.dtype), layer), fan_in, pair)
        pair = _pooled((stage.axes[0].cells, stage.axes[1].cells), pair)
    values = pair.tangent if recursion.tangent else _covariance(pair)
    return jnp.broadcast_to(values, pair.gap.shape)[..., 0, 0]


def inverse_lengths(images: Array) -> Array:
    """Give 1 / the length of each image, (n,)."""
    return inverse(root(jnp.sum(images**2, axis=(1, 2, 3))))


class Way(NamedTuple):
    """How near pairs are computed.

    **Fields:** `kernel`: as the one here, of one input (1, …) with several. `near`: below this multiple of the dtype's
    eps the gap that a product gives is one of near inputs. `at_once`: pairs.
    """

    kernel: Callable[..., Array]
    near: int
    at_once: int


def way(stages: tuple[Stage, ...], images: Array) -> Way | None:
    """Give how the near pairs of images (n, channels, height, width) are computed, `None` where they can't be."""
    if supports(stages):
        return Way(kernel, NEAR, max(8, AT_ONCE // images[0].size))
    return Way(double.kernel, double.NEAR, 1) if double.supports(stages, images.dtype) else None


def mended(
    way: Way,
    recursion: Recursion,
    stages: tuple[Stage, ...],
    values: Array,
    first: tuple[Array, Array],
    second: tuple[Array, Array],
    *,
    same: bool,
) -> Array:
    """Compute near pairs again, a few of one row after the other; where there are none it costs a look.

    **Arguments:** `values`: the kernel (n1, n2). `first`, `second`: inputs (n, channels, height, width) and their
    `inverse_lengths`. `same`: whether both are the same; pairs of an input with itself are left alone.

    **Returns:** (n1, n2), with the derivatives of `values`.
    """
    fixed = tuple(dataclasses.replace(stage, layers=lax.stop_gradient(stage.layers)) for stage in stages)
    exact = way._replace(kernel=functools.partial(way.kernel, recursion, fixed))
    return _with_derivative_of(values, _mended(exact, same, *lax.stop_gradient((values, first, second))))


@jax.custom_jvp
def _with_derivative_of(values: Array, better: Array) -> Array:
    return better


@_with_derivative_of.defjvp
def _with_derivative_of_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]


def _mended(
    way: Way,
    same: bool,
    values: Array,
    first: tuple[Array, Array],
    second: tuple[Array, Array],
) -> Array:
    (x1, inverse1), (x2, inverse2) = first, second
    (n1, n2), size = values.shape, x1[0].size
    flat1, flat2 = x1.reshape(n1, size), x2.reshape(n2, size)
    # Full float32 also on a GPU: TF32 ruins an angle.
    products = jnp.matmul(flat1, flat2.T, precision="highest")
    rows, columns = jnp.arange(n1), jnp.arange(n2)
    near = 1 - way.near * jnp.finfo(values.dtype).eps
    cosines = products * inverse2[None]
    if same:
        # Each pair once, and no input with itself.
        cosines = jnp.where(rows[:, None] >= columns[None], 0.0, cosines)
    # The nearest of each row: to count the near ones takes twice as long.
    nearest = jnp.max(cosines, axis=1) * inverse1
    at_once = min(n2, way.at_once)

    def left(row: Array) -> Array:
        return (nearest > near) & (rows >= row)

    def some(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        values, row, passed = state
        row = jnp.argmax(left(row))
        here = (products[row] * inverse2 * inverse1[row] > near) & ((columns > row) if same else True)
        count = jnp.cumsum(here)
        column = jnp.searchsorted(count, passed + 1 + jnp.arange(at_once))
        again = way.kernel(x1[row][None], x2[jnp.minimum(column, n2 - 1)]).astype(values.dtype)
        values = values.at[row, column].set(again, mode="drop")
        if same:
            values = values.at[column, row].set(again, mode="drop")
        more = passed + at_once < count[-1]
        return values, jnp.where(more, row, row + 1), jnp.where(more, passed + at_once, 0)

    def all_of_them(values: Array) -> Array:
        start = jnp.zeros((), rows.dtype)
        return lax.while_loop(lambda state: jnp.any(left(state[1])), some, (values, start, start))[0]

    # A loop of no turns would copy what it works on.
    return lax.cond(jnp.max(nearest) > near, all_of_them, lambda values: values, values)


def _subtracted(x1: Array, x2: Array) -> Pair:
    """Begin with inputs u and v.

    The sine of their angle is |u| times what of v − u is orthogonal to u; or, the same for both, to their middle.
    """
    means = functools.partial(_means, x1, x2)
    one, other = (root(jnp.mean(x**2, axis=-3)) for x in (x1, x2))
    longer, middle, apart = means(lambda a, b: ((b - a) * (a + b) / 2, ((a + b) / 2) ** 2, (b - a) ** 2))
    [across] = means(lambda a, b, along: (((b - a) - along * ((a + b) / 2)) ** 2,), longer * inverse(middle))
    product = middle - apart / 4
    inverses = inverse(one) * inverse(other)
    acute = product > 0
    # |u|²|v|² − (u·v)² = (|u||v| − u·v) (|u||v| + u·v)
    gap = middle / jnp.where(acute, one * other + product, 1.0) * (across * inverses)
    gap = jnp.where(acute, gap, 1 - product * inverses)
    # Of opposites it is 2 but for a rounding, of which the root would be an angle.
    gap = jnp.where(2 - gap <= ROUNDING * jnp.finfo(gap.dtype).eps, 2.0, gap)
    return Pair(gap, one, other, -2 * longer * inverse(one + other), jnp.zeros_like(gap))


def _means(x1: Array, x2: Array, f: Callable[..., tuple[Array, ...]], *known: Array) -> tuple[Array, ...]:
    """Average over channels what `f` gives of those of both inputs, and of what is `known` of pairs."""
    channels = x1.shape[-3]
    if channels > FEW:
        return tuple(jnp.mean(v, axis=-3) for v in f(x1, x2, *(a[..., None, :, :] for a in known)))

    # One after the other where there may be many pairs; for the derivative each is computed again.
    @jax.checkpoint
    def add(totals: tuple[Array, ...], both: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        return tuple(total + v for total, v in zip(totals, f(*both, *known), strict=True)), None

    both = (jnp.moveaxis(x1, -3, 0), jnp.moveaxis(x2, -3, 0))
    start = jax.tree.map(jnp.zeros_like, jax.eval_shape(f, both[0][0], both[1][0], *known))
    totals, _ = lax.scan(add, start, both, unroll=min(2, channels))
    return tuple(total / channels for total in totals)


def _through(recursion: Recursion, layer: Dense | Conv | Activation, fan_in: int, pair: Pair) -> Pair:
    """Take pairs through a layer."""
    if isinstance(layer, Activation):
        moments = MOMENTS[layer.name]
        squares = (pair.one**2, pair.other**2)
        gap, slope = moments.of_gaps(pair.gap, *squares)
        tangent = pair.tangent * slope
        if moments.gain is not None:
            one, other, apart = (moments.gain * length for length in (pair.one, pair.other, pair.apart))
            return Pair(gap, one, other, apart, tangent)
        one, other = (root(moments.diagonal(square)[0]) for square in squares)
        return Pair(gap, one, other, one - other, tangent)
    match layer:
        case Conv():
            pair = _mean(jax.tree.map(functools.partial(_windows, layer), pair))
        case Dense():
            pass
        case _:
            assert_never(layer)
    gap, apart, tangent = pair.gap, pair.apart, layer.W_std**2 * pair.tangent
    one, other = layer.W_std * pair.one, layer.W_std * pair.other
    if layer.b_std is None:
        after = Pair(gap, one, other, layer.W_std * apart, tangent)
    else:
        longer1, longer2 = (root(length**2 + layer.b_std**2) for length in (one, other))
        inverse1, inverse2 = inverse(longer1), inverse(longer2)
        share = one * inverse1 * (other * inverse2)
        sine = layer.W_std * layer.b_std * apart * (inverse1 * inverse2)
        gap = share * gap + sine**2 / (1 + share + layer.b_std * inverse1 * (layer.b_std * inverse2))
        apart = layer.W_std * apart * ((one + other) * inverse(longer1 + longer2))
        after = Pair(gap, longer1, longer2, apart, tangent)
    own = _covariance(after)
    if recursion.parameterization == "standard":
        # Sohl-Dickstein et al. 2020 (arXiv:2001.07301): a weight's own scale is 1, and so is a bias's.
        own = fan_in * _covariance(pair) + (0.0 if layer.b_std is None else 1.0)
    return after._replace(tangent=own + after.tangent)


def _covariance(pair: Pair) -> Array:
    return pair.one * pair.other * (1 - pair.gap)


def _mean(pair: Pair) -> Pair:
    """Average over pixels, the first axis."""
    one, other = (root(jnp.mean(length**2, axis=0)) for length in (pair.one, pair.other))
    apart = jnp.mean(pair.apart * (pair.one + pair.other), axis=0) * inverse(one + other)
    inverses = inverse(one) * inverse(other)
    differences = (pair.apart * one[None] - pair.one * apart[None]) * inverses[None]
    gap = jnp.mean(pair.one * pair.other * pair.gap, axis=0) * inverses + jnp.mean(differences**2, axis=0) / 2
    return Pair(gap, one, other, apart, jnp.mean(pair.tangent, axis=0))


def _windows(layer: Conv, plane: Array) -> Array:
    """Give what each position's window sees of a plane (…, height, width), along a new first axis."""
    above, left = ((size - 1) // 2 for size in layer.window)
    (rows, columns), (height, width) = layer.window, plane.shape[-2:]
    pads = [(0, 0)] * (plane.ndim - 2) + [(above, rows - 1 - above), (left, columns - 1 - left)]
    padded = jnp.pad(plane, pads, mode="wrap" if layer.padding == "CIRCULAR" else "constant")
    return jnp.stack([padded[..., y : y + height, x : x + width] for y in range(rows) for x in range(columns)])


def _pooled(cells: tuple[Cells, Cells], pair: Pair) -> Pair:
    """Average over what becomes one pixel of the next stage."""

    def members(plane: Array) -> Array:
        for axis, of in zip((-2, -1), cells, strict=True):
            positions = of.start + of.step * np.arange(of.count) + np.arange(of.width)[:, None]
            plane = jnp.stack([jnp.take(plane, each, axis=axis) for each in positions])
        return plane.reshape(-1, *plane.shape[2:])

    return _mean(jax.tree.map(members, pair))
