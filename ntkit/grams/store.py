"""A Gram matrix on disk that grows block by block, and can be killed at any moment.

In the directory:

- `gram.json`: what the matrix is of. Whoever asks for another one is refused.
- `blocks/`: finished blocks, each in a file of its own that appears whole: its SHA-256, then its numbers.
- `gram.npy.partial`: the matrix, into which blocks are copied from time to time; renamed to `gram.npy` at the end.
- `checksums.json`: the SHA-256 of each block that is in the matrix. A block's own file goes when it stands there.

So the disk holds the matrix once, and at most `PENDING_BYTES` of blocks beside it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ntkit._checks import check_file
from ntkit.grams import manifest as manifests
from ntkit.grams.tiles import Tile, Tiling
from ntkit.runs import lock
from ntkit.runs.files import atomic_write, is_temporary, sync_directory

# Blocks that wait to be copied into the matrix: copying many at once costs one wait for the disk, not one each.
PENDING_BYTES = 2**30
_DIGEST_BYTES = hashlib.sha256().digest_size
_HEADER_BYTES = 128


class StoreWarning(UserWarning):
    """A store holds damaged blocks, which are computed again, or was begun with other versions of packages."""


class Store:
    """A directory with a Gram matrix, found by `Store.open` or made by `Store.create`.

    One process calls `prepare`, then `add` for blocks that it or others did `write`, then `finish`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        (n1, n2), (rows, columns) = manifest["shape"], manifest["block"]
        self.tiling = Tiling(n1, n2, rows, columns, manifest["symmetric"])
        self.dtype = np.dtype(manifest["dtype"])
        self._identity = json.dumps([manifest[key] for key in (*manifests.IDENTITY, "dtype", "block")]).encode()
        self._checksums: dict[str, str] = {}
        self._pending: list[Tile] = []

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any]) -> Store | None:
        """Find the store in a directory, None if there is none, or raise `ValueError` if it is of something else."""
        manifest = manifests.read(path)
        if manifest is None:
            return None
        manifests.check(path, manifest, identity)
        for entry in path.iterdir():
            if entry.name not in (".lock", "blocks"):
                check_file("store", entry, "a file of a store")
        return cls(path, manifest)

    @classmethod
    def create(cls, path: Path, identity: dict[str, Any], tiling: Tiling) -> Store:
        """Begin a store in a new or empty directory, as the process that writes to it.

        **Raises:** `ValueError` if the directory holds other things; `BlockingIOError` if another process was faster.
        """
        if path.exists() and not path.is_dir():
            raise ValueError(f"store: got {str(path)!r}, which is a file, expected a directory")
        path.mkdir(parents=True, exist_ok=True)
        others = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock" and not is_temporary(entry))
        if others:
            raise ValueError(
                f"store: got {str(path)!r}, which contains {others[0]!r}, expected a new or empty directory, or a store"
            )
        _acquire(path)
        try:
            opened = cls.open(path, identity)
            if opened is not None:
                # Another process was faster, and has ended.
                return opened
            with _room(path):
                return cls(path, manifests.write(path, identity, tiling))
        except BaseException:
            _release(path)
            raise

    def matrix(self) -> np.memmap[Any, Any] | None:
        """Give the complete matrix as a read-only memory map, or None if it is not complete."""
        try:
            with open(self._final, "rb") as file:
                whole = os.fstat(file.fileno()).st_size == self._bytes and file.read(_HEADER_BYTES) == self._header()
        except FileNotFoundError:
            return None
        return np.load(self._final, mmap_mode="r") if whole else None

    def prepare(self) -> set[str]:
        """Become the process that writes, and give the names of the blocks that are there and have their checksums.

        Damaged ones are removed, with a [`StoreWarning`][].

        **Raises:** `BlockingIOError` if another process writes to the store; `OSError` if the disk is too small.
        """
        _acquire(self.path)
        changed = manifests.changed_versions(self.manifest)
        if changed:
            self._warn(f"was begun with {', '.join(changed)}; the blocks to come may differ from its own in rounding")
        (self.path / "blocks").mkdir(exist_ok=True)
        for entry in (*self.path.iterdir(), *self._blocks()):
            if is_temporary(entry):
                entry.unlink()
        if self._final.exists():
            # Cut off, or written over: its checksums say what of it is left.
            os.replace(self._final, self._partial)
        with self._room(), open(self._partial, "ab"), open(self._partial, "r+b") as file:
            # What is not written takes no space on most disks.
            file.truncate(self._bytes)
            file.write(self._header())
        whole, damaged = self._verify()
        if damaged:
            some = ", ".join(damaged[:3]) + (", …" if len(damaged) > 3 else "")
            self._warn(f"has {len(damaged)} damaged blocks, which are computed again ({some})")
        self._check_space()
        return whole

    def release(self) -> None:
        """Let another process write to the store."""
        _release(self.path)

    def write(self, tile: Tile, block: np.ndarray) -> None:
        """Put a block into a file of its own: when this returns a kill no longer loses it."""
        data = np.ascontiguousarray(block, self.dtype)
        with self._room(), atomic_write(self._block(tile)) as file:
            file.write(self._digest(tile, data))
            file.write(data.data)

    def add(self, tiles: Iterable[Tile]) -> None:
        """Take note of written blocks, and copy them into the matrix when enough of them are waiting."""
        self._pending += tiles
        if sum(map(self._size, self._pending)) >= PENDING_BYTES:
            self._assemble()

    def finish(self) -> None:
        """Complete the matrix from blocks that are all there."""
        self._assemble()
        # Before the matrix is complete: nobody cleans up after that.
        shutil.rmtree(self.path / "blocks", ignore_errors=True)
        os.replace(self._partial, self._final)
        sync_directory(self.path)

    @property
    def _final(self) -> Path:
        return self.path / "gram.npy"

    @property
    def _partial(self) -> Path:
        return self.path / "gram.npy.partial"

    @property
    def _bytes(self) -> int:
        return _HEADER_BYTES + self.tiling.n1 * self.tiling.n2 * self.dtype.itemsize

    def _block(self, tile: Tile) -> Path:
        return self.path / "blocks" / tile.name

    def _blocks(self) -> list[Path]:
        return list((self.path / "blocks").iterdir())

    def _size(self, tile: Tile) -> int:
        return (tile.rows.stop - tile.rows.start) * (tile.columns.stop - tile.columns.start) * self.dtype.itemsize

    def _mirrored(self, tile: Tile) -> bool:
        return self.tiling.symmetric and not tile.diagonal

    def _header(self) -> bytes:
        """Give the header of a `.npy` file (NumPy's format 1.0), of one length whatever the version of NumPy."""
        shape = (self.tiling.n1, self.tiling.n2)
        fields = repr({"descr": self.dtype.str, "fortran_order": False, "shape": shape}).encode()
        start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
        return start + fields.ljust(_HEADER_BYTES - 11) + b"\n"

    def _digest(self, tile: Tile, data: np.ndarray) -> bytes:
        # Of whose block it is too, so that one from elsewhere is not taken for it.
        digest = hashlib.sha256(self._identity + tile.name.encode())
        digest.update(data.data)
        return digest.digest()

    def _verify(self) -> tuple[set[str], list[str]]:
        """Hold every block against its checksum; give the names of the whole ones, and of those that are damaged."""
        recorded = self._recorded_checksums()
        matrix = np.load(self._partial, mmap_mode="r")
        whole, damaged = set(), []
        for tile in self.tiling.tiles():
            path, checksum = self._block(tile), recorded.get(tile.name)
            if checksum is not None and self._holds(matrix, tile, checksum):
                self._checksums[tile.name] = checksum
                path.unlink(missing_ok=True)
                whole.add(tile.name)
            elif self._read(tile) is not None:
                self._pending.append(tile)
                whole.add(tile.name)
            elif checksum is not None or path.exists():
                damaged.append(tile.name)
                path.unlink(missing_ok=True)
        return whole, damaged

    def _recorded_checksums(self) -> dict[str, str]:
        try:
            return dict(json.loads((self.path / "checksums.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (TypeError, ValueError, RecursionError):
            self._warn("has a damaged checksums.json; the blocks in the matrix are computed again")
            return {}

    def _holds(self, matrix: np.ndarray, tile: Tile, checksum: str) -> bool:
        """Whether the matrix has the block of this checksum, and its mirror image."""
        places = [matrix[tile.rows, tile.columns]]
        if self._mirrored(tile):
            places.append(matrix[tile.columns, tile.rows].T)
        return all(self._digest(tile, np.ascontiguousarray(place)).hex() == checksum for place in places)

    def _read(self, tile: Tile) -> np.ndarray | None:
        """Read a block's own file; None if there is none, or if it is damaged."""
        try:
            content = self._block(tile).read_bytes()
        except FileNotFoundError:
            return None
        if len(content) != _DIGEST_BYTES + self._size(tile):
            return None
        shape = (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start)
        block = np.frombuffer(content, self.dtype, offset=_DIGEST_BYTES).reshape(shape)
        return block if self._digest(tile, block) == content[:_DIGEST_BYTES] else None

    def _assemble(self) -> None:
        """Copy the waiting blocks into the matrix. Killed at any point, this is done again from the same files."""
        if not self._pending:
            return
        with self._room(), open(self._partial, "r+b") as file:
            for tile in self._pending:
                block = self._read(tile)
                if block is None:
                    raise OSError(
                        f"store: block {tile.name} in {str(self.path)!r} was damaged after it was written; "
                        "call again to compute it again"
                    )
                self._place(file, tile.rows, tile.columns, block)
                if self._mirrored(tile):
                    self._place(file, tile.columns, tile.rows, np.ascontiguousarray(block.T))
                self._checksums[tile.name] = self._digest(tile, block).hex()
            file.flush()
            os.fsync(file.fileno())
        with self._room(), atomic_write(self.path / "checksums.json", "w") as text:
            json.dump(self._checksums, text, indent=0)
        for tile in self._pending:
            self._block(tile).unlink()
        self._pending = []

    def _place(self, file: IO[bytes], rows: slice, columns: slice, block: np.ndarray) -> None:
        # Not through a memory map: on a full disk that is a signal, where this is an error.
        for row, values in zip(range(rows.start, rows.stop), block, strict=True):
            file.seek(_HEADER_BYTES + (row * self.tiling.n2 + columns.start) * self.dtype.itemsize)
            file.write(values.data)

    def _missing_bytes(self) -> int:
        """Give the space that the store still needs, at most."""
        taken = 0
        for entry in (self._partial, *self._blocks()):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                blocks = getattr(status, "st_blocks", None)
                # Most of a sparse file is not there yet; not every system says how much.
                taken += status.st_size if blocks is None else min(status.st_size, 512 * blocks)
        waiting = sum(self._size(tile) for tile in self.tiling.tiles() if tile.name not in self._checksums)
        return max(0, self._bytes + min(PENDING_BYTES, waiting) - taken)

    def _check_space(self) -> None:
        missing, free = self._missing_bytes(), shutil.disk_usage(self.path).free
        if free < missing:
            raise OSError(
                errno.ENOSPC, f"store: {str(self.path)!r} has {_amount(free)} free, expected {_amount(missing)}"
            )

    def _room(self) -> contextlib.AbstractContextManager[None]:
        return _room(self.path, self)

    def _warn(self, what: str) -> None:
        # At the line that called `gram`.
        warnings.warn(f"store: {str(self.path)!r} {what}", StoreWarning, stacklevel=5)


def _acquire(path: Path) -> None:
    try:
        lock.acquire(path)
    except BlockingIOError:
        raise BlockingIOError(
            f"store: another process is writing to {str(path)!r}; wait for it to end or stop it, then call again"
        ) from None


def _release(path: Path) -> None:
    # Where there are no locks there is no file for them.
    with contextlib.suppress(FileNotFoundError):
        lock.release(path)


@contextlib.contextmanager
def _room(path: Path, store: Store | None = None) -> Iterator[None]:
    """Retell the error of a full disk as one that says where it is, what is needed, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = "" if store is None else f", {_amount(store._missing_bytes())} more are needed"
        raise OSError(
            error.errno,
            f"store: no space left at {str(path)!r}{needed}; finished blocks are kept: make room and call again",
        ) from None


def _amount(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
