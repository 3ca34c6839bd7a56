"""What evaluates the blocks of a Gram matrix: one device, or all those of a mesh, of one process or of several."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ntkit.grams.tiles import Tile
from ntkit.kernels import Kernel
from ntkit.runs.meshes import on_each, with_one_axis

Inputs: TypeAlias = Array | np.ndarray

Work = TypeVar("Work")


class Round(NamedTuple):
    """Blocks that were computed at once: all of them, and what this process has of them."""

    tiles: list[Tile]
    blocks: list[tuple[Tile, np.ndarray]]


_AXIS = "blocks"


def on_one_device(kernel: Kernel, x1: Inputs, x2: Inputs | None, tiles: Sequence[Tile]) -> Iterator[Round]:
    """Compute one block after the other where JAX computes by default."""
    other = x1 if x2 is None else x2

    def start(tile: Tile) -> Array:
        left = x1[tile.left]
        return kernel(left) if tile.diagonal else kernel(left, other[tile.right])

    return _one_ahead(tiles, start, lambda tile, block: Round([tile], [(tile, tile.owned(np.asarray(block)))]))


def on_mesh(
    mesh: Mesh, kernel: Kernel, x1: Inputs, x2: Inputs | None, tiles: Sequence[Tile], *, everywhere: bool
) -> Iterator[Round]:
    """Deal blocks to the devices of a mesh, one each per round.

    **Arguments:** `everywhere`: whether each process gets all blocks, and not only those of its own devices.
    """
    # JAX may have sharded an array over the very mesh; each device wants other rows of it.
    x1 = np.asarray(x1)
    other = x1 if x2 is None else np.asarray(x2)
    mesh = with_one_axis(mesh, _AXIS)
    devices = mesh.devices.size
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))

    def stacked(x: np.ndarray, windows: list[slice]) -> Array:
        # Devices that are left without a block in the last round repeat its last one.
        windows += [windows[-1]] * (devices - len(windows))
        shape = (devices, windows[0].stop - windows[0].start, *x.shape[1:])
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)

        def rows(index: Any) -> np.ndarray:
            return np.asarray(x[windows[index[0].start or 0]], dtype)[None]

        return jax.make_array_from_callback(shape, sharding, rows)

    def start(batch: list[Tile]) -> Array:
        left = stacked(x1, [tile.left for tile in batch])
        right = None if batch[0].diagonal else stacked(other, [tile.right for tile in batch])
        return _round(mesh, everywhere, kernel, left, right)

    def finish(batch: list[Tile], blocks: Array) -> Round:
        if everywhere:
            own = dict(enumerate(np.asarray(blocks.addressable_data(0))))
        else:
            own = {shard.index[0].start or 0: np.asarray(shard.data)[0] for shard in blocks.addressable_shards}
        return Round(batch, [(tile, tile.owned(own[i])) for i, tile in enumerate(batch) if i in own])

    return _one_ahead(_deal(tiles, devices), start, finish)


def _deal(tiles: Sequence[Tile], devices: int) -> Iterator[list[Tile]]:
    """Give rounds of one block per device; those of one round are all on the diagonal, or none is."""
    for diagonal in (True, False):
        alike = [tile for tile in tiles if tile.diagonal == diagonal]
        for i in range(0, len(alike), devices):
            yield alike[i : i + devices]


def _one_ahead(
    work: Iterable[Work], start: Callable[[Work], Array], finish: Callable[[Work, Array], Round]
) -> Iterator[Round]:
    """Start each piece of work before the one before it is read: devices compute while the host copies."""
    pending: tuple[Work, Array] | None = None
    for item in work:
        started = start(item)
        if pending is not None:
            yield finish(*pending)
        pending = (item, started)
    if pending is not None:
        yield finish(*pending)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _round(mesh: Mesh, everywhere: bool, kernel: Kernel, left: Array, right: Array | None) -> Array:
    def block(kernel: Kernel, left: Array, right: Array | None) -> Array:
        result = kernel(left[0], None if right is None else right[0])
        return jax.lax.all_gather(result, _AXIS) if everywhere else result[None]

    spread, whole = PartitionSpec(_AXIS), PartitionSpec()
    blocks = on_each(mesh, block, (whole, spread, spread), whole if everywhere else spread)
    return blocks(kernel, left, right)
