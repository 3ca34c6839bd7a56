"""Products of a kernel's Gram matrix with tall matrices, compiled, with one tile of it in memory at a time."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntkit.gram.devices import on_each
from ntkit.kernels import Kernel
from ntkit.kernels._blocks import balanced
from ntkit.solvers.placement import AXIS, ROWS, WHOLE, gathered

# What one tile may use.
TILE_BYTES = 2**26


def pairs_in_a_tile(kernel: Kernel, x: Array) -> int:
    """Give how many pairs of inputs are evaluated at once, at most."""
    return max(1, TILE_BYTES // max(1, kernel.pair_bytes(x.shape[1:], x.dtype.itemsize)))


def cross_product(
    kernel: Kernel, x: Float[Array, "m ..."], support: Float[Array, "n ..."], weights: Float[Array, "n outputs"]
) -> Float[Array, "m outputs"]:
    """Give K(x, support) weights: in one piece if K(x, support) fits in a tile, tile by tile if not.

    Differentiable, also with tiles: the backward pass computes each tile again.
    """
    pairs = pairs_in_a_tile(kernel, support)
    if len(x) * len(support) <= pairs:
        return matmul(kernel(x, support), weights)
    # A batch of few inputs beside a large support gives wide tiles, and the other way round.
    rows = min(len(x), max(math.isqrt(pairs), pairs // len(support)))
    columns = min(len(support), pairs // rows)
    # Of nearly equal tiles little is padding.
    rows, columns = balanced(len(x), rows), balanced(len(support), columns)
    return _compiled_cross_product(rows, columns, kernel, x, support, weights)


def _cross_product(rows: int, columns: int, kernel: Kernel, x: Array, support: Array, weights: Array) -> Array:
    supports = _tiles(repeated(support, columns), columns)
    weights = _tiles(_zero_padded(weights, supports.shape[0] * columns), columns)

    # Without it the backward pass would keep every tile.
    @jax.checkpoint
    def tile(left: Array, right: Array, weights: Array) -> Array:
        return matmul(kernel(left, right), weights)

    def row(left: Array) -> Array:
        def add(total: Array, right: tuple[Array, Array]) -> tuple[Array, None]:
            return total + tile(left, *right), None

        zero = jnp.zeros((rows, weights.shape[2]), jnp.result_type(x, support, weights))
        return lax.scan(add, zero, (supports, weights))[0]

    return lax.map(row, _tiles(repeated(x, rows), rows)).reshape(-1, weights.shape[2])[: len(x)]


_compiled_cross_product = jax.jit(_cross_product, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def symmetric_product(
    mesh: Mesh, side: int, kernel: Kernel, x: Array, diagonal: Array, tiles: Array, v: Array
) -> Array:
    """Give K(x) v on every device, each tile on or above the diagonal computed once, on one of the devices.

    **Arguments:** `x`: on every device, the n inputs and more of them, up to a multiple of `side`. `diagonal`: of K(x).
    `tiles`: (number, 2), the same number for each device: rows and columns of tiles, in units of `side`. `v`: on every
    device, (n, outputs).
    """

    def local(kernel: Kernel, x: Array, diagonal: Array, tiles: Array, v: Array) -> Array:
        def add(total: Array, tile: Array) -> tuple[Array, None]:
            i, j = tile[0] * side, tile[1] * side
            # The exact diagonal: in a block of two batches an arccos near 1 spoils it.
            same = (i + jnp.arange(side))[:, None] == (j + jnp.arange(side))[None]
            block = jnp.where(same, _at(diagonal, i, side), kernel(_at(x, i, side), _at(x, j, side)))
            total = _add_at(total, i, matmul(block, _at(v, j, side)))
            mirrored = matmul(block.T, _at(v, i, side))
            return _add_at(total, j, jnp.where(i == j, 0, mirrored)), None

        return lax.psum(lax.scan(add, jnp.zeros_like(v), tiles)[0], AXIS)

    product = on_each(mesh, local, (WHOLE, WHOLE, WHOLE, ROWS, WHOLE), WHOLE)
    return product(kernel, x, diagonal, tiles, _zero_padded(v, len(x)))[: len(v)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def columns(mesh: Mesh, side: int, kernel: Kernel, x: Array, diagonal: Array, indices: Array) -> Array:
    """Give the columns K(x)[:, indices] on every device, each computing a part of the rows.

    **Arguments:** `x`, `diagonal`: as of `symmetric_product`, with the same number of tiles for each device.
    """
    chosen, chosen_diagonal = x[indices], diagonal[indices]

    def local(kernel: Kernel, tiles: Array, starts: Array, chosen: Array, diagonal: Array, indices: Array) -> Array:
        def rows(tile: tuple[Array, Array]) -> Array:
            left, start = tile
            same = (start + jnp.arange(side))[:, None] == indices[None]
            return jnp.where(same, diagonal, kernel(left, chosen))

        return lax.map(rows, (tiles, starts))

    product = on_each(mesh, local, (WHOLE, ROWS, ROWS, WHOLE, WHOLE, WHOLE), ROWS)
    starts = jnp.arange(0, len(x), side)
    tiles = product(kernel, _tiles(x, side), starts, chosen, chosen_diagonal, indices)
    return gathered(mesh, tiles.reshape(-1, len(indices)))


def repeated(x: Array, side: int) -> Array:
    """Fill up a batch to a multiple of `side` with its own first inputs, on which every kernel is finite."""
    total = -(-len(x) // side) * side
    return x if total == len(x) else x[jnp.arange(total) % len(x)]


def matmul(a: Array, b: Array) -> Array:
    """Multiply in full precision, on a GPU or TPU too."""
    return jnp.matmul(a, b, precision="highest")


def _zero_padded(v: Array, total: int) -> Array:
    return jnp.pad(v, ((0, total - len(v)), (0, 0)))


def _tiles(x: Array, side: int) -> Array:
    return x.reshape(-1, side, *x.shape[1:])


def _at(x: Array, start: Array, side: int) -> Array:
    return lax.dynamic_slice_in_dim(x, start, side)


def _add_at(total: Array, start: Array, part: Array) -> Array:
    return lax.dynamic_update_slice_in_dim(total, _at(total, start, len(part)) + part, start, 0)
