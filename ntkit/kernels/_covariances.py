"""The covariances of pairs of images, taken through the stages of a network.

The recursion is that of Arora et al. 2019 (arXiv:1904.11955, section 4): K for the covariance of the network's values
at two pixels (NNGP) and T for its tangent kernel. It runs over one displacement at a time (see `_stages`), for all
pairs of a block of images and all positions at once, so that what it works on stays in the caches. Between two stages
lie the pooled covariances, at the displacements that the next one needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ntkit.architectures import Activation, Conv, Dense, Parameterization
from ntkit.kernels._moments import MOMENTS, Keep
from ntkit.kernels._stages import Axis, Cells, Layers, Stage

# Images of no more channels than this are multiplied one channel after the other: a matrix product of so few terms is
# slower.
FEW_CHANNELS = 8

# Vertical and horizontal.
Displacement: TypeAlias = "tuple[Array | int, Array | int]"
Carry = TypeVar("Carry")


class Batch(NamedTuple):
    """One side of the pairs.

    **Fields:** `images`: (n, 1, channels, height, width) or (1, n, channels, height, width): what makes the pairs is
    that one side broadcasts against the other. `variances`: at the input of each activation, (n, 1, height, width) or
    (1, n, height, width).
    """

    images: Array
    variances: tuple[Array, ...]


class Covariances(NamedTuple):
    """K and T, where T is None if it is zero or not asked for.

    Between stages both are (horizontal displacements, vertical displacements, n1, n2, height, width).
    """

    nngp: Array
    ntk: Array | None


class Recursion(NamedTuple):
    """What is the same for all layers."""

    parameterization: Parameterization
    tangent: bool


def kernel(recursion: Recursion, stages: tuple[Stage, ...], first: Batch, second: Batch, *, same: bool) -> Array:
    """Give the kernel of every pair, the tangent kernel or the other one.

    **Arguments:** `stages`: all of the network's. `first`, `second`: images and their `variances`. `same`: whether
    every pair is of an image with itself.

    **Returns:** (n1, n2); (n, 1) for the pairs of images with themselves.
    """
    values, passed = None, 0
    for stage in stages:
        until = passed + sum(isinstance(layer, Activation) for layer, _ in stage.layers)
        one, other = (side._replace(variances=side.variances[passed:until]) for side in (first, second))
        values, passed = _through(recursion, stage, one, other, values, same), until
    assert values is not None
    result = values.ntk if recursion.tangent else values.nngp
    return jnp.zeros_like(values.nngp)[0, 0, :, :, 0, 0] if result is None else result[0, 0, :, :, 0, 0]


def variances(
    recursion: Recursion, layers: tuple[Layers, ...], stages: tuple[Stage, ...], images: Array
) -> list[Array]:
    """Give the variances of images (n, 1, channels, height, width) at the input of each activation.

    **Arguments:** `layers`: of all stages up to the last with an activation. `stages`: those before that one.
    """
    found: list[Array] = []
    values = None
    for i, those in enumerate(layers):
        # Displacement 0 is the first of every stage.
        variance = _product(images, images) if values is None else values.nngp[0, 0]
        passed = len(found)
        for layer, _ in those:
            if isinstance(layer, Activation):
                found.append(variance)
                variance, _ = MOMENTS[layer.name].diagonal(variance)
            else:
                variance = _affine(layer, _window_mean(layer, variance, (0, 0), _again))
        if i < len(stages):
            batch = Batch(images, tuple(found[passed:]))
            values = _through(recursion._replace(tangent=False), stages[i], batch, batch, values, False)
    return found


def _through(
    recursion: Recursion, stage: Stage, first: Batch, second: Batch, values: Covariances | None, same: bool
) -> Covariances:
    """Take covariances through a stage, one displacement after the other; in the first stage there are none before."""
    vertical, horizontal = stage.axes
    keep = _again if (vertical.size, horizontal.size) == (1, 1) or jax.default_backend() != "cpu" else _once
    affine = any(not isinstance(layer, Activation) for layer, _ in stage.layers)
    pairs = jnp.broadcast_shapes(first.images.shape[:2], second.images.shape[:2])
    dtype = jnp.promote_types(first.images.dtype, second.images.dtype)

    def empty(*shape: int) -> Covariances:
        tangent = recursion.tangent and (affine or (values is not None and values.ntk is not None))
        return Covariances(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype) if tangent else None)

    def one(before: Covariances | None, moved: Batch, displacement: Displacement) -> Covariances:
        if before is None:
            before = Covariances(keep(_product(first.images, moved.images)), None)
        return _layers(recursion, stage.layers, before, first.variances, moved.variances, displacement, keep, same)

    if (vertical.size, horizontal.size) == (1, 1):
        # Of one pixel there are no displacements, and no cells to come.
        before = None if values is None else jax.tree.map(lambda a: a[0, 0], values)
        return jax.tree.map(lambda a: a[None, None], one(before, second, (0, 0)))

    def column(total: Covariances, at: _At) -> Covariances:
        turned = jax.tree.map(lambda a: _rolled(a, at.displacement, -1), second)

        def row(total: Covariances, inner: _At) -> Covariances:
            moved = jax.tree.map(lambda a: _rolled(a, inner.displacement, -2), turned)
            # Its intermediate values are computed again for the gradient, not kept for all displacements.
            there = jax.checkpoint(one)(inner.values, moved, (inner.displacement, at.displacement))
            return jax.tree.map(lambda t, v: _gathered(t, v, inner, vertical, -2, keep), total, there)

        zero = empty(_following(vertical), *pairs, vertical.cells.count, horizontal.size)
        there = _each(row, zero, vertical, at.values)
        return jax.tree.map(lambda t, v: _gathered(t, v, at, horizontal, -1, keep), total, there)

    zero = empty(_following(horizontal), _following(vertical), *pairs, vertical.cells.count, horizontal.cells.count)
    return _each(column, zero, horizontal, values)


class _At(NamedTuple):
    """One displacement along one axis: a row of the fields of `Axis`, and the covariances at it."""

    displacement: Array
    targets: Array
    weights: Array
    values: Covariances | None


def _each(body: Callable[[Carry, _At], Carry], carry: Carry, axis: Axis, values: Covariances | None) -> Carry:
    every = _At(jnp.asarray(axis.displacements), jnp.asarray(axis.targets), jnp.asarray(axis.weights), values)
    if len(axis.displacements) == 1:
        return body(carry, jax.tree.map(lambda a: a[0], every))
    carry, _ = lax.scan(lambda total, at: (body(total, at), None), carry, every)
    return carry


def _following(axis: Axis) -> int:
    return int(axis.targets.max()) + 1


def _gathered(total: Array, values: Array, at: _At, axis: Axis, dim: int, keep: Keep) -> Array:
    """Add one displacement's covariances to those of the displacements to which their cells belong."""
    parts = _in_cells(axis.cells, dim, values, at.weights.astype(values.dtype))
    for i, part in enumerate(parts):
        total = total.at[at.targets[i]].add(keep(part))
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_cells(cells: Cells, dim: int, values: Array, weights: Array) -> list[Array]:
    """Add up the positions of each cell, once for each row of weights (T, size)."""
    parts = []
    for row in weights:
        row = row.reshape(-1, *(1,) * (-1 - dim))
        if cells.count == 1:
            parts.append(jnp.sum(values * row, axis=dim, keepdims=True))
            continue
        part = jnp.zeros((), values.dtype)
        for u in range(cells.width):
            first = cells.start + u
            window = (first, first + cells.step * (cells.count - 1) + 1, cells.step)
            part = part + _slice(values, *window, dim) * _slice(row, *window, dim)
        parts.append(part)
    return parts


def _in_cells_forward(cells: Cells, dim: int, values: Array, weights: Array) -> tuple[list[Array], Array]:
    return _in_cells(cells, dim, values, weights), weights


def _in_cells_backward(cells: Cells, dim: int, weights: Array, cotangents: list[Array]) -> tuple[Array, None]:
    # By hand: the transpose of strided slices is a sum of dilated pads, which do not vectorize.
    size, total = weights.shape[1], jnp.zeros((), weights.dtype)
    for row, cotangent in zip(weights, cotangents, strict=True):
        spread = cotangent if cells.count == 1 else jnp.repeat(cotangent, cells.step, axis=cotangent.ndim + dim)
        if cells.count > 1 and (cells.start, cells.step * cells.count) != (0, size):
            # Weights are zero outside of cells.
            pads = [(0, 0)] * spread.ndim
            pads[dim] = (cells.start, max(0, size - cells.start - cells.step * cells.count))
            spread = _slice(jnp.pad(spread, pads), 0, size, 1, dim)
        total = total + spread * row.reshape(-1, *(1,) * (-1 - dim))
    return total, None


_in_cells.defvjp(_in_cells_forward, _in_cells_backward)


def _slice(a: Array, start: int, stop: int, step: int, dim: int) -> Array:
    return lax.slice_in_dim(a, start, stop, step, axis=a.ndim + dim)


def _layers(
    recursion: Recursion,
    layers: Layers,
    values: Covariances,
    variances1: tuple[Array, ...],
    variances2: tuple[Array, ...],
    displacement: Displacement,
    keep: Keep,
    same: bool,
) -> Covariances:
    """Take the covariances at one displacement, (n1, n2, height, width), through layers."""
    nngp, ntk = values
    # A pixel with itself is known to have the cosine 1, of which rounding would leave an angle of sqrt(eps).
    itself = (displacement[0] == 0) & (displacement[1] == 0) if same else None
    passed = 0
    for layer, fan_in in layers:
        if isinstance(layer, Activation):
            v1, v2 = variances1[passed], variances2[passed]
            passed += 1
            pair, diagonal = MOMENTS[layer.name]
            if itself is not None:
                nngp = jnp.where(itself, v1, nngp)
            nngp, slope = pair(keep, nngp, v1, v2)
            if itself is not None:
                exact, exact_slope = diagonal(v1)
                nngp, slope = jnp.where(itself, exact, nngp), jnp.where(itself, exact_slope, slope)
            ntk = None if ntk is None else keep(ntk * slope)
            continue
        mean = _window_mean(layer, nngp, displacement, keep)
        nngp = _affine(layer, mean)
        if recursion.tangent:
            own = nngp
            if recursion.parameterization == "standard":
                # Sohl-Dickstein et al. 2020 (arXiv:2001.07301): a weight's own scale is 1, and so is a bias's.
                own = fan_in * mean + (0.0 if layer.b_std is None else 1.0)
            ntk = own if ntk is None else own + layer.W_std**2 * _window_mean(layer, ntk, displacement, keep)
    return Covariances(nngp, ntk)


def _affine(layer: Dense | Conv, mean: Array) -> Array:
    scaled = layer.W_std**2 * mean
    return scaled if layer.b_std is None else scaled + layer.b_std**2


def _window_mean(layer: Dense | Conv, values: Array, displacement: Displacement, keep: Keep) -> Array:
    """Average over a convolution's window, which moves in both images alike; over the window's size also at borders."""
    if isinstance(layer, Dense):
        return values
    for dim, axis in ((-1, 1), (-2, 0)):
        window = layer.window[axis]
        if window > 1:
            where = _Window(dim, window, (window - 1) // 2, layer.padding == "CIRCULAR", keep)
            values = _mean_along(where, values, displacement[axis])
    return values


class _Window(NamedTuple):
    """A window along one axis, which begins `before` positions before its centre."""

    dim: int
    size: int
    before: int
    wraps: bool
    keep: Keep


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mean_along(window: _Window, values: Array, displacement: Array | int) -> Array:
    size, before, keep = values.shape[window.dim], window.before, window.keep
    pads = [(0, 0)] * values.ndim
    pads[window.dim] = (before, window.size - 1 - before)
    padded = keep(jnp.pad(keep(values), pads, mode="wrap" if window.wraps else "constant"))
    weights = jnp.full((window.size, size), 1 / window.size, values.dtype)
    if not window.wraps:
        # Where the displaced pixel wraps around, its neighbour on the other side of the border is none.
        steps = np.arange(-before, window.size - before)[:, None]
        one, other = np.arange(size) + steps, (np.arange(size) + displacement) % size + steps
        weights = jnp.where((one >= 0) & (one < size) & (other >= 0) & (other < size), weights, 0.0)
    weights = weights.reshape(window.size, size, *(1,) * (-1 - window.dim))
    mean = jnp.zeros((), values.dtype)
    for i, weight in enumerate(weights):
        mean = mean + _slice(padded, i, i + size, 1, window.dim) * weight
    return keep(mean)


def _mean_along_forward(window: _Window, values: Array, displacement: Array | int) -> tuple[Array, Array | int]:
    return _mean_along(window, values, displacement), displacement


def _mean_along_backward(window: _Window, displacement: Array | int, cotangent: Array) -> tuple[Array, None]:
    # Who is in whose window is symmetric but for the direction.
    mirrored = window._replace(before=window.size - 1 - window.before)
    return _mean_along(mirrored, cotangent, displacement), None


_mean_along.defvjp(_mean_along_forward, _mean_along_backward)


def _product(x1: Array, x2: Array) -> Array:
    """Multiply images, (n1, n2, height, width): the covariances of the pixels of both at equal positions."""
    channels, size = x1.shape[2], x1.shape[3:]
    if x1.shape[1] == x2.shape[1]:
        product = jnp.sum(x1 * x2, axis=2)
    elif channels <= FEW_CHANNELS:
        product = x1[:, :, 0] * x2[:, :, 0]
        for c in range(1, channels):
            product += x1[:, :, c] * x2[:, :, c]
    elif size == (1, 1):
        # Full float32 also on a GPU: TF32 ruins an arccos near 1.
        product = jnp.matmul(x1[:, 0, :, 0, 0], x2[0, :, :, 0, 0].T, precision="highest")[:, :, None, None]
    else:
        product = jnp.einsum("acyx,bcyx->abyx", x1[:, 0], x2[0], precision="highest")
    return product / channels


def _rolled(a: Array, by: Array, dim: int) -> Array:
    """Bring position p + by to position p."""
    return jnp.roll(a, -by, axis=dim)


def _once(value: Array) -> Array:
    """Have XLA compute a value once and store it.

    Left alone it computes cheap values again in every place that reads them, inside loops that then do not vectorize:
    on a CPU that took four times as long.
    """
    return lax.optimization_barrier(value)


def _again(value: Array) -> Array:
    return value
