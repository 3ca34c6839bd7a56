"""What is solved: a Gram matrix K as products with it, wherever its entries are."""

from __future__ import annotations

import abc
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ntkit._checks import check_integer, traced, wrong
from ntkit.grams import gram as gram_in_blocks
from ntkit.kernels import Kernel, memory
from ntkit.kernels.base import check_kernel
from ntkit.kernels.tiled import matmul
from ntkit.runs.meshes import check_mesh, on_each
from ntkit.solvers import products
from ntkit.solvers.placement import ROWS, WHOLE, flat_mesh, gathered, replicated, rows_apart

# Inputs on a side of a tile that is not worth cutting.
_SMALL = 128


class Operator(abc.ABC):
    """A Gram matrix K (n, n), symmetric and positive semi-definite, of which only parts are looked at.

    What takes or gives arrays takes and gives them whole on every device of `mesh`; its one axis is the operator's own.
    """

    size: int
    dtype: np.dtype

    @property
    @abc.abstractmethod
    def mesh(self) -> Mesh:
        """The devices that compute."""

    @abc.abstractmethod
    def matvec(self, v: Float[Array, "n outputs"]) -> Float[Array, "n outputs"]:
        """Give K v."""

    @abc.abstractmethod
    def diagonal(self) -> Float[np.ndarray, " n"]:
        """Give the diagonal of K."""

    @abc.abstractmethod
    def columns(self, indices: Int[np.ndarray, " k"]) -> Float[Array, "n k"]:
        """Give some columns of K."""

    @abc.abstractmethod
    def dense(self) -> Float[Array, "n n"]:
        """Give all of K, in memory."""


class InMemory(Operator):
    """A Gram matrix that is an array; over a mesh, each device holds a part of its rows.

    **Arguments:** `gram`: (n, n). `mesh`: its devices; `None`: where the array is.
    """

    def __init__(self, gram: Float[Array | np.ndarray, "n n"], mesh: Mesh | None = None) -> None:
        self._gram = gram
        self.size, self.dtype = len(gram), _dtype_of(gram)
        self._asked = mesh

    @functools.cached_property
    def mesh(self) -> Mesh:
        return flat_mesh(self._asked, self._gram)

    @functools.cached_property
    def _rows(self) -> Array:
        return rows_apart(self.mesh, self._gram, 0, self.size, self.dtype)

    def matvec(self, v: Array) -> Array:
        return _product(self.mesh, self._rows, v)[: self.size]

    def diagonal(self) -> np.ndarray:
        diagonal = np.diagonal(self._gram) if isinstance(self._gram, np.ndarray) else jnp.diagonal(self._gram)
        return np.asarray(diagonal, self.dtype)

    def columns(self, indices: np.ndarray) -> Array:
        return _columns(self.mesh, self._rows, replicated(self.mesh, indices))[: self.size]

    def dense(self) -> Array:
        return jnp.asarray(self._gram, self.dtype)


class OnDisk(Operator):
    """A Gram matrix that is a memory map: each product reads it once, some rows at a time, and keeps none.

    **Arguments:** `gram`: (n, n), for example of `ntkit.gram(…, store=…)`. `mesh`: each device gets a part of the rows
    of a read, and each process reads only those of its own devices. `block_size`: rows of a read; default: as many as
    are 256 MiB.
    """

    def __init__(self, gram: Float[np.memmap, "n n"], mesh: Mesh | None = None, block_size: int | None = None) -> None:
        self._gram = gram
        self.size, self.dtype = len(gram), _dtype_of(gram)
        self._asked = mesh
        fitting = memory.at_once(self.size * gram.dtype.itemsize, memory.HELD)
        self._count = min(self.size, fitting if block_size is None else block_size)

    @functools.cached_property
    def mesh(self) -> Mesh:
        return flat_mesh(self._asked)

    def matvec(self, v: Array) -> Array:
        parts: list[Array] = []
        for start in range(0, self.size, self._count):
            # All reads have one shape: zeros follow the last row.
            rows = rows_apart(self.mesh, self._gram, start, self._count, self.dtype)
            if len(parts) > 0:
                # The host reads ahead while a product is computed, and no further than that.
                parts[-1].block_until_ready()
            parts.append(_product(self.mesh, rows, v)[: self._count])
        return jnp.concatenate(parts)[: self.size]

    def diagonal(self) -> np.ndarray:
        return np.asarray(np.diagonal(self._gram), self.dtype)

    def columns(self, indices: np.ndarray) -> Array:
        # By symmetry: rows lie in one piece on a disk, columns do not.
        return replicated(self.mesh, np.asarray(self._gram[indices], self.dtype).T)

    def dense(self) -> Array:
        return jnp.asarray(self._gram, self.dtype)


class Recomputed(Operator):
    """A Gram matrix of which no more than a tile per device is ever kept: each product computes the kernel again.

    Tiles on and above the diagonal are computed, those below it mirrored.

    **Arguments:** `x`: n inputs; every device holds all of them. `mesh`: its devices share the tiles. `block_size`:
    inputs on a side of a tile, at most; default: an eighth of n, or as many as need about 64 MiB. On one device a
    kernel with a `matmul` of its own has the word.
    """

    def __init__(
        self, kernel: Kernel, x: Float[Array, "n ..."], mesh: Mesh | None = None, block_size: int | None = None
    ) -> None:
        self.kernel, self.x = kernel, x
        self.size, self.dtype = len(x), np.dtype(x.dtype)
        self._asked, self._block_size = mesh, block_size

    @functools.cached_property
    def mesh(self) -> Mesh:
        return flat_mesh(self._asked, self.x)

    def matvec(self, v: Array) -> Array:
        own = self.kernel.multiplies_by_itself(self.size, self.size, v.shape[1])
        if own and self.mesh.devices.size == 1 and self._block_size is None:
            return self.kernel.matmul(self.x, self.x, v)
        kernel, x, diagonal, tiles = self._placed
        return products.symmetric_product(self.mesh, self._side, kernel, x, diagonal, tiles, v)

    def diagonal(self) -> np.ndarray:
        return self._diagonal

    def columns(self, indices: np.ndarray) -> Array:
        kernel, x, diagonal, _ = self._placed
        # No wider than a tile is.
        parts = [
            products.columns(self.mesh, self._side, kernel, x, diagonal, replicated(self.mesh, part))
            for part in np.split(indices, range(self._side, len(indices), self._side))
        ]
        return jnp.concatenate(parts, axis=1)[: self.size]

    def dense(self) -> Array:
        return gram_in_blocks(self.kernel, self.x)

    @functools.cached_property
    def _diagonal(self) -> np.ndarray:
        return np.asarray(self.kernel.diagonal(self.x))

    @functools.cached_property
    def _tiles(self) -> int:
        """How many tiles there are along a side."""
        pairs = memory.pairs_at_once(self.dtype.itemsize)
        # A tile on the diagonal has each pair twice: of one tile that is half, of eight along a side a ninth.
        most = min(math.isqrt(pairs), max(_SMALL, -(-self.size // 8))) if self._block_size is None else self._block_size
        devices = self.mesh.devices.size
        # Of 2kd tiles along a side, kd (2kd + 1) are on or above the diagonal: as many for each of d devices.
        multiple = 1 if devices == 1 else 2 * devices
        return -(-self.size // (most * multiple)) * multiple

    @functools.cached_property
    def _side(self) -> int:
        return -(-self.size // self._tiles)

    @functools.cached_property
    def _placed(self) -> tuple[Kernel, Array, Array, Array]:
        def constant(leaf: object) -> object:
            # JAX takes NumPy's numbers for the same on every device; its own arrays are on one.
            return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf

        filled = np.arange(self._tiles * self._side) % self.size
        tiles = np.stack(np.triu_indices(self._tiles), axis=1).astype(np.int32)
        return (
            jax.tree.map(constant, self.kernel),
            replicated(self.mesh, np.asarray(self.x)[filled]),
            replicated(self.mesh, self._diagonal[filled]),
            rows_apart(self.mesh, tiles, 0, len(tiles), np.int32),
        )


def operator_of(
    kernel: Kernel, x: Array, gram: Array | np.ndarray | None, mesh: Mesh | None, block_size: int | None
) -> Operator:
    """Give K(x) as an operator: a given Gram matrix, in memory or on disk, or one that is computed again each time.

    **Raises:** `ValueError` that names the argument.
    """
    check_kernel("kernel", kernel)
    if mesh is not None:
        check_mesh(mesh)
    block_size = None if block_size is None else check_integer("block_size", block_size)
    if gram is None:
        return Recomputed(kernel, x, mesh, block_size)
    if not isinstance(gram, jax.Array | np.ndarray):
        raise wrong("gram", gram, "an array or a memory map")
    if gram.shape != (len(x), len(x)) or not jnp.issubdtype(gram.dtype, jnp.floating):
        raise ValueError(
            f"gram: got {gram.dtype} of shape {gram.shape}, expected floats of shape ({len(x)}, {len(x)}), K of x"
        )
    if isinstance(gram, np.memmap):
        return OnDisk(gram, mesh, block_size)
    # Infinities are met by the solver.
    if not traced(gram) and bool(_asymmetry(gram) > 1e-3):
        raise ValueError("gram: got one that is not symmetric, expected the Gram matrix of x")
    return InMemory(gram, mesh)


@jax.jit
def _asymmetry(gram: Array) -> Array:
    """Give the largest difference from the transpose, relative to the largest entry."""
    return jnp.max(jnp.abs(gram - gram.T)) / jnp.max(jnp.abs(gram))


@functools.partial(jax.jit, static_argnums=0)
def _product(mesh: Mesh, rows: Array, v: Array) -> Array:
    return gathered(mesh, on_each(mesh, matmul, (ROWS, WHOLE), ROWS)(rows, v))


@functools.partial(jax.jit, static_argnums=0)
def _columns(mesh: Mesh, rows: Array, indices: Array) -> Array:
    return gathered(mesh, on_each(mesh, lambda rows, indices: rows[:, indices], (ROWS, WHOLE), ROWS)(rows, indices))


def _dtype_of(gram: Array | np.ndarray) -> np.dtype:
    # What is stored in half precision is not solved in it; float64 is float32 unless x64 is on.
    return np.dtype(jax.dtypes.canonicalize_dtype(jnp.promote_types(gram.dtype, jnp.float32)))
