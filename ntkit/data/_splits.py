"""What makes a data set of your own images and labels: numbered classes, a fair order and a test split."""

from __future__ import annotations

import os
from collections.abc import Iterable

import jax
import numpy as np

from ntkit.data.dataset import Dataset, Split

TEST_FRACTION = 0.2


def made(
    name: str | os.PathLike[str],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None,
    test_fraction: float | None,
    key: jax.Array | None,
) -> Dataset:
    """Number the classes, draw the order of the images, and split off a test set where there is none.

    **Arguments:** `train` and `test`: images in float32, and labels of integers or strings; the others as for `load`.
    """
    name = os.fspath(name)
    if test is not None and test_fraction is not None:
        raise ValueError(f"test_fraction: got {test_fraction}, expected none for {name!r}, which has a test split")
    class_names = _in_order(map(str, np.unique(train[1]).tolist()))
    if len(class_names) < 2:
        raise ValueError(f"name: got {name!r} with the class {class_names[0]!r} alone, expected two classes or more")
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    key_train, key_test = jax.random.split(jax.random.key(0) if key is None else key)
    splits = [_shuffled(name, *train, numbers, key_train)]
    if test is not None:
        splits.append(_shuffled(name, *test, numbers, key_test))
    else:
        whole = splits.pop()
        is_test = stratified(whole.labels, round((test_fraction or TEST_FRACTION) * len(whole)))
        if not is_test.any():
            counts = f"{len(whole)} images of {len(class_names)} classes"
            raise ValueError(f"name: got {name!r} with {counts}, expected more, of which some can be for the test")
        splits += [Split(whole.images[mask], whole.labels[mask]) for mask in (~is_test, is_test)]
    return Dataset(name, splits[0], splits[1], len(class_names), class_names)


def stratified(labels: np.ndarray, size: int) -> np.ndarray:
    """A mask of `size` entries, each class in proportion (to within one), evenly spaced within its class.

    It has fewer entries where a class would otherwise be left with none outside of it.
    """
    classes, counts = np.unique(labels, return_counts=True)
    share = size * counts / len(labels)
    quota = np.floor(share).astype(int)
    # Largest remainder: the entries that rounding down left over go to the classes that lost most by it.
    quota[np.argsort(quota - share, kind="stable")[: size - quota.sum()]] += 1
    mask = np.zeros(len(labels), bool)
    for label, count, number in zip(classes, counts, np.minimum(quota, counts - 1), strict=True):
        if number:
            members = np.flatnonzero(labels == label)
            mask[members[(np.arange(number) * count + count // 2) // number]] = True
    return mask


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort by number if all are integers, else by letter."""
    names = list(names)
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def _shuffled(name: str, images: np.ndarray, labels: np.ndarray, numbers: dict[str, int], key: jax.Array) -> Split:
    # Files often go through one class after the other, and the first images of a split should be of all.
    order = np.asarray(jax.random.permutation(key, len(images)))
    known = [numbers.get(str(label)) for label in labels.tolist()]
    if None in known:
        other = labels.tolist()[known.index(None)]
        raise ValueError(
            f"name: got {name!r}, whose test split has the class {str(other)!r}, expected classes of its train split"
        )
    return Split(images[order], np.asarray(known, np.int32)[order])
