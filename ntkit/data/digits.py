"""scikit-learn's digits: the data set that needs no download."""

import numpy as np

from ntkit.data.dataset import Dataset, Split

TEST_SIZE = 360


def load_digits() -> Dataset:
    """The 1,797 handwritten digits that scikit-learn carries, 8×8×1, split into 1,437 train and 360 test.

    The split is a constant of the library: stratified by class, the same on every machine and with every
    version of scikit-learn, as it draws nothing at random. The file holds its writers one after the other, so
    every fifth image of a class, taken through the whole file, samples them all.
    """
    # scikit-learn takes a second to import, and only this function needs it.
    from sklearn.datasets import load_digits as sklearn_digits

    raw = sklearn_digits()
    images = (raw.images[..., None] / 16).astype(np.float32)
    labels = raw.target.astype(np.int32)
    is_test = _stratified(labels, TEST_SIZE)
    return Dataset(
        name="digits",
        train=Split(images[~is_test], labels[~is_test]),
        test=Split(images[is_test], labels[is_test]),
        num_classes=10,
        class_names=tuple(str(name) for name in raw.target_names),
    )


def _stratified(labels: np.ndarray, size: int) -> np.ndarray:
    """A mask of `size` entries, each class in proportion (to within one), evenly spaced within its class."""
    classes, counts = np.unique(labels, return_counts=True)
    share = size * counts / len(labels)
    quota = np.floor(share).astype(int)
    # Largest remainder: the entries that rounding down left over go to the classes that lost most by it.
    quota[np.argsort(quota - share, kind="stable")[: size - quota.sum()]] += 1
    mask = np.zeros(len(labels), bool)
    for label, count, number in zip(classes, counts, quota, strict=True):
        members = np.flatnonzero(labels == label)
        mask[members[(np.arange(number) * count + count // 2) // number]] = True
    return mask
