"""The one check that all inputs to a kernel pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike


def check_inputs(name: str, x: ArrayLike) -> Array:
    """Give `x` as a JAX array, or raise `ValueError` that names the argument.

    Only shape and dtype are looked at: values may be traced, and reading them would wait for the device.
    """
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: got {type(x).__name__}, expected an array of floats") from error
    if x.ndim not in (2, 4):
        raise ValueError(f"{name}: got shape {x.shape}, expected (n, height, width, channels) or (n, d)")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: got dtype {x.dtype}, expected floats (images in [0, 1], or preprocessed)")
    if 0 in x.shape:
        raise ValueError(f"{name}: got shape {x.shape}, expected at least one input and one feature")
    return x


def check_pair(x1: ArrayLike, x2: ArrayLike | None) -> tuple[Array, Array | None]:
    """Check two batches that a kernel is evaluated on; `x2=None` stands for `x1` again."""
    x1 = check_inputs("x1", x1)
    if x2 is None:
        return x1, None
    x2 = check_inputs("x2", x2)
    if x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"x2: got inputs of shape {x2.shape[1:]}, expected {x1.shape[1:]} as in x1")
    return x1, x2


def traced(*values: object) -> bool:
    """Whether any leaf of these pytrees is a tracer, of `jit`, `grad` or `vmap`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
