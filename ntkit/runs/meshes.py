"""Devices of one process or of several: what runs on each of them, and what they hold together."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

Function = TypeVar("Function", bound=Callable[..., Any])


def on_each(mesh: Mesh, function: Function, in_specs: Any, out_specs: Any) -> Function:
    """Run a function on each device of a mesh, on what lies there."""
    # What varies over the mesh is known here, and not every kernel's loops can say it.
    if hasattr(jax, "shard_map"):
        shard_map: Any = functools.partial(jax.shard_map, check_vma=False)
    else:
        old = importlib.import_module("jax.experimental.shard_map")
        shard_map = functools.partial(old.shard_map, check_rep=False)
    mapped: Function = shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    return mapped


def with_one_axis(mesh: Mesh, name: str) -> Mesh:
    """Give all devices of a mesh one axis: those of a caller's mesh mean nothing here."""
    return Mesh(mesh.devices.flatten(), (name,))


def spans_processes(mesh: Mesh) -> bool:
    """Whether the devices of a mesh belong to more than one process."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def check_mesh(mesh: Mesh) -> None:
    """Raise `ValueError` unless the devices of `mesh` are some of this process, or of all processes."""
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: got {type(mesh).__name__}, expected a jax.sharding.Mesh")
    processes = {device.process_index for device in mesh.devices.flat}
    if processes not in ({jax.process_index()}, set(range(jax.process_count()))):
        raise ValueError(
            f"mesh: got devices of the processes {sorted(processes)}, expected those of process {jax.process_index()}, "
            f"which asks, or of all {jax.process_count()}"
        )
