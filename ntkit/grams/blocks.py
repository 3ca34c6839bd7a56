"""Gram matrices in blocks, so that memory is bounded by a block and not by the number of pairs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_batch, check_flag, check_integer, check_path, traced
from ntkit.grams import identity
from ntkit.grams.rounds import Inputs, Round, on_mesh, on_one_device
from ntkit.grams.store import Store
from ntkit.grams.tiles import Tile, Tiling, cut
from ntkit.kernels import Kernel, memory
from ntkit.kernels.base import check_kernel
from ntkit.kernels.inputs import check_pair
from ntkit.runs.bars import progress as show_progress
from ntkit.runs.meshes import check_mesh, spans_processes
from ntkit.runs.processes import Group

# Inputs of a block's side. Larger ones are no faster, but cost memory, and time when a block is lost to a kill; a pair
# of images may take a thousand times as long as one of vectors. No powers of 2: their rows compete for the same places
# in a CPU's cache, and mirroring a block takes up to ten times as long.
SIDE, IMAGE_SIDE = 1000, 500

Compute: TypeAlias = Callable[[Sequence[Tile]], Iterator[Round]]


@overload
def gram(
    kernel: Kernel,
    x1: Float[ArrayLike, "n1 ..."],
    x2: Float[ArrayLike, "n2 ..."] | None = None,
    *,
    block_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    store: None = None,
    progress: bool = False,
) -> Float[Array, "n1 n2"]: ...


@overload
def gram(
    kernel: Kernel,
    x1: Float[ArrayLike, "n1 ..."],
    x2: Float[ArrayLike, "n2 ..."] | None = None,
    *,
    block_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    store: str | os.PathLike[str],
    progress: bool = False,
) -> Float[np.memmap, "n1 n2"]: ...


def gram(
    kernel: Kernel,
    x1: Float[ArrayLike, "n1 ..."],
    x2: Float[ArrayLike, "n2 ..."] | None = None,
    *,
    block_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Float[Array, "n1 n2"] | Float[np.memmap, "n1 n2"]:
    """Give the Gram matrix of two batches of inputs, computed in square blocks.

    Equal to `kernel(x1, x2)` up to rounding, for batches whose pairs would not fit in memory all at once. Only the
    inputs of a block are on the device, so that `x1` and `x2` may be NumPy memory maps. While being traced (inside
    `jit`, `grad` or `vmap`) it is `kernel(x1, x2)` in one piece. `docs/gram.md` tells more about `mesh` and `store`.

    **Arguments:**

    - `kernel`: the kernel.
    - `x1`, `x2`: as in [`Kernel.__call__`][]. `x2=None`: `x1` with itself; blocks below the diagonal are mirrored,
      not computed.
    - `block_size`: at most so many inputs in a block's side. Default: 1000 vectors or 500 images; a matrix that needs
      less than 1 GiB is one block. A store keeps the size that it was begun with.
    - `mesh`: compute on all devices of this mesh, whatever its axes, one block each at a time. If they belong to
      several processes, all of these must make the same call, with the same inputs; each gets the whole matrix.
    - `store`: a directory to keep the matrix in, new, empty or a store already. Finished blocks survive a kill, and the
      same call goes on from there; when all are finished it returns at once. Several processes must share it.
    - `progress`: whether to show a progress bar on stderr.

    **Returns:** an array (n1, n2) of the inputs' floating dtype, in the host's memory until it is whole; with a `store`
    a read-only memory map of it.

    **Raises:** `ValueError` that names the argument, also for a store that holds another matrix; `BlockingIOError` if
    another process is writing to the store; `OSError` if its disk is full.

    **Warns:** [`StoreWarning`][] if blocks of the store were damaged and are computed again, or if it was begun with
    other versions of packages.
    """
    check_kernel("kernel", kernel)
    x1, x2, dtypes = _check_inputs(x1, x2)
    block_size = None if block_size is None else check_integer("block_size", block_size)
    if mesh is not None:
        check_mesh(mesh)
    progress = check_flag("progress", progress)
    directory = None if store is None else check_path("store", store)
    if traced(kernel, x1, x2):
        if directory is not None:
            raise ValueError(f"store: got {str(store)!r} inside jit, grad or vmap, expected None there")
        return kernel(x1, x2)
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    if mesh is None and directory is None:
        most = memory.pairs_at_once(dtypes[0].itemsize, memory.BLOCK)
        if n1 * n2 <= most if block_size is None else max(n1, n2) <= block_size:
            return kernel(x1, x2)
    side = block_size
    if side is None:
        side = SIDE if x1.ndim == 2 else IMAGE_SIDE
        if mesh is not None:
            side = min(side, _side_for_all(mesh.devices.size, n1, n2, x2 is None))
    tiling = cut(n1, n2, side, x2 is None)
    group = Group(mesh is not None and spans_processes(mesh))
    compute = functools.partial(on_one_device, kernel, x1, x2)
    if mesh is not None:
        compute = functools.partial(on_mesh, mesh, kernel, x1, x2, everywhere=group.several and directory is None)
    dtype = np.dtype(jnp.promote_types(*dtypes))
    if directory is None:
        group.check_same(kernel=jax.tree.leaves(kernel), x1=x1, x2=x2, block_size=block_size)
        return _in_memory(compute, tiling, dtype, progress and group.leads)
    what = {
        "kernel": identity.of_kernel(kernel),
        "sample": identity.sample(kernel, x1, x2),
        "x1": identity.of_inputs(x1, dtypes[0]),
        "x2": None if x2 is None else identity.of_inputs(x2, dtypes[1]),
        "shape": [n1, n2],
        "symmetric": x2 is None,
        "dtype": dtype.name,
    }
    return _in_store(directory, what, compute, tiling, block_size is not None, group, progress)


def _check_inputs(x1: ArrayLike, x2: ArrayLike | None) -> tuple[Inputs, Inputs | None, list[np.dtype[Any]]]:
    """Check both batches as a kernel does, but leave those on the host there; give the dtypes that a kernel sees."""
    left, right = _on_host("x1", x1), None if x2 is None else _on_host("x2", x2)
    one, two = check_pair(_some(left), None if right is None else _some(right))
    return left, right, [one.dtype, one.dtype if two is None else two.dtype]


def _on_host(name: str, x: ArrayLike) -> Inputs:
    array = check_batch(name, x)
    if isinstance(array, jax.Array) and not (traced(array) or array.is_fully_addressable or array.is_fully_replicated):
        raise ValueError(f"{name}: got an array of which each process has a part, expected all of it in each")
    return array


def _some(x: Inputs) -> Inputs:
    """Give enough of a batch to learn what a kernel makes of it, without a copy of the rest."""
    return x if isinstance(x, jax.Array) else x[:1]


def _side_for_all(devices: int, n1: int, n2: int, symmetric: bool) -> int:
    """Give a block's side that makes two blocks or more per device, so that few of them wait at the end."""
    side = (n1 * n2 / (2 if symmetric else 1) / (2 * devices)) ** 0.5
    if side > min(n1, n2):
        side = max(n1, n2) / (2 * devices)
    return max(1, int(side))


def _in_memory(compute: Compute, tiling: Tiling, dtype: np.dtype[Any], progress: bool) -> Array:
    matrix = _aligned(tiling.n1, tiling.n2, dtype)
    tiles = tiling.tiles()
    done = 0
    with show_progress(len(tiles), "gram", enabled=progress) as bar:
        for together, blocks in compute(tiles):
            for tile, block in blocks:
                matrix[tile.rows, tile.columns] = block
                if tiling.symmetric and not tile.diagonal:
                    matrix[tile.columns, tile.rows] = block.T
            done += len(together)
            bar.update(done)
    # Nobody else has the matrix: on a CPU, JAX's array may be this memory.
    return jax.device_put(matrix, may_alias=True)


def _aligned(n1: int, n2: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Give an empty matrix that JAX can use as it is: from 64 bytes' alignment on it does not copy."""
    memory = np.empty(n1 * n2 * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n1 * n2 * dtype.itemsize].view(dtype).reshape(n1, n2)


def _in_store(
    path: Path,
    what: dict[str, Any],
    compute: Compute,
    tiling: Tiling,
    chosen: bool,
    group: Group,
    progress: bool,
) -> np.memmap[Any, Any]:
    """Complete a store: all processes of the group write blocks, and the leading one does the rest."""
    store, whole = None, set()
    try:
        with group.together():
            if group.leads:
                store = Store.open(path, what) or Store.create(path, what, tiling)
                if store.matrix() is None:
                    if chosen and store.tiling != tiling:
                        raise ValueError(
                            f"block_size: got blocks of {tiling.rows}×{tiling.columns}, expected None, or the "
                            f"{store.tiling.rows}×{store.tiling.columns} that the store was begun with"
                        )
                    whole = store.prepare()
        with group.together():
            # Held against the inputs of this process too.
            store = store or Store.open(path, what)
            if store is None:
                raise ValueError(f"store: got {str(path)!r}, which is not the same directory in all processes")
        if group.agree(np.asarray(store.matrix() is None)):
            _fill(store, whole, compute, group, progress)
    finally:
        if store is not None and group.leads:
            store.release()
    matrix = store.matrix()
    if matrix is None:
        raise OSError(f"store: gram.npy in {str(path)!r} is not there or not whole, though it was finished")
    return matrix


def _fill(store: Store, whole: set[str], compute: Compute, group: Group, progress: bool) -> None:
    """Compute the blocks that the leading process does not have among the whole ones."""
    tiles = store.tiling.tiles()
    absent = group.agree(np.array([tile.name not in whole for tile in tiles]))
    missing = [tile for tile, is_absent in zip(tiles, absent, strict=True) if is_absent]
    done = len(tiles) - len(missing)
    written: list[Tile] = []
    with show_progress(len(tiles), "gram", start=done, enabled=progress and group.leads) as bar:
        for together, blocks in compute(missing):
            with group.together():
                if group.leads:
                    store.add(written)
                for tile, block in blocks:
                    store.write(tile, block)
            written = together
            done += len(together)
            bar.update(done)
        with group.together():
            if group.leads:
                store.add(written)
                store.finish()
