"""Products of a kernel's Gram matrix with tall matrices, compiled, with one tile of it in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ntkit.kernels.memory import pairs_at_once
from ntkit.kernels.pairs import balanced


def product(
    kernel: Callable[[Array, Array], Array],
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."],
    v: Float[Array, "n2 columns"],
) -> Float[Array, "n1 columns"]:
    """Give K(x1, x2) v: in one piece if K(x1, x2) fits in a tile, tile by tile if not.

    Differentiable, also with tiles: the backward pass computes each tile again.
    """
    pairs = pairs_at_once(x2.dtype.itemsize)
    if len(x1) * len(x2) <= pairs:
        return matmul(kernel(x1, x2), v)
    # A batch of few inputs beside many gives wide tiles, and the other way round.
    rows = min(len(x1), max(math.isqrt(pairs), pairs // len(x2)))
    columns = min(len(x2), pairs // rows)
    # Of nearly equal tiles little is padding.
    return _in_tiles(balanced(len(x1), rows), balanced(len(x2), columns), kernel, x1, x2, v)


def _product(rows: int, columns: int, kernel: Any, x1: Array, x2: Array, v: Array) -> Array:
    seconds = tiles(repeated(x2, columns), columns)
    v = tiles(zero_padded(v, seconds.shape[0] * columns), columns)

    # Without it the backward pass would keep every tile.
    @jax.checkpoint
    def tile(left: Array, right: Array, v: Array) -> Array:
        return matmul(kernel(left, right), v)

    def row(left: Array) -> Array:
        def add(total: Array, right: tuple[Array, Array]) -> tuple[Array, None]:
            return total + tile(left, *right), None

        zero = jnp.zeros((rows, v.shape[2]), jnp.result_type(x1, x2, v))
        return lax.scan(add, zero, (seconds, v))[0]

    return lax.map(row, tiles(repeated(x1, rows), rows)).reshape(-1, v.shape[2])[: len(x1)]


_in_tiles = jax.jit(_product, static_argnums=(0, 1))


def repeated(x: Array, side: int) -> Array:
    """Fill up a batch to a multiple of `side` with its own first inputs, on which every kernel is finite."""
    total = -(-len(x) // side) * side
    return x if total == len(x) else x[jnp.arange(total) % len(x)]


def matmul(a: Array, b: Array) -> Array:
    """Multiply in full precision, on a GPU or TPU too."""
    return jnp.matmul(a, b, precision="highest")


def zero_padded(v: Array, total: int) -> Array:
    """Fill up rows with zeros."""
    return jnp.pad(v, ((0, total - len(v)), (0, 0)))


def tiles(x: Array, side: int) -> Array:
    """Divide a batch, of a multiple of `side`, into batches of that many."""
    return x.reshape(-1, side, *x.shape[1:])
