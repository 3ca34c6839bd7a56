"""What a data set is once it is in memory: two splits of images and labels."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float32, Int32

from ntkit._checks import check_integer, check_key


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    **Fields:**

    - `images`: float32 NumPy array (n, height, width, channels) with values in [0, 1].
    - `labels`: int32 NumPy array (n,) with values in [0, num_classes).
    """

    images: Float32[np.ndarray, "n height width channels"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of shape {self.images.shape[1:]})"

    def choice(self, limit: int, key: jax.Array) -> Split:
        """Choose at most `limit` images at random, by a `jax.random` key; they stay in their order."""
        limit = check_integer("limit", limit)
        rows = np.sort(np.asarray(jax.random.permutation(check_key("key", key), len(self)))[:limit])
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image data set, all of it in memory.

    **Fields:**

    - `name`: the name it was loaded by.
    - `train`, `test`: images and labels, of the same image shape and classes.
    - `num_classes`: the number of classes C.
    - `class_names`: C names, in the order of the labels.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
