"""Arrays out of an `.npz` from anyone: nothing in it is executed, and it unpacks to no more than it says."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

# More than this, and more than so many times the file itself, is a bomb. The largest published sets are below 100 MB.
MAX_BYTES, MAX_RATIO = 4 * 2**30, 20


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Give the arrays of an `.npz` by their names.

    **Raises:** `ValueError` with the reason alone, if the file is damaged, no `.npz`, absurdly large when unpacked, or
    holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            size = sum(entry.file_size for entry in entries)
            if size > max(MAX_BYTES, MAX_RATIO * path.stat().st_size):
                raise ValueError(f"it would unpack to {size / 2**30:.1f} GiB")
            return {entry.filename.removesuffix(".npy"): _read(archive, entry) for entry in entries}
    except MemoryError:
        raise
    # What is damaged or made up makes zipfile, zlib and NumPy raise nearly anything.
    except Exception as error:
        raise ValueError(" ".join(str(error).strip("'\"").split())[:200] or type(error).__name__) from error


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds pickled objects")
        # Before memory is taken for what a header only announces.
        if file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise ValueError(f"{entry.filename} announces {dtype} of shape {shape} in {entry.file_size} bytes")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
