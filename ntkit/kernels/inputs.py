"""The one check that all inputs to a kernel pass."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from ntkit._checks import check_array, check_batch


def check_inputs(name: str, x: ArrayLike) -> Array:
    """Give `x` as a JAX array of at least float32, or raise `ValueError` that names the argument."""
    x = jnp.asarray(check_batch(name, x))
    # Half precision is for storage: neither an arccos near 1 nor a Cholesky factorization survives it.
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_pair(x1: ArrayLike, x2: ArrayLike | None) -> tuple[Array, Array | None]:
    """Check two batches that a kernel is evaluated on; `x2=None` stands for `x1` again."""
    x1 = check_inputs("x1", x1)
    if x2 is None:
        return x1, None
    x2 = check_inputs("x2", x2)
    if x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"x2: got inputs of shape {x2.shape[1:]}, expected {x1.shape[1:]} as in x1")
    return x1, x2


def check_columns(v: ArrayLike, shape: tuple[int, int | None]) -> Array:
    """Give `v`, a matrix of real numbers of a shape, of which `None` is any number of columns."""
    v = jnp.asarray(check_array("v", v))
    if jnp.issubdtype(v.dtype, jnp.complexfloating):
        raise ValueError(f"v: got dtype {v.dtype}, expected real numbers")
    if v.ndim != 2 or v.shape[0] != shape[0] or (shape[1] is not None and v.shape[1] != shape[1]):
        columns = "columns" if shape[1] is None else shape[1]
        raise ValueError(f"v: got shape {v.shape}, expected ({shape[0]}, {columns})")
    return v
