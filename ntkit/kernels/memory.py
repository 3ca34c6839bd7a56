"""How much is computed at once: the one place that knows what fits.

Whatever is computed in parts, pairs of inputs, derivatives, rows of a matrix, asks [`at_once`][] how many of these to
take. The sizes are of what is made on the way, beside inputs and results.
"""

from __future__ import annotations

import jax

# What stays in a CPU's second cache. Measured.
CACHE = 2**18
# What compiled code works on before it goes on to the next part.
TILE = 2**26
# What is held of a batch while it meets others: derivatives of its inputs, rows of a matrix that is read.
HELD = 2**28
# What one call may make of a whole that is larger.
BLOCK = 2**30
# The share of an accelerator's memory that compiled code may take, and its memory where it says nothing of it.
SHARE, DEVICE = 1 / 8, 2**34


def at_once(each: float, memory: float | None = None) -> int:
    """Give how many things of `each` bytes are taken at once, in a tile's memory or more of it: one at least."""
    return max(1, int((TILE if memory is None else memory) // max(1, each)))


def of_device() -> float:
    """Give what compiled code may take of an accelerator's memory."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return float(statistics.get("bytes_limit", DEVICE) * SHARE)


def pairs_at_once(itemsize: int, memory: float | None = None) -> int:
    """Give how many pairs of inputs a kernel is asked for at once, of numbers of `itemsize` bytes.

    A kernel bounds what it makes on the way by itself; its result is there up to three times, as it is put together.
    """
    return at_once(3 * itemsize, memory)
