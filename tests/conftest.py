import gc
import itertools
import os
import signal
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

# Most of the tests' time is compilation of what then runs for milliseconds. Whoever sets the variable decides: CI runs
# the numerical tests as users run the library, too. The last way is three times as fast to compile as the first; XLA
# ends a process whose flags it does not know, and not all versions have all of them.
PLAIN = "--xla_backend_optimization_level=0"
WHOLE = f"{PLAIN} --xla_cpu_parallel_codegen_split_count=1"
FAST = f"{WHOLE} --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"


def known(flags: str) -> bool:
    """Whether a process of JAX begins with these."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode == 0


if "XLA_FLAGS" not in os.environ:
    # The workers inherit it.
    os.environ["XLA_FLAGS"] = next(filter(known, (FAST, WHOLE)), PLAIN)

# What was compiled is kept for the other worker, for the processes that tests start, and for the next run; JAX knows
# it again by the program, the flags and its own version. `--cache-clear` removes it. What JAX 0.6 reads back on a CPU
# solves equations wrongly.
KEPT_SINCE = (0, 10)
KEPT = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
}

# Where in Python each operation comes from would be looked up for all of them, and is in no test's messages.
jax.config.update("jax_traceback_in_locations_limit", 0)
# Most of what tracing makes lives long, and collecting garbage goes through all of it.
gc.set_threshold(100_000, 50, 100)

# Under nohup it is ignored, and so it would be in all that tests start to send it to.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    cache = getattr(config, "cache", None)
    if cache is None or "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.__version_info__ < KEPT_SINCE:
        return
    for name, value in {"JAX_COMPILATION_CACHE_DIR": str(cache.mkdir("compiled")), **KEPT}.items():
        os.environ[name] = str(value)
        # Here JAX has read its environment already.
        jax.config.update(name.lower(), value)


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
