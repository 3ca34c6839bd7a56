"""What a data set is once it is in memory: two splits of images and labels."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float32, Int32

from ntkit._checks import check_array, check_batch, check_instance, check_integer, check_key, check_text, wrong


@dataclass(frozen=True, eq=False)
class Split:
    """Images, or vectors, with their labels.

    **Fields:**

    - `images`: float32 NumPy array (n, height, width, channels) with values in [0, 1], or vectors (n, d) of any.
    - `labels`: int32 NumPy array (n,) with values in [0, num_classes).
    """

    images: Float32[np.ndarray, "n ..."]
    labels: Int32[np.ndarray, " n"]

    def __post_init__(self) -> None:
        check_batch("images", self.images)
        labels = check_array("labels", self.labels, "integer classes (n,)")
        if labels.shape != (len(self.images),) or not np.issubdtype(labels.dtype, np.integer):
            raise wrong("labels", labels, f"integers of shape ({len(self.images)},), one class for each image")

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
    """A labelled data set, all of it in memory.

    **Fields:**

    - `name`: the name it was loaded by.
    - `train`, `test`: images and labels, of the same shape and classes.
    - `num_classes`: the number of classes C.
    - `class_names`: C names, in the order of the labels.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_text("name", self.name)
        for name in ("train", "test"):
            check_instance(name, getattr(self, name), Split, "an ntkit.data.Split")
        check_integer("num_classes", self.num_classes)
        if not isinstance(self.class_names, tuple) or len(self.class_names) != self.num_classes:
            raise wrong("class_names", self.class_names, f"a tuple of {self.num_classes} names, one for each class")
