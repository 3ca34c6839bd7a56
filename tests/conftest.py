import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

# Linux gives a process 65,530 memory maps by default. XLA takes some for every function that it compiles, keeps them as
# long as JAX keeps the function, and crashes without any left.
MAPS, LOOK_EVERY = Path("/proc/self/maps"), 10
MOST_MAPS = 30_000

# Nearly all of the tests' time is compilation of what then runs for milliseconds. Whoever sets the variable decides:
# CI runs the numerical tests as users run the library, too. The second way is three times as fast to compile as the
# first, and XLA ends a process whose flags it does not know: not all versions have that one.
PLAIN = "--xla_backend_optimization_level=0"
FAST = f"{PLAIN} --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
if "XLA_FLAGS" not in os.environ:
    tried = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": FAST},
        capture_output=True,
    )
    # The workers inherit it.
    os.environ["XLA_FLAGS"] = PLAIN if tried.returncode else FAST


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test; what was set before is set again after it."""
    # Where the switch is depends on the version of JAX.
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield


_TESTS = itertools.count()


@pytest.fixture(autouse=True)
def _few_maps() -> Iterator[None]:
    """Forget what was compiled before it is too much for one process."""
    yield
    if next(_TESTS) % LOOK_EVERY == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
