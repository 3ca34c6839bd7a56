"""Where arrays lie: whole on every device of a mesh, or a part of their rows on each.

One device is a mesh too. Each process of several calls these functions with the same arguments.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ntkit.runs.meshes import spans_processes, with_one_axis

AXIS = "rows"
WHOLE = PartitionSpec()
ROWS = PartitionSpec(AXIS)


def flat_mesh(mesh: Mesh | None, near: object = None) -> Mesh:
    """Give all devices of a mesh one axis; without a mesh, the device of an array or the one that JAX uses."""
    if mesh is None:
        array = near if isinstance(near, jax.Array) else jnp.zeros(())
        return Mesh(np.asarray(sorted(array.devices(), key=lambda device: device.id)[:1]), (AXIS,))
    return with_one_axis(mesh, AXIS)


def replicated(mesh: Mesh, array: Array | np.ndarray) -> Array:
    """Put an array on every device."""
    sharding = NamedSharding(mesh, WHOLE)
    if not spans_processes(mesh):
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
