"""A distilled data set, and the file that holds it."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntkit.kernels import Kernel
from ntkit.runs import atomic_write

# What a file may unpack to. The largest published sets are below 100 MB.
MAX_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A small data set that stands for a large one.

    Attributes:
        images: support images as fed to the kernel, float (n, height, width, channels) or (n, d).
        labels: support targets, float (n, classes).
        history: columns of equal length: `step`, `loss`, `accuracy` (of the target batches), `ridge` (the largest that
            was used), and what the caller's `evaluate` added.
        metadata: anything JSON can hold that says where the set comes from, such as the configuration of its run.
        kernel: the kernel, or family, that the set was distilled with, its hyper-parameters learned if they were;
            None if the set was loaded from a file.
    """

    images: np.ndarray
    labels: np.ndarray
    history: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kernel: Kernel | tuple[Kernel, ...] | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim not in (2, 4) or labels.ndim != 2 or len(images) != len(labels):
            raise ValueError(
                f"images, labels: got shapes {images.shape} and {labels.shape}, expected (n, height, width, channels) "
                "or (n, d) and (n, classes)"
            )
        for name, values in (("images", images), ("labels", labels)):
            if not np.issubdtype(values.dtype, np.floating) or not np.all(np.isfinite(values)):
                raise ValueError(f"{name}: got {values.dtype} values, not all of them finite floats")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an `.npz` with the arrays `images` and `labels` and the JSON text `metadata`.

        The file is complete or not there at all: a file of that name is replaced when the new one is on disk.

        Raises:
            OSError: the path cannot be written.
        """
        history = {name: np.asarray(column).tolist() for name, column in self.history.items()}
        text = json.dumps({"format": 1, "history": history, **self.metadata})
        with atomic_write(path) as file:
            np.savez_compressed(file, images=self.images, labels=self.labels, metadata=np.array(text))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Distilled:
        """Read a file that `save` wrote, or one in the published KIP format: an `.npz` with `images` and `labels`.

        Nothing in the file is executed: pickled objects are refused.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, not an `.npz`, or holds something else; the message says what.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"path: expected an .npz file, got {str(path)!r}, which does not exist")
        try:
            images, labels, metadata = _read(path)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            reason = str(error).strip("'\"") or type(error).__name__
            raise ValueError(f"path: expected an .npz with images and labels, got {str(path)!r}: {reason}") from error
        history = {name: np.asarray(column) for name, column in metadata.pop("history", {}).items()}
        metadata.pop("format", None)
        return cls(images, labels, history, metadata)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"it would unpack to {size / 2**30:.1f} GiB")
    with np.load(path, allow_pickle=False) as content:
        missing = [name for name in ("images", "labels") if name not in content]
        if missing:
            raise ValueError(f"it has no array {missing[0]!r}, only {', '.join(content.files) or 'nothing'}")
        images, labels = content["images"], content["labels"]
        text = str(content["metadata"]) if "metadata" in content else "{}"
    metadata = json.loads(text)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("history", {}), dict):
        raise ValueError("its metadata is not what ntkit writes")
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and labels.min(initial=0) >= 0:
        classes = int(labels.max(initial=0)) + 1
        labels = np.eye(classes, dtype=np.float32)[labels] - np.float32(1 / classes)
    for name, values in (("images", images), ("labels", labels)):
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"its {name} are {values.dtype}, not floats")
    Distilled(images, labels)  # shapes and finiteness
    return images, labels, metadata
