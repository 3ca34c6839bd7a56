"""Your own arrays, in an `.npz`."""

from __future__ import annotations

import os

import jax
import numpy as np

from ntkit._archives import read_arrays
from ntkit._checks import check_file
from ntkit.data._splits import made
from ntkit.data.dataset import Dataset


def load_npz(name: str | os.PathLike[str], test_fraction: float | None, key: jax.Array | None) -> Dataset:
    """Read `images` and `labels`, and `test_images` and `test_labels` if they are there; see `ntkit.data.load`."""
    path = check_file("name", name, "an .npz of images and labels")
    given = os.fspath(name)
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise ValueError(f"name: got {given!r}, expected an .npz of images and labels: {error}") from error
    wanted = ["images", "labels"]
    if {"test_images", "test_labels"} & arrays.keys():
        wanted += ["test_images", "test_labels"]
    if missing := [each for each in wanted if each not in arrays]:
        there = ", ".join(arrays) or "nothing"
        raise ValueError(f"name: got {given!r}, which has no {' and no '.join(missing)}, only {there}, expected both")
    train, *test = (
        (_images(given, prefix, arrays), _labels(given, prefix, arrays)) for prefix in ("", "test_")[: len(wanted) // 2]
    )
    if test and test[0][0].shape[1:] != train[0].shape[1:]:
        raise ValueError(
            f"name: got {given!r} with images of shape {train[0].shape[1:]} and test_images of {test[0][0].shape[1:]}, "
            "expected one shape"
        )
    return made(name, train, test[0] if test else None, test_fraction, key)


def _images(name: str, prefix: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Images of bytes, or of floats in [0, 1], and vectors of any numbers, as floats."""
    found = arrays[f"{prefix}images"]
    told = f"name: got {name!r}, whose {prefix}images"
    if found.dtype.kind not in "biuf" or found.ndim not in (2, 3, 4) or 0 in found.shape:
        raise ValueError(
            f"{told} are {found.dtype} of shape {found.shape}, expected numbers (n, height, width, channels), "
            "(n, height, width) or (n, d)"
        )
    if found.ndim > 2 and found.dtype in (np.uint8, np.uint16):
        images = np.divide(found, np.iinfo(found.dtype).max, dtype=np.float32)
    else:
        with np.errstate(over="ignore"):
            images = found.astype(np.float32)
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if not finite.all():
        first = np.argmin(finite)
        raise ValueError(f"{told} hold NaN or infinity, the first at index {first}, expected finite float32 numbers")
    if images.ndim > 2 and (images.min() < 0 or images.max() > 1):
        raise ValueError(
            f"{told} go from {images.min():g} to {images.max():g} in {found.dtype}, expected floats in [0, 1], or uint8"
        )
    return images[..., None] if images.ndim == 3 else images


def _labels(name: str, prefix: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    found, n = arrays[f"{prefix}labels"], len(arrays[f"{prefix}images"])
    if found.shape != (n,) or found.dtype.kind not in "iuU":
        raise ValueError(
            f"name: got {name!r}, whose {prefix}labels are {found.dtype} of shape {found.shape}, expected integers or "
            f"strings ({n},), one class for each image"
        )
    return found
