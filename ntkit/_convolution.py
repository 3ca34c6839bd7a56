"""Padding that XLA does not have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkit.architectures import Padding


def padded(
    x: Float[Array, "n height width channels"], window: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> tuple[Float[Array, "n h w channels"], str]:
    """Give images around which the other end is where zeros would be, if asked for, and the padding that is left."""
    if padding != "CIRCULAR":
        return x, padding
    pads = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, "SAME")
    return jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="wrap"), "VALID"
