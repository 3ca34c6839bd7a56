"""A value that XLA computes once and stores."""

from __future__ import annotations

import jax
from jax import lax
from jaxtyping import Array


def materialized(value: Array) -> Array:
    """Give a value as it is, and have XLA compute it once and store it.

    Left alone it computes cheap values again in every place that reads them, inside loops that then do not vectorize:
    on a CPU that took four to ten times as long.
    """
    if jax.default_backend() != "cpu":
        return lax.optimization_barrier(value)
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:  # experimental names do not stay
        return lax.optimization_barrier(value)
    # A call's result is stored. Before JAX 0.12 or so a barrier is gone by the time XLA decides what to fuse.
    with set_xla_metadata(inlineable="false"):
        return _itself(value)


_itself = jax.jit(lambda value: value)
