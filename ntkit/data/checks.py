"""Checks of images and labels where they enter the library: one `ValueError`, one line, the argument named."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkit._checks import check_array, check_batch


def check_images(name: str, images: Any) -> np.ndarray | jax.Array:
    """Check that `images` is a batch that can be computed with.

    **Arguments:**

    - `name`: the argument's name as the caller's user knows it, for the message.
    - `images`: floats (n, height, width, channels) or (n, d), none of these 0. Traced arrays are checked for shape
      and dtype only.

    **Returns:** `images` as an array of JAX's or NumPy's: what it is already, unless JAX does not take it.

    **Raises:** `ValueError` if `images` is not an array of floats, has another rank, has an empty axis, or holds NaN or
    infinity (the message gives the index of the first bad image).
    """
    x = check_batch(name, images)
    if isinstance(x, jax.core.Tracer):
        return x
    xp: Any = jnp if isinstance(x, jax.Array) else np
    finite = xp.isfinite(x)
    # A good batch costs one number's transfer from a device; only a bad one is looked through for its index.
    if not finite.all():
        bad = np.flatnonzero(~np.asarray(finite).reshape(len(x), -1).all(axis=1))
        raise ValueError(
            f"{name}: got NaN or infinity in {len(bad)} of {len(x)} images, the first at index {bad[0]}, "
            "expected finite values"
        )
    return x


def check_labels(name: str, labels: Any, n: int | None, num_classes: int) -> None:
    """Check that `labels` names one class for each of n images.

    **Arguments:**

    - `name`: the argument's name as the caller's user knows it, for the message.
    - `labels`: integers (n,) in [0, num_classes), any integer dtype. Traced labels are checked for shape and dtype
      only.
    - `n`: how many labels there must be; None for any number.
    - `num_classes`: the number of classes.

    **Raises:** `ValueError` if `labels` has another rank, length or dtype, or holds a class out of range (the message
    gives the index of the first).
    """
    y = check_array(name, labels, "integer classes (n,)")
    if y.ndim != 1:
        raise ValueError(f"{name}: got shape {y.shape}, expected (n,), one class for each image")
    if n is not None and len(y) != n:
        raise ValueError(f"{name}: got {len(y)} labels, expected {n}, one for each image")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"{name}: got dtype {y.dtype}, expected integers")
    if isinstance(y, jax.core.Tracer):
        return
    values = np.asarray(y)
    bad = np.flatnonzero((values < 0) | (values >= num_classes))
    if len(bad):
        raise ValueError(
            f"{name}: got {values[bad[0]]} at index {bad[0]}, expected classes from 0 to {num_classes - 1}"
        )
