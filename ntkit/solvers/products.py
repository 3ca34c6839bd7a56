"""Products of a kernel's Gram matrix with tall matrices, compiled, with one tile of it in memory at a time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from ntkit.kernels import Kernel
from ntkit.kernels.tiled import matmul, zero_padded
from ntkit.kernels.tiled import tiles as in_tiles
from ntkit.runs.meshes import on_each
from ntkit.solvers.placement import AXIS, ROWS, WHOLE, gathered


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
    return product(kernel, x, diagonal, tiles, zero_padded(v, len(x)))[: len(v)]


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
    tiles = product(kernel, in_tiles(x, side), starts, chosen, chosen_diagonal, indices)
    return gathered(mesh, tiles.reshape(-1, len(indices)))


def _at(x: Array, start: Array, side: int) -> Array:
    return lax.dynamic_slice_in_dim(x, start, side)


def _add_at(total: Array, start: Array, part: Array) -> Array:
    return lax.dynamic_update_slice_in_dim(total, _at(total, start, len(part)) + part, start, 0)
