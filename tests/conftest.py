import os
from collections.abc import Iterator

import jax
import pytest

# Nearly all of the tests' time is compilation of what then runs for milliseconds. Whoever sets the variable decides:
# CI runs the numerical tests as users run the library, too.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test; what was set before is set again after it."""
    # Where the switch is depends on the version of JAX.
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield
