"""What memory cannot hold is refused before anything is computed, by the option that asks for it."""

from __future__ import annotations

import math
import os

import jax
import jax.numpy as jnp

from ntkit._checks import wrong
from ntkit.networks.training import Module


def check_fits(name: str, value: object, needed: int) -> None:
    """Raise `ValueError` if an option asks for more bytes than there are."""
    have = _memory()
    if have is not None and needed > have:
        raise wrong(name, value, f"less: it takes {needed / 1e9:,.0f} GB of memory, and there are {have / 1e9:,.0f}")


def check_gram(name: str, value: object, inputs: int) -> None:
    """Raise `ValueError` if memory cannot hold a Gram matrix of so many inputs and its Cholesky factor."""
    check_fits(name, value, 2 * 4 * inputs**2)


def check_network(name: str, value: object, module: Module, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` if memory cannot hold a network for images of a shape, its gradient and Adam's moments."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    check_fits(name, value, 4 * 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)))


def _memory() -> int | None:
    """Give the bytes of the device's memory; of a CPU, the machine's. None where nobody says."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
