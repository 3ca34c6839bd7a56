"""A function of all pairs of two batches, computed on one block of pairs after the other.

What a block needs beside its result is then all the memory there is to find, forward and backward: for the gradient
each block is computed once more, and nothing of it is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ntkit.kernels.materialized import materialized
from ntkit.kernels.memory import at_once

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
    values = lax.map(jax.checkpoint(f), divided(batch, balanced(n, size)))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], values)


def rectangle(f: Callable[[Batch, Batch], Array], first: Batch, second: Batch, sizes: tuple[int, int]) -> Array:
    """Compute `f` for every element of one batch with every element of another.

    **Arguments:** `f`: gives (b1, b2, …) for batches of b1 and b2. `first`, `second`: pytrees of arrays (n1, …) and
    (n2, …). `sizes`: the largest b1 and b2.

    **Returns:** (n1, n2, …).
    """
    n1, n2 = _length(first), _length(second)
    if n1 <= sizes[0] and n2 <= sizes[1]:
        return f(first, second)
    blocks1, blocks2 = (
        divided(batch, balanced(n, b)) for batch, n, b in zip((first, second), (n1, n2), sizes, strict=True)
    )
    rows = lax.map(lambda one: lax.map(lambda two: jax.checkpoint(f)(one, two), blocks2), blocks1)
    return _together(rows)[:n1, :n2]


def triangle(
    f: Callable[[Batch, Batch], Array],
    batch: Batch,
    diagonal: Array,
    size: int,
    own_pairs: Callable[[Batch], Array] | None = None,
) -> Array:
    """Compute a symmetric `f` for every element of a batch with every other, each pair of blocks once.

    **Arguments:** as in [`rectangle`][]; f(a, b) is the transpose of f(b, a) up to rounding. `diagonal`: (n,), the
    exact values of each element with itself. `own_pairs`: f(a, a), but for the diagonal, if something else gives it.

    **Returns:** (n, n), symmetric to the last bit.
    """
    n = _length(batch)

    # Stored: XLA would compute a block again for its mirror image, along the slow axis.
    def own(batch: Batch, diagonal: Array) -> Array:
        values = materialized(f(batch, batch) if own_pairs is None else own_pairs(batch))
        return jnp.where(jnp.eye(len(values), dtype=bool), diagonal[:, None], (values + values.T) / 2)

    if n <= size:
        return own(batch, diagonal)
    # Blocks sit around a table, and each meets those of the half circle to its right: with an odd number of them every
    # pair meets once, and all of them have the same to do.
    count = -(-n // size) // 2 * 2 + 1
    half, size = count // 2, -(-n // count)
    # The last blocks share elements with those before them rather than be filled up.
    starts = np.minimum(np.arange(count) * size, n - size)
    blocks = jax.tree.map(lambda a: a[starts[:, None] + np.arange(size)], (batch, diagonal))
    around = jax.tree.map(lambda a: jnp.concatenate([a, a[:half]]), blocks[0])
    places = jnp.asarray(np.concatenate([starts, starts[:half]]))

    def meet_all(result: Array, here: tuple[Array, Batch]) -> tuple[Array, None]:
        first, one = here
        at, others = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, first + 1, half), (places, around))

        def meet(result: Array, here: tuple[Array, Batch]) -> tuple[Array, None]:
            second, other = here
            values = materialized(jax.checkpoint(f)(one, other))
            result = lax.dynamic_update_slice(result, values, (places[first], second))
            return lax.dynamic_update_slice(result, values.T, (second, places[first])), None

        return lax.scan(meet, result, (at, others))[0], None

    def meet_itself(result: Array, here: tuple[Array, tuple[Batch, Array]]) -> tuple[Array, None]:
        place, block = here
        return lax.dynamic_update_slice(result, jax.checkpoint(own)(*block), (place, place)), None

    result, _ = lax.scan(meet_all, jnp.zeros((n, n), diagonal.dtype), (jnp.arange(count), blocks[0]))
    # These come last: where blocks share elements, one met the other as if they were two.
    return lax.scan(meet_itself, result, (places[:count], blocks))[0]


def in_blocks(
    pairs: Callable[[Array, Array | None], Array],
    diagonal: Callable[[Array], Array],
    x1: Array,
    x2: Array | None,
    each: float,
) -> Array:
    """Compute what is not bounded by itself, on blocks of pairs: K(x1, x2), or K(x1) for `x2=None`.

    **Arguments:** `pairs`: gives K of two batches, or of one. `diagonal`: that of K. `each`: bytes that it takes for
    one pair while many are in flight.
    """
    most = at_once(each)
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    if n1 * n2 <= most:
        return pairs(x1, x2)
    if x2 is None:
        return triangle(pairs, x1, diagonal(x1), max(1, math.isqrt(most)))
    rows = min(n1, max(math.isqrt(most), most // n2))
    return rectangle(pairs, x1, x2, (rows, max(1, most // rows)))


def _length(batch: Batch) -> int:
    return int(jax.tree.leaves(batch)[0].shape[0])


def divided(batch: Batch, size: int) -> Batch:
    """Divide arrays (n, …) into (count, size, …), filled up with their first elements, where all is finite."""
    n = _length(batch)
    count = -(-n // size)

    def divide(a: Array) -> Array:
        filled = jnp.concatenate([a, a[: count * size - n]])
        return filled.reshape(count, size, *a.shape[1:])

    return jax.tree.map(divide, batch)


def _together(blocks: Array) -> Array:
    rows, columns, b1, b2, *rest = blocks.shape
    return jnp.moveaxis(blocks, 2, 1).reshape(rows * b1, columns * b2, *rest)
