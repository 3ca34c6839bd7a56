"""Where arrays lie: whole on every device of a mesh, or a part of their rows on each.

One device is a mesh too. Each process of several calls these functions with the same arguments.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

AXIS = "rows"
WHOLE = PartitionSpec()
ROWS = PartitionSpec(AXIS)


def flat_mesh(mesh: Mesh | None, near: object = None) -> Mesh:
    """Give all devices of a mesh one axis; without a mesh, the device of an array or the one that JAX uses."""
    if mesh is None:
        array = near if isinstance(near, jax.Array) else jnp.zeros(())
        return Mesh(np.asarray(sorted(array.devices(), key=lambda device: device.id)[:1]), (AXIS,))
    # The axes of the caller's mesh mean nothing here.
    return Mesh(mesh.devices.flatten(), (AXIS,))


def replicated(mesh: Mesh, array: Array | np.ndarray) -> Array:
    """Put an array on every device."""
    sharding = NamedSharding(mesh, WHOLE)
    if _is_local(mesh):
        return jax.device_put(array, sharding)
    held = np.asarray(array)
    return jax.make_array_from_callback(held.shape, sharding, lambda _: held)


def rows_apart(mesh: Mesh, matrix: Array | np.ndarray, start: int, count: int, dtype: Any) -> Array:
    """Put `count` rows of a matrix from `start` on, the same number of them on each device, and zeros after its end.

    A process reads only the rows of its own devices, so `matrix` may be a memory map that is larger than memory.
    """
    if mesh.devices.size == 1 and isinstance(matrix, jax.Array) and (start, count) == (0, len(matrix)):
        return jax.device_put(matrix.astype(dtype), NamedSharding(mesh, ROWS))
    share = -(-count // mesh.devices.size)
    shape = (share * mesh.devices.size, *matrix.shape[1:])
    held = matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        first = start + ((index[0].start or 0) if index else 0)
        rows = np.asarray(held[first : min(first + share, start + count)], dtype)
        return np.pad(rows, ((0, share - len(rows)), (0, 0))) if len(rows) < share else rows

    return jax.make_array_from_callback(shape, NamedSharding(mesh, ROWS), part)


def gathered(mesh: Mesh, array: Array) -> Array:
    """Inside compiled code: have an array whole on every device."""
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, WHOLE))


def on_each(mesh: Mesh, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Run a function on each device, on what lies there."""
    # What varies over the mesh is known here, and not every kernel's loops can say it.
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    old = importlib.import_module("jax.experimental.shard_map")
    return functools.partial(old.shard_map, check_rep=False)(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs
    )


def _is_local(mesh: Mesh) -> bool:
    return all(device.process_index == jax.process_index() for device in mesh.devices.flat)
