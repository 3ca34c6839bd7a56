"""The covariances of pairs of images, taken through the stages of a network.

The recursion is that of Arora et al. 2019 (arXiv:1904.11955, section 4): K for the covariance of the network's values
at two pixels (NNGP) and T for its tangent kernel. It runs over one displacement at a time (see `stages`), for all
pairs of a block of images and all positions at once, so that what it works on stays in the caches. Between two stages
lie the pooled covariances, at the displacements that the next one needs.

The derivatives of a stage are written by hand (reverse mode): one displacement after the other is computed again and
differentiated, so that they too need no more memory than the covariances at one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ntkit.architectures import Activation, Conv, Dense
from ntkit.kernels.fused import first_stage
from ntkit.kernels.fused.moments import MOMENTS, Keep, Maps
from ntkit.kernels.fused.stages import Axis, Cells, Layers, Recursion, Stage
from ntkit.kernels.materialized import materialized

# Images of no more channels than this are multiplied one channel after the other: a matrix product of so few terms is
# slower.
FEW_CHANNELS = 8


class Batch(NamedTuple):
    """One side of the pairs.

    **Fields:** `images`: (n, 1, channels, height, width) or (1, n, channels, height, width): what makes the pairs is
    that one side broadcasts against the other. `variances`: for each activation those at its input, and what `MOMENTS`
    asks of them, arrays (n, 1, height, width) or (1, n, height, width). `inverse`: 1 / the length of each image, for
    `near`, where that can tell near ones apart.
    """

    images: Array
    variances: tuple[tuple[Array, Maps], ...]
    inverse: Array | None = None


class Covariances(NamedTuple):
    """K and T, where T is None if it is zero or not asked for.

    Between stages both are (horizontal displacements, vertical displacements, n1, n2, height, width).
    """

    nngp: Array
    ntk: Array | None


def kernel(recursion: Recursion, stages: tuple[Stage, ...], first: Batch, second: Batch, *, same: bool) -> Array:
    """Give the kernel of every pair, the tangent kernel or the other one.

    **Arguments:** `stages`: all of the network's. `first`, `second`: images and what `variances` gives. `same`: whether
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
) -> tuple[tuple[Array, Maps], ...]:
    """Give the variances of images (n, 1, channels, height, width) at the input of each activation, and their maps.

    **Arguments:** `layers`: of all stages up to the last with an activation. `stages`: those before that one.
    """
    found: list[tuple[Array, Maps]] = []
    values = None
    for i, those in enumerate(layers):
        # Displacement 0 is the first of every stage.
        variance = _product(images, images, _recomputed) if values is None else values.nngp[0, 0]
        passed = len(found)
        for layer, _ in those:
            if isinstance(layer, Activation):
                moments = MOMENTS[layer.name]
                found.append((variance, moments.maps(variance)))
                variance, _ = moments.diagonal(variance)
            else:
                links = [jax.tree.map(jnp.asarray, _links(n, layer, dim)) for dim, n in enumerate(variance.shape[-2:])]
                variance = _affine(layer, _window_mean(layer, variance, links, _recomputed))
        if i < len(stages):
            batch = Batch(images, tuple(found[passed:]))
            values = _through(recursion._replace(tangent=False, pallas=False), stages[i], batch, batch, values, False)
    return tuple(found)


def _through(
    recursion: Recursion, stage: Stage, first: Batch, second: Batch, values: Covariances | None, same: bool
) -> Covariances:
    """Take covariances through a stage; before the first stage there are none."""
    vertical, horizontal = stage.axes
    fan_ins = tuple(fan_in for _, fan_in in stage.layers)
    pairs = jnp.broadcast_shapes(first.images.shape[:2], second.images.shape[:2])
    dtype = jnp.promote_types(first.images.dtype, second.images.dtype)
    pixels = vertical.size * horizontal.size
    keep: Keep = materialized if pixels > 1 and jax.default_backend() == "cpu" else _recomputed
    spread = functools.partial(_spread if pixels > 1 else _spread_numbers, pairs)

    def at(row: _Row, column: _Row, layers: Any, values: Covariances | None, one: Batch, other: Batch) -> Covariances:
        one, other = (side._replace(variances=jax.tree.map(spread, side.variances)) for side in (one, other))
        if values is None:
            values = Covariances(keep(_product(one.images, other.images, spread)), None)
        itself = jnp.equal(row.displacement, 0) & jnp.equal(column.displacement, 0) if same else None
        links = [list(pair) for pair in zip(row.links, column.links, strict=True)]
        return _layers(recursion, layers, fan_ins, values, one, other, links, keep, itself)

    # The inputs decide the precision, not hyper-parameters.
    layers = tuple(jax.tree.map(lambda std: jnp.asarray(std, dtype), layer) for layer, _ in stage.layers)
    tables = (_table(vertical, layers, 0, dtype), _table(horizontal, layers, 1, dtype))
    if pixels == 1:
        # Of one pixel there are no displacements, and no cells to come: nothing is moved.
        row, column = (table.read(jnp.asarray(table.values[0])) for table in tables)
        before = None if values is None else jax.tree.map(lambda a: a[0, 0], values)
        here = at(row, column, layers, before, first, second)
        return jax.tree.map(lambda a: a[None, None], here)
    affine = any(not isinstance(layer, Activation) for layer in layers)
    tangent = recursion.tangent and (affine or (values is not None and values.ntk is not None))

    channels = first.images.shape[2] if values is None else 0
    planes1, unpack = _packed(first, channels, same)
    planes2, _ = _packed(second, channels, same)

    def at_planes(row: _Row, column: _Row, layers: Any, values: Covariances | None, *planes: Array) -> Covariances:
        sides = (unpack(a[:, :, :channels], [a[:, :, i] for i in range(channels, a.shape[2])]) for a in planes)
        return at(row, column, layers, values, *sides)

    def empty(*shape: int) -> Covariances:
        return Covariances(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype) if tangent else None)

    def at_patches(layers: Any, mean: Array, known1: list[Array], known2: list[Array]) -> Covariances:
        # To patches of images the convolution is one of a single pixel.
        single = (dataclasses.replace(layers[0], window=(1, 1)), *layers[1:])
        one, other = unpack(mean, known1), unpack(mean, known2)
        return _layers(
            recursion, single, fan_ins, Covariances(mean, None), one, other, [[] for _ in single], _recomputed, None
        )

    at_once = None
    if recursion.pallas is not False and channels and not same and first_stage.supports(stage, channels, dtype):
        at_once = functools.partial(first_stage.through, stage, at_patches, channels)
    everywhere = recursion.pallas is not None
    through = _at_all_displacements(stage, tables, pairs, at_planes, empty, keep, at_once, everywhere)
    return through(layers, values, planes1, planes2)


def _at_all_displacements(
    stage: Stage,
    tables: tuple[_Table, _Table],
    pairs: tuple[int, ...],
    at: Callable[..., Covariances],
    empty: Callable[..., Covariances],
    keep: Keep,
    at_once: Callable[[Any, Array, Array], Covariances] | None,
    everywhere: bool,
) -> Callable[[Any, Covariances | None, Array, Array], Covariances]:
    """Give the function that goes through a stage's displacements, one after the other, with its derivative.

    **Arguments:** `at`: computes the covariances at one displacement, by its row and column. `empty`: zeros of a shape.
    `at_once`: computes the same as all of it, if there is something better; `everywhere`, or only on a GPU. Derivatives
    go one after the other.
    """
    (vertical, horizontal), (rows, columns) = stage.axes, tables
    height, width = vertical.cells.count, horizontal.cells.count

    @jax.custom_vjp
    def through(layers: Any, values: Covariances | None, planes1: Array, planes2: Array) -> Covariances:
        if at_once is None:
            return one_by_one(layers, values, planes1, planes2)
        if everywhere:
            return at_once(layers, planes1, planes2)
        # The process has a GPU, but these arrays may be elsewhere.
        return lax.platform_dependent(
            layers, planes1, planes2, cuda=at_once, default=lambda layers, *planes: one_by_one(layers, None, *planes)
        )

    def one_by_one(layers: Any, values: Covariances | None, planes1: Array, planes2: Array) -> Covariances:
        def along_x(total: Covariances, here: Any) -> tuple[Covariances, None]:
            column = columns.read(here[0])
            turned = keep(jnp.roll(planes2, -column.displacement, axis=-1))

            def along_y(total: Covariances, here: Any) -> tuple[Covariances, None]:
                row = rows.read(here[0])
                moved = keep(jnp.roll(turned, -row.displacement, axis=-2))
                found = at(row, column, layers, here[1], planes1, moved)
                return jax.tree.map(lambda t, v: _into_cells(t, v, row, vertical.cells, -2), total, found), None

            zero = empty(vertical.following, *pairs, height, horizontal.size)
            found, _ = lax.scan(along_y, zero, (rows.values, here[1]))
            return jax.tree.map(lambda t, v: _into_cells(t, v, column, horizontal.cells, -1), total, found), None

        zero = empty(horizontal.following, vertical.following, *pairs, height, width)
        return lax.scan(along_x, zero, (columns.values, values))[0]

    def forward(*arguments: Any) -> tuple[Covariances, Any]:
        return through(*arguments), arguments

    def backward(arguments: Any, cotangent: Covariances) -> tuple[Any, ...]:
        layers, values, planes1, planes2 = arguments

        def along_x(gradient: Any, here: Any) -> tuple[Any, Covariances | None]:
            column = columns.read(here[0])
            turned = keep(jnp.roll(planes2, -column.displacement, axis=-1))
            wanted = jax.tree.map(lambda c: _from_cells(c, column, horizontal.cells, -1), cotangent)

            def along_y(gradient: Any, here: Any) -> tuple[Any, Covariances | None]:
                row = rows.read(here[0])
                moved = keep(jnp.roll(turned, -row.displacement, axis=-2))
                cotangent = jax.tree.map(lambda c: keep(_from_cells(c, row, vertical.cells, -2)), wanted)
                _, pull = jax.vjp(functools.partial(at, row, column), layers, here[1], planes1, moved)
                d_layers, d_values, d_planes1, d_moved = pull(cotangent)
                d_turned = jnp.roll(d_moved, row.displacement, axis=-2)
                return jax.tree.map(jnp.add, gradient, (d_layers, d_planes1, d_turned)), d_values

            d_layers, d_planes1, d_planes2 = gradient
            start = (d_layers, d_planes1, jnp.zeros_like(planes2))
            (d_layers, d_planes1, d_turned), d_values = lax.scan(along_y, start, (rows.values, here[1]))
            return (d_layers, d_planes1, d_planes2 + jnp.roll(d_turned, column.displacement, axis=-1)), d_values

        start = jax.tree.map(jnp.zeros_like, (layers, planes1, planes2))
        (d_layers, d_planes1, d_planes2), d_values = lax.scan(along_x, start, (columns.values, values))
        return d_layers, d_values, d_planes1, d_planes2

    through.defvjp(forward, backward)
    return through


def _packed(batch: Batch, channels: int, variances: bool) -> tuple[Array, Callable[[Array, list[Array]], Batch]]:
    """Put what a stage needs of a batch into one array (n1, n2, planes, height, width), which is moved at once.

    **Arguments:** `channels`: of the images, or 0 where they are not needed. `variances`: whether they are needed.

    **Returns:** the array, and what makes a batch of the images, its first planes, and a list of the other planes.
    """
    used = tuple((v if variances else (), maps) for v, maps in batch.variances)
    leaves, tree = jax.tree.flatten(used)
    parts = [batch.images] if channels else []
    parts += [leaf[:, :, None] for leaf in leaves]
    if not parts:
        # A stage without activations needs nothing but the covariances.
        parts = [jnp.zeros((*batch.images.shape[:2], 0, 1, 1), batch.images.dtype)]

    def unpack(images: Array, known: list[Array]) -> Batch:
        return Batch(images, jax.tree.unflatten(tree, known))

    return jnp.concatenate(parts, axis=2), unpack


def _spread(pairs: tuple[int, ...], plane: Array) -> Array:
    """Repeat one side's plane, (n1, 1, height, width) or (1, n2, height, width), for all pairs."""
    return _spread_from(pairs, plane.shape[:2], plane)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _spread_from(pairs: tuple[int, ...], sizes: tuple[int, ...], plane: Array) -> Array:
    return jnp.broadcast_to(plane, (*pairs, *plane.shape[2:]))


def _spread_forward(pairs: tuple[int, ...], sizes: tuple[int, ...], plane: Array) -> tuple[Array, None]:
    return _spread_from(pairs, sizes, plane), None


def _spread_backward(pairs: tuple[int, ...], sizes: tuple[int, ...], _: None, cotangent: Array) -> tuple[Array]:
    for dim in (0, 1):
        if sizes[dim] < pairs[dim]:
            cotangent = _total(cotangent, dim)
    return (cotangent,)


_spread_from.defvjp(_spread_forward, _spread_backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spread_numbers(pairs: tuple[int, ...], plane: Array) -> Array:
    """Repeat one side's numbers, (n1, 1, 1, 1) or (1, n2, 1, 1), for all pairs; forward mode works, too."""
    return jnp.broadcast_to(plane, (*pairs, *plane.shape[2:]))


@_spread_numbers.defjvp
def _spread_numbers_forward(
    pairs: tuple[int, ...], planes: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # The transpose of a broadcast is a reduction. On a CPU one over pairs takes as long as a matrix product of the
    # inputs themselves; a product with ones takes a tenth of that.
    [plane], [tangent] = planes, tangents
    vector, ones = tangent.reshape(-1), functools.partial(jnp.ones, dtype=tangent.dtype)
    if plane.shape[0] < pairs[0]:
        spread = ones((pairs[0], 1)) @ vector[None, :]
    elif plane.shape[1] < pairs[1]:
        spread = vector[:, None] @ ones((1, pairs[1]))
    else:
        spread = tangent
    return _spread_numbers(pairs, plane), spread.reshape(*pairs, *plane.shape[2:])


def _total(a: Array, dim: int) -> Array:
    """Sum along a dimension, which stays."""
    if jax.default_backend() != "cpu":
        return jnp.sum(a, axis=dim, keepdims=True)
    # A reduction over a dimension that is not the last took 20 times as long as the same additions written out.
    rest = []
    while (n := a.shape[dim]) > 1:
        half = n // 2
        if n % 2:
            rest.append(lax.slice_in_dim(a, n - 1, n, axis=dim))
        a = lax.slice_in_dim(a, 0, half, axis=dim) + lax.slice_in_dim(a, half, 2 * half, axis=dim)
    return functools.reduce(jnp.add, rest, a)


class _Row(NamedTuple):
    """One displacement along one axis: a row of the fields of `Axis`, and for each layer who is in whose window.

    **Fields:** `links`: (window, size), what each position's window adds up, and the same for the derivative.
    """

    displacement: Array | int
    targets: list[Array]
    weights: Array
    links: list[tuple[Array, Array]]


class _Table(NamedTuple):
    """All displacements of an axis as rows of one array, since a loop pays for each array that it goes through."""

    values: Any
    read: Callable[[Array], _Row]


def _table(axis: Axis, layers: tuple[Any, ...], dim: int, dtype: Any) -> _Table:
    parts = [axis.displacements[:, None], axis.targets, axis.weights]
    # Not the layers themselves, whose traced hyper-parameters a derivative's function must not hold.
    convolves = [isinstance(layer, Conv) for layer in layers]
    for layer in layers:
        if isinstance(layer, Conv):
            parts += map(np.stack, zip(*(_links(axis.size, layer, dim, d) for d in axis.displacements), strict=True))
    ends = np.cumsum([0, *(part[0].size for part in parts)])

    def read(row: Array) -> _Row:
        found = [row[a:b].reshape(part.shape[1:]) for a, b, part in zip(ends[:-1], ends[1:], parts, strict=True)]
        links = iter(zip(found[3::2], found[4::2], strict=True))
        none = (jnp.ones(()), jnp.ones(()))
        return _Row(
            found[0][0].astype(np.int32),
            [found[1][i].astype(np.int32) for i in range(axis.targets.shape[1])],
            found[2],
            [next(links) if convolve else none for convolve in convolves],
        )

    rows = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    # NumPy's, since an array of JAX made here would belong to the trace in which it was made.
    return _Table(rows.astype(dtype), read)


def _links(
    size: int, layer: Dense | Conv, dim: int, displacement: int | np.integer = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Give what each of the positions in a window counts at each position (window, size), and in whose it is.

    The mean is over the window's size also at borders. Where the displaced pixel wraps around, its neighbour on the
    other side of the border is none.
    """
    match layer:
        case Dense():
            return np.ones((1, size)), np.ones((1, size))
        case Conv():
            window = layer.window[dim]
        case _:
            assert_never(layer)
    position = np.arange(size)

    def links(before: int) -> np.ndarray:
        steps = np.arange(-before, window - before)[:, None]
        one, other = position + steps, (position + displacement) % size + steps
        inside = (one >= 0) & (one < size) & (other >= 0) & (other < size)
        return np.where(inside | (layer.padding == "CIRCULAR"), 1 / window, 0.0)

    before = (window - 1) // 2
    return links(before), links(window - 1 - before)


def _into_cells(total: Array, values: Array, at: _Row, cells: Cells, dim: int) -> Array:
    """Add one displacement's covariances to those of the displacements to which their cells belong."""
    for i, target in enumerate(at.targets):
        weights = _along(at.weights[i], dim, values.ndim)
        if cells.count == 1:
            part = jnp.sum(values * weights, axis=dim, keepdims=True)
        else:
            part = jnp.zeros((), values.dtype)
            for u in range(cells.width):
                first = cells.start + u
                window = (first, first + cells.step * (cells.count - 1) + 1, cells.step)
                part = part + _slice(values, *window, dim) * _slice(weights, *window, dim)
        total = total.at[target].add(part)
    return total


def _from_cells(cotangent: Array, at: _Row, cells: Cells, dim: int) -> Array:
    """The transpose of `_into_cells` in its values."""
    size, total = at.weights.shape[-1], jnp.zeros((), cotangent.dtype)
    for i, target in enumerate(at.targets):
        part = lax.dynamic_index_in_dim(cotangent, target, keepdims=False)
        if cells.count > 1:
            part = jnp.repeat(part, cells.step, axis=part.ndim + dim)
            if (cells.start, cells.step * cells.count) != (0, size):
                # Weights are zero outside of cells.
                pads = [(0, 0)] * part.ndim
                pads[dim] = (cells.start, max(0, size - cells.start - cells.step * cells.count))
                part = _slice(jnp.pad(part, pads), 0, size, 1, dim)
        total = total + part * _along(at.weights[i], dim, part.ndim)
    return total


def _along(weights: Array, dim: int, ndim: int) -> Array:
    """Lay weights (size,) along a dimension, counted from the last, of an array of `ndim`."""
    return weights.reshape(*(1,) * (ndim + dim), -1, *(1,) * (-1 - dim))


def _slice(a: Array, start: int, stop: int, step: int, dim: int) -> Array:
    return lax.slice_in_dim(a, start, stop, step, axis=a.ndim + dim)


def _layers(
    recursion: Recursion,
    layers: tuple[Any, ...],
    fan_ins: tuple[int, ...],
    values: Covariances,
    first: Batch,
    second: Batch,
    links: list[list[tuple[Array, Array]]],
    keep: Keep,
    itself: Array | None,
) -> Covariances:
    """Take the covariances at one displacement, (n1, n2, height, width), through layers.

    `itself`: whether the pairs are of pixels with themselves, whose cosine is known to be 1; rounding would leave an
    angle of sqrt(eps).
    """
    nngp, ntk = values
    sides = iter(zip(first.variances, second.variances, strict=True))
    for layer, fan_in, window in zip(layers, fan_ins, links, strict=True):
        if isinstance(layer, Activation):
            (variance, one), (_, other) = next(sides)
            moments = MOMENTS[layer.name]
            if itself is not None:
                nngp = jnp.where(itself, variance, nngp)
            nngp, slope = moments.pair(keep, nngp, one, other)
            if itself is not None:
                exact, exact_slope = moments.diagonal(variance)
                nngp, slope = jnp.where(itself, exact, nngp), jnp.where(itself, exact_slope, slope)
            ntk = None if ntk is None else keep(ntk * slope)
            continue
        mean = _window_mean(layer, nngp, window, keep)
        nngp = _affine(layer, mean)
        if recursion.tangent:
            own = nngp
            if recursion.parameterization == "standard":
                # Sohl-Dickstein et al. 2020 (arXiv:2001.07301): a weight's own scale is 1, and so is a bias's.
                own = fan_in * mean + (0.0 if layer.b_std is None else 1.0)
            ntk = own if ntk is None else own + layer.W_std**2 * _window_mean(layer, ntk, window, keep)
    return Covariances(nngp, ntk)


def _affine(layer: Dense | Conv, mean: Array) -> Array:
    scaled = layer.W_std**2 * mean
    return scaled if layer.b_std is None else scaled + layer.b_std**2


def _window_mean(layer: Dense | Conv, values: Array, links: list[tuple[Array, Array]], keep: Keep) -> Array:
    """Average over a convolution's window, which moves in both images alike."""
    match layer:
        case Dense():
            return values
        case Conv():
            pass
        case _:
            assert_never(layer)
    if layer.window == (1, 1):
        return values
    before = ((layer.window[0] - 1) // 2, (layer.window[1] - 1) // 2)
    (down, up), (right, left) = links
    return _mean_over(_Window(before, layer.padding == "CIRCULAR", keep), values, (down, right), (up, left))


class _Window(NamedTuple):
    """A window, which begins `before` positions above and to the left of its centre."""

    before: tuple[int, int]
    wraps: bool
    keep: Keep


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mean_over(window: _Window, values: Array, links: tuple[Array, Array], transposed: tuple[Array, Array]) -> Array:
    keep, mean = window.keep, jnp.zeros((), values.dtype)
    down, right = (each.astype(values.dtype) for each in links)
    (rows, height), (columns, width) = down.shape, right.shape
    above, left = window.before
    pads = [(0, 0)] * (values.ndim - 2) + [(above, rows - 1 - above), (left, columns - 1 - left)]
    padded = keep(jnp.pad(keep(values), pads, mode="wrap" if window.wraps else "constant"))
    for i in range(rows):
        mean = mean + _slice(padded, i, i + height, 1, -2) * _along(down[i], -2, values.ndim)
    along, mean = keep(mean), jnp.zeros((), values.dtype)
    for i in range(columns):
        mean = mean + _slice(along, i, i + width, 1, -1) * _along(right[i], -1, values.ndim)
    return keep(mean)


def _mean_over_forward(window: _Window, values: Array, *links: tuple[Array, Array]) -> tuple[Array, Any]:
    return _mean_over(window, values, *links), links


def _mean_over_backward(window: _Window, links: Any, cotangent: Array) -> tuple[Array, None, None]:
    # Left to itself JAX pads for each position of the window, which does not vectorize.
    (down, right), transposed = links
    before = (down.shape[0] - 1 - window.before[0], right.shape[0] - 1 - window.before[1])
    return _mean_over(window._replace(before=before), cotangent, transposed, (down, right)), None, None


_mean_over.defvjp(_mean_over_forward, _mean_over_backward)


def _product(x1: Array, x2: Array, spread: Callable[[Array], Array]) -> Array:
    """Multiply images, (n1, n2, height, width): the covariances of the pixels of both at equal positions."""
    channels, size = x1.shape[2], x1.shape[3:]
    if channels <= FEW_CHANNELS:
        product = jnp.zeros((), x1.dtype)
        for c in range(channels):
            product += spread(x1[:, :, c]) * spread(x2[:, :, c])
    elif x1.shape[1] == x2.shape[1] and size == (1, 1):
        # In the shape in which others are multiplied below: XLA reduces another one in twice the time.
        product = jnp.sum(x1[:, 0, :, 0, 0] * x2[:, 0, :, 0, 0], axis=1)[:, None, None, None]
    elif x1.shape[1] == x2.shape[1]:
        product = jnp.sum(x1 * x2, axis=2)
    elif size == (1, 1):
        # Full float32 also on a GPU: TF32 ruins an arccos near 1.
        product = jnp.matmul(x1[:, 0, :, 0, 0], x2[0, :, :, 0, 0].T, precision="highest")[:, :, None, None]
    else:
        product = jnp.einsum("acyx,bcyx->abyx", x1[:, 0], x2[0], precision="highest")
    return product / channels


def _recomputed(value: Array) -> Array:
    return value
