"""Where distillation starts: a class-balanced support set."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from ntkit._checks import check_array, check_choice
from ntkit.data import check_images, check_labels, one_hot
from ntkit.distill.distilled import Distilled

Init: TypeAlias = "Literal['real', 'noise'] | np.ndarray | jax.Array | Distilled"


class Start(NamedTuple):
    """Images (n, …), targets (n, classes) and classes (n,) of a support set, sorted by class."""

    images: np.ndarray
    targets: np.ndarray
    classes: np.ndarray


def check_data_set(images: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray, int]:
    """Give a data set as NumPy arrays in JAX's precision, with its number of classes.

    **Raises:** `ValueError` for images or labels of wrong shape, dtype or value, or a class without examples.
    """
    images, labels = in_jax_precision("images", images), np.asarray(check_array("labels", labels, "integer classes"))
    check_labels("labels", labels, len(images), np.iinfo(np.int32).max)
    num_classes = int(labels.max()) + 1
    # Not bincount, whose memory is that of the largest label.
    present = np.unique(labels)
    if len(present) < num_classes:
        absent = next((at for at, label in enumerate(present) if at != label), len(present))
        raise ValueError(f"labels: got no examples of class {absent} of {num_classes}, expected some of each")
    return images, labels, num_classes


def in_jax_precision(name: str, images: ArrayLike) -> np.ndarray:
    """Give checked images in the precision that JAX computes with: at least float32, and float64 if x64 is on."""
    images = np.asarray(check_images(name, images))
    dtype = jnp.promote_types(jax.dtypes.canonicalize_dtype(images.dtype), jnp.float32)
    with np.errstate(over="ignore"):
        converted = images.astype(dtype, copy=False)
    if converted.dtype != images.dtype:
        check_images(name, converted)  # a large float64 is infinite in float32
    return converted


def initial_support(
    init: Init, images: np.ndarray, labels: np.ndarray, num_classes: int, per_class: int, key: jax.Array
) -> Start:
    """Choose the support set that distillation starts from.

    **Arguments:**

    - `init`: `"real"`: random images of each class. `"noise"`: normal noise with the mean and standard deviation of
      `images`. An array (per_class · classes, …): these images, sorted by class. A distilled set: its images and
      labels.
    - `images`: the target images.
    - `labels`: their classes.
    - `num_classes`: number of classes.
    - `per_class`: support images of each class.
    - `key`: for what is random.

    **Raises:** `ValueError` that names the argument that does not fit, a class with too few examples among them.
    """
    shape = (per_class * num_classes, *images.shape[1:])
    if isinstance(init, Distilled):
        classes = np.repeat(np.arange(num_classes), per_class)
        if init.images.shape != shape or init.labels.shape[1] != num_classes:
            raise ValueError(
                f"init: got a set of shape {init.images.shape} with {init.labels.shape[1]} classes, expected {shape} "
                f"with {num_classes}: {per_class} of each class"
            )
        return Start(init.images.astype(images.dtype), init.labels, classes)
    if isinstance(init, str) and check_choice("init", init, ("real", "noise"), "an array of images") == "real":
        chosen = _real(images, labels, num_classes, per_class, key)
    elif isinstance(init, str):
        chosen = images.mean() + images.std() * np.asarray(jax.random.normal(key, shape))
    else:
        chosen = in_jax_precision("init", init)
        if chosen.shape != shape:
            raise ValueError(f"init: got images of shape {chosen.shape}, expected {shape}: {per_class} of each class")
    classes = np.repeat(np.arange(num_classes), per_class)
    return Start(chosen.astype(images.dtype), np.asarray(one_hot(classes, num_classes)), classes)


def _real(images: np.ndarray, labels: np.ndarray, num_classes: int, per_class: int, key: jax.Array) -> np.ndarray:
    counts = np.bincount(labels, minlength=num_classes)
    if len(few := np.flatnonzero(counts < per_class)):
        raise ValueError(
            f"per_class: got {per_class}, expected at most {counts[few[0]]}: class {few[0]} has no more examples"
        )
    chosen = []
    for label, class_key in enumerate(jax.random.split(key, num_classes)):
        members = np.flatnonzero(labels == label)
        chosen.append(np.asarray(jax.random.permutation(class_key, members))[:per_class])
    return images[np.concatenate(chosen)]
