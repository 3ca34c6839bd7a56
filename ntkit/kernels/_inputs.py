"""The one check that every batch of inputs to a kernel passes."""

from __future__ import annotations

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
