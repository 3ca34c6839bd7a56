"""Double precision for a part of a test."""

from contextlib import AbstractContextManager

import jax


def in_double() -> AbstractContextManager[object]:
    """Turn on x64; the name of JAX's own context depends on its version."""
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    return enable(True)
