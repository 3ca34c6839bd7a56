"""A function of all pairs of two batches, computed on one block of pairs after the other.

What a block needs beside its result is then all the memory there is to find, forward and backward: for the gradient
each block is computed once more, and nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def balanced(n: int, most: int) -> int:
    """Give the size of equal blocks, of no more than `most`, that leave the least over."""
    return -(-n // -(-n // most))


def each(f: Callable[[Batch], Result], batch: Batch, size: int) -> Result:
    """Compute `f` of a batch, a pytree of arrays (n, …), on `size` elements at a time; it gives arrays (n, …) too."""
    n = _length(batch)
    if n <= size:
        return f(batch)
    values = lax.map(jax.checkpoint(f), _divided(batch, balanced(n, size)))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], values)


def rectangle(f: Callable[[Batch, Batch], Array], first: Batch, second: Batch, sizes: tuple[int, int]) -> Array:
    """Compute `f` for every element of one batch with every element of another.

    **Arguments:** `f`: gives (b1, b2) for batches of b1 and b2. `first`, `second`: pytrees of arrays (n1, …) and
    (n2, …). `sizes`: the largest b1 and b2.

    **Returns:** (n1, n2).
    """
    n1, n2 = _length(first), _length(second)
    if n1 <= sizes[0] and n2 <= sizes[1]:
        return f(first, second)
    blocks1, blocks2 = (
        _divided(batch, balanced(n, b)) for batch, n, b in zip((first, second), (n1, n2), sizes, strict=True)
    )
    rows = lax.map(lambda one: lax.map(lambda two: jax.checkpoint(f)(one, two), blocks2), blocks1)
    return _together(rows)[:n1, :n2]


def triangle(f: Callable[[Batch, Batch], Array], batch: Batch, size: int) -> Array:
    """Compute a symmetric `f` for every element of a batch with every other, each pair of blocks once.

    **Arguments:** as in [`rectangle`][]; f(a, b) is the transpose of f(b, a).

    **Returns:** (n, n).
    """
    n = _length(batch)
    if n <= size:
        return f(batch, batch)
    # Blocks sit around a table, and each meets those of the half circle to its right: with an odd number of them every
    # pair meets once, and all of them have the same to do.
    count = -(-n // size) // 2 * 2 + 1
    half = count // 2
    blocks = _divided(batch, -(-n // count), count)
    around = jax.tree.map(lambda a: jnp.concatenate([a, a[:half]]), blocks)

    def meet(place: Array) -> Array:
        right = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, place, half + 1), around)
        one = jax.tree.map(lambda a: a[0], right)
        return lax.map(lambda two: jax.checkpoint(f)(one, two), right)

    met = lax.map(meet, jnp.arange(count))
    row, column = np.indices((count, count))
    steps = (column - row) % count
    to_the_right = met[row, np.minimum(steps, half)]
    to_the_left = jnp.swapaxes(met[column, np.minimum((row - column) % count, half)], -1, -2)
    return _together(jnp.where((steps <= half)[:, :, None, None], to_the_right, to_the_left))[:n, :n]


def _length(batch: Batch) -> int:
    return int(jax.tree.leaves(batch)[0].shape[0])


def _divided(batch: Batch, size: int, count: int | None = None) -> Batch:
    """Divide arrays (n, …) into (count, size, …), filled up with zeros."""
    n = _length(batch)
    count = -(-n // size) if count is None else count

    def divide(a: Array) -> Array:
        filled = jnp.pad(a, [(0, count * size - n)] + [(0, 0)] * (a.ndim - 1))
        return filled.reshape(count, size, *a.shape[1:])

    return jax.tree.map(divide, batch)


def _together(blocks: Array) -> Array:
    rows, columns, b1, b2 = blocks.shape
    return blocks.transpose(0, 2, 1, 3).reshape(rows * b1, columns * b2)
