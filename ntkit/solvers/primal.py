"""Regression on features: a system of m × m numbers, for which the inputs are read in parts, once."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkit._checks import check_integer, traced
from ntkit.kernels import Kernel, memory
from ntkit.kernels.finite import count_features
from ntkit.kernels.tiled import matmul


@dataclasses.dataclass(frozen=True)
class Primal:
    """Solve for the m weights of a kernel's features, (ΦᵀΦ + ridge · tr(K)/n · I) weights = Φᵀy with K = ΦΦᵀ.

    The same model as of the n × n system of the Gram matrix, in n · m² products instead of n³/3. The features of some
    inputs at a time are in memory, so that the inputs may be a NumPy memory map; inside `jit`, `grad` and `vmap` those
    of all.

    **Fields:** `block_size`: inputs at a time; `None`: as many as have 256 MiB of features.

    **Raises:** `ValueError` that names the field.
    """

    block_size: int | None = None

    def __post_init__(self) -> None:
        if self.block_size is not None:
            check_integer("block_size", self.block_size)


class Normal(NamedTuple):
    """The normal equations of n inputs: ΦᵀΦ (m, m), Φᵀy (m, outputs), and the features of some of the inputs (k, m)."""

    gram: Array
    cross: Array
    some: Array


def normal_equations(
    kernel: Kernel, x: Float[Array | np.ndarray, "n ..."], y: Float[Array | np.ndarray, "n outputs"], solver: Primal
) -> Normal:
    """Read the inputs once; what is summed up is so in double precision."""
    n, first = len(x), jnp.asarray(x[:1])
    dtype = jnp.promote_types(first.dtype, jnp.float32)
    if traced(kernel, x, y):
        return _part(kernel, x.astype(dtype), y.astype(dtype), jnp.ones(n, dtype))
    m = count_features(kernel, first.astype(dtype))
    fitting = memory.at_once(m * dtype.itemsize, memory.HELD)
    size = min(n, fitting if solver.block_size is None else solver.block_size)
    gram, cross = np.zeros((m, m)), np.zeros((m, y.shape[1]))
    for start in range(0, n, size):
        # All parts have one shape: the last is filled up with the first inputs, which do not count.
        rows = np.arange(start, start + size)
        counts = jnp.asarray(rows < n, dtype)
        part = _part(kernel, jnp.asarray(x[rows % n], dtype), jnp.asarray(y[rows % n], dtype), counts)
        gram += np.asarray(part.gram, np.float64)
        cross += np.asarray(part.cross, np.float64)
    return Normal(jnp.asarray(gram, dtype), jnp.asarray(cross, dtype), part.some)


@jax.jit
def _part(kernel: Kernel, x: Array, y: Array, counts: Array) -> Normal:
    features = kernel.gram_features(x) * counts[:, None]
    return Normal(matmul(features.T, features), matmul(features.T, y), features)


@jax.jit
def rounded(gram: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Give ΦᵀΦ with other roundings than its own: as large, and drawn at random."""
    noise = jax.random.normal(jax.random.key(0), gram.shape, gram.dtype)
    lengths = jnp.sqrt(jnp.diagonal(gram))
    return gram + jnp.finfo(gram.dtype).eps * (noise + noise.T) / 2 * lengths[:, None] * lengths[None]
