"""Gram matrices in blocks, so that memory is bounded by a block and not by the number of pairs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit.kernels import Kernel
from ntkit.kernels._inputs import check_pair, traced
from ntkit.runs.progress import progress as show_progress

# What one block may use beside its result.
BLOCK_BYTES = 2**30


def gram(
    kernel: Kernel,
    x1: Float[ArrayLike, "n1 ..."],
    x2: Float[ArrayLike, "n2 ..."] | None = None,
    *,
    block_size: int | None = None,
    progress: bool = False,
) -> Float[Array, "n1 n2"]:
    """Give the Gram matrix of two batches of inputs, computed in square blocks.

    Equal to `kernel(x1, x2)`, for batches whose pairs would not fit in memory all at once. The blocks are put together
    in the host's memory; while being traced (inside `jit`, `grad` or `vmap`) it is `kernel(x1, x2)` in one piece.

    **Arguments:**

    - `kernel`: the kernel.
    - `x1`, `x2`: as in [`Kernel.__call__`][]. `x2=None`: `x1` with itself; blocks below the diagonal are mirrored,
      not computed.
    - `block_size`: inputs of a block's side. Default: as many as need about 1 GiB by `kernel.pair_bytes`.
    - `progress`: whether to show a progress bar on stderr.

    **Returns:** an array (n1, n2) of the inputs' floating dtype.

    **Raises:** `ValueError` that names the argument.
    """
    if not isinstance(kernel, Kernel):
        raise ValueError(
            f"kernel: got {type(kernel).__name__}, expected an ntkit.Kernel such as ntkit.ntk(ntkit.fc(1))"
        )
    x1, x2 = check_pair(x1, x2)
    if block_size is None:
        block_size = max(1, int((BLOCK_BYTES / kernel.pair_bytes(x1.shape[1:], x1.dtype.itemsize)) ** 0.5))
    if isinstance(block_size, bool) or not isinstance(block_size, int | np.integer) or block_size < 1:
        raise ValueError(f"block_size: got {block_size!r}, expected an integer of at least 1")
    other = x1 if x2 is None else x2
    if max(len(x1), len(other)) <= block_size or traced(kernel, x1, x2):
        return kernel(x1, x2)
    rows, columns = _starts(len(x1), block_size), _starts(len(other), block_size)
    blocks = [(i, j) for i in rows for j in columns if x2 is not None or i <= j]
    result = np.empty((len(x1), len(other)), jnp.promote_types(x1.dtype, other.dtype))
    with show_progress(len(blocks), "gram", enabled=progress) as bar:
        for done, (i, j) in enumerate(blocks, start=1):
            left, right = x1[i : i + block_size], other[j : j + block_size]
            block = kernel(left) if x2 is None and i == j else kernel(left, right)
            result[i : i + len(left), j : j + len(right)] = block
            if x2 is None and i < j:
                result[j : j + len(right), i : i + len(left)] = np.asarray(block).T
            bar.update(done)
    return jnp.asarray(result)


def _starts(n: int, block_size: int) -> list[int]:
    """Where blocks begin: the last one ends at n and overlaps the one before, so that all have one shape."""
    if n <= block_size:
        return [0]
    return [*range(0, n - block_size, block_size), n - block_size]
