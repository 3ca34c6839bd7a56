"""Your own pictures, in a folder of a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np

from ntkit.data._pictures import MAX_PIXELS, MOST_DEFLATED, decoded
from ntkit.data._splits import made
from ntkit.data.dataset import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg")


def load_folder(name: str | os.PathLike[str], test_fraction: float | None, key: jax.Array | None) -> Dataset:
    """Read PNG and JPEG files from class folders, or from those of `train` and `test`; see `ntkit.data.load`."""
    given, path = os.fspath(name), Path(name)
    folders = _folders(given, path)
    if "train" in folders:
        if others := sorted(folders.keys() - {"train", "test"}):
            raise ValueError(f"name: got {given!r} with {others[0]!r} beside 'train', expected 'test' at most")
        splits = {split: _files(given, folders[split]) for split in ("train", "test") if split in folders}
    else:
        splits = {"train": _files(given, path)}
    shape = _shape(given, [file for files in splits.values() for file, _ in files])
    found = {split: _read(given, files, shape) for split, files in splits.items()}
    return made(name, found["train"], found.get("test"), test_fraction, key)


def _folders(name: str, path: Path) -> dict[str, Path]:
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    for entry in entries:
        if entry.suffix.lower() in SUFFIXES and not entry.is_dir():
            raise ValueError(f"name: got {name!r} with the image {_of(name, entry)}, expected it in a class's folder")
    return {entry.name: entry for entry in entries if entry.is_dir()}


def _files(name: str, path: Path) -> list[tuple[Path, str]]:
    """The images of a folder of class folders, with their classes."""
    found = []
    for class_name, folder in _folders(name, path).items():
        files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
        if not files:
            raise ValueError(f"name: got {name!r}, whose folder {_of(name, folder)} is empty, expected images in it")
        for file in files:
            if file.suffix.lower() not in SUFFIXES or not file.is_file():
                raise ValueError(f"name: got {name!r} with {_of(name, file)}, expected PNG and JPEG files alone")
        found += [(file, class_name) for file in files]
    if not found:
        where = f"{str(path)!r}, which" if str(path) == name else f"{name!r}, whose {_of(name, path)}"
        raise ValueError(f"name: got {where} has no folders, expected one of PNG or JPEG files for each class")
    return found


def _shape(name: str, files: list[Path]) -> tuple[int, int, int]:
    """The shape that all images have: grey if all are."""
    from PIL import Image

    sizes, grey = [], True
    for file in files:
        try:
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                width, height = image.size
                grey &= image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        # What is cut off or made up makes decoders raise nearly anything.
        except Exception as error:
            raise _damaged(name, file, error) from error
        sizes.append((height, width))
        if sizes[-1] != sizes[0]:
            raise ValueError(
                f"name: got {name!r} with {_of(name, files[0])} of {sizes[0][1]}×{sizes[0][0]} pixels and "
                f"{_of(name, file)} of {width}×{height}, expected images that all have one size"
            )
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"name: got {name!r} with {_of(name, file)} of {width}×{height} pixels, expected at most {MAX_PIXELS}"
            )
    height, width = sizes[0]
    size = sum(file.stat().st_size for file in files)
    if len(files) * height * width > 8 * MOST_DEFLATED * size:
        raise ValueError(f"name: got {name!r}, {len(files)} images of {width}×{height} pixels in {size} bytes of files")
    return height, width, 1 if grey else 3


def _read(name: str, files: list[tuple[Path, str]], shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(files), *shape), np.float32)
    for image, (file, _) in zip(images, files, strict=True):
        try:
            pixels = decoded(file, shape[2], shape[:2])
        except Exception as error:
            raise _damaged(name, file, error) from error
        # Pillow gives 16-bit pixels as they are, or as 32-bit integers; grey ones in one channel.
        image[...] = pixels / np.float32(255 if pixels.dtype == np.uint8 else 65535)
    return images, np.asarray([class_name for _, class_name in files])


def _damaged(name: str, file: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()).replace(str(file), "it") or type(error).__name__
    return ValueError(
        f"name: got {name!r} with {_of(name, file)}, expected a PNG or JPEG file that is whole: {reason[:200]}"
    )


def _of(name: str, path: Path) -> str:
    return repr(str(path.relative_to(name)))
