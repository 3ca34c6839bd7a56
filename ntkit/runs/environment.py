"""What a result's bits depend on besides the configuration: package versions and the device."""

import os
import platform
from importlib import metadata

import jax

_PACKAGES = (
    "ntkit",
    "jax",
    "jaxlib",
    "neural-tangents",
    "numpy",
    "scipy",
    "flax",
    "optax",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "jax-rocm7-plugin",
    "libtpu",
)


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that compute results, without importing them."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, object]:
    """JAX's device and the settings that change its arithmetic, as JSON values. Starts JAX's backend."""
    found: dict[str, object] = {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        "x64": _setting("jax_enable_x64"),
        "matmul_precision": _setting("jax_default_matmul_precision"),
        "prng": _setting("jax_default_prng_impl"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if found["platform"] == "cpu":
        # XLA splits sums over the threads it has, and the order of a sum is in its bits.
        found["threads"] = _threads()
    return found


def _setting(name: str) -> object:
    return getattr(jax.config, name, None)


def _threads() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
