"""What batches of inputs and non-negative scalars must be, whoever takes them: one rule for the whole library."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_batch(name: str, x: np.ndarray | jax.Array) -> None:
    """Raise `ValueError` that names the argument unless `x` is floats (n, height, width, channels) or (n, d).

    Only shape and dtype are looked at: values may be traced, and reading them would wait for the device.
    """
    if x.ndim not in (2, 4):
        raise ValueError(f"{name}: got shape {x.shape}, expected (n, height, width, channels) or (n, d)")
    # JAX's view of dtypes, not NumPy's: bfloat16 is a float too.
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: got dtype {x.dtype}, expected floats (images in [0, 1], or preprocessed)")
    if 0 in x.shape:
        raise ValueError(f"{name}: got shape {x.shape}, expected at least one input and one value in it")


def is_scale(value: Any) -> bool:
    """Whether `value` is a number, not a tracer, that is finite and at least 0."""
    if np.ndim(value) != 0 or not isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
        return False
    number = np.asarray(value)
    return bool(jnp.issubdtype(number.dtype, jnp.number) and np.isfinite(number) and number >= 0)
