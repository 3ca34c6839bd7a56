"""A distilled data set, and the file that holds it."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntkit._archives import MAX_BYTES, read_arrays
from ntkit._checks import check_file, check_finite, check_named, check_path, check_targets, wrong
from ntkit.data import check_images
from ntkit.kernels import Kernel
from ntkit.runs import atomic_write

EXPECTED = "an .npz of images and labels"


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A small data set that stands for a large one.

    **Fields:**

    - `images`: support images as fed to the kernel, float (n, height, width, channels) or (n, d).
    - `labels`: support targets, float (n, classes).
    - `history`: columns of equal length: `step`, `loss`, `accuracy` (of the target batches), `ridge` (the largest that
      was used), and what the caller's `evaluate` added.
    - `metadata`: anything JSON can hold that says where the set comes from, such as the configuration of its run.
    - `kernel`: the kernel, or family, that the set was distilled with, its hyper-parameters learned if they were;
      None if the set was loaded from a file.
    """

    images: np.ndarray
    labels: np.ndarray
    history: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kernel: Kernel | tuple[Kernel, ...] | None = None

    def __post_init__(self) -> None:
        images = np.asarray(check_images("images", self.images))
        labels = np.asarray(check_targets("labels", self.labels, len(images)))
        check_finite("labels", labels)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels)
        check_named("history", self.history, "columns by their names")
        check_named("metadata", self.metadata, "a mapping that JSON can hold")
        kernels = self.kernel if isinstance(self.kernel, tuple) else (self.kernel,)
        if self.kernel is not None and not (kernels and all(isinstance(kernel, Kernel) for kernel in kernels)):
            raise wrong("kernel", self.kernel, "an ntkit.Kernel, a tuple of them, or None")
        for name, column in self.history.items():
            values = np.asarray(column)
            if values.ndim != 1 or values.dtype.kind not in "if":
                raise ValueError(f"history: got {values.dtype} {values.shape} for {name}, expected numbers (n,)")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an `.npz` with the arrays `images` and `labels` and the JSON text `metadata`.

        The file is complete or not there at all: a file of that name is replaced when the new one is on disk.

        **Raises:** `OSError` if the path cannot be written; `TypeError` if the metadata has no JSON form.
        """
        check_path("path", path)
        history = {name: np.asarray(column).tolist() for name, column in self.history.items()}
        text = json.dumps({"format": 1, "history": history, **self.metadata})
        with atomic_write(path) as file:
            np.savez_compressed(file, images=self.images, labels=self.labels, metadata=np.array(text))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Distilled:
        """Read a file that `save` wrote, or one of other code.

        These are an `.npz` with `images` and `labels`, as of KIP's published sets, or a checkpoint of flax, as of
        RFAD's and RCIG's, with one array of images and one of their labels under whatever names. Images (n, channels,
        height, width) are brought into (n, height, width, channels). Nothing in the file is executed: pickled objects
        are refused.

        **Raises:** `FileNotFoundError` if there is no such file; `ValueError` if it is truncated, not an `.npz`, or
        holds something else: the message says what.
        """
        path = check_file("path", path, EXPECTED)
        try:
            return _read(path)
        # A damaged or hostile file can make json and NumPy raise nearly anything.
        except Exception as error:
            reason = " ".join(str(error).strip("'\"").split()) or type(error).__name__
            raise ValueError(f"path: got {str(path)!r}, expected {EXPECTED}: {reason}") from error


def _read(path: Path) -> Distilled:
    content = read_arrays(path) if zipfile.is_zipfile(path) or path.suffix == ".npz" else _of_flax(path)
    for name in ("images", "labels"):
        if name not in content:
            raise ValueError(f"it has no array {name!r}, only {', '.join(content) or 'nothing'}")
    images, labels = content["images"], content["labels"]
    metadata = json.loads(str(content.get("metadata", "{}")))
    columns = metadata.pop("history", {}) if isinstance(metadata, dict) else None
    if not isinstance(columns, dict):
        raise ValueError("its metadata are not what ntkit writes")
    history = {name: np.asarray(column) for name, column in columns.items()}
    metadata.pop("format", None)
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        labels = _centred(labels)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    return Distilled(images, labels, history, metadata)


def _of_flax(path: Path) -> dict[str, np.ndarray]:
    """Find images and labels in a checkpoint of flax, which names them as its author did."""
    from flax.serialization import msgpack_restore

    try:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(msgpack_restore(path.read_bytes()))]
    # What is something else makes msgpack raise nearly anything.
    except Exception as error:
        raise ValueError("it is neither that nor a checkpoint of flax") from error
    images = [leaf for leaf in leaves if leaf.ndim == 4 and np.issubdtype(leaf.dtype, np.floating)]
    if len(images) != 1:
        raise ValueError(f"it has {len(images)} arrays of images, not one")
    labels = [leaf for leaf in leaves if leaf.ndim == 2 and len(leaf) == len(images[0])]
    if len(labels) != 1:
        raise ValueError(f"it has {len(labels)} arrays of labels for {len(images[0])} images, not one")
    return {"images": images[0], "labels": labels[0]}


def _centred(labels: np.ndarray) -> np.ndarray:
    """Give the centred one-hot targets of a file that holds classes, as other code's files of real images do."""
    classes = int(labels.max(initial=-1)) + 1
    if labels.min(initial=0) < 0 or 4 * classes * len(labels) > MAX_BYTES:
        raise ValueError(f"its labels go from {labels.min()} to {labels.max()}")
    return (labels[:, None] == np.arange(classes)).astype(np.float32) - np.float32(1 / classes)
