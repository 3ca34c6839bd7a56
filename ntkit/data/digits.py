"""scikit-learn's digits: the data set that needs no download."""

import numpy as np

from ntkit.data._splits import stratified
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
    is_test = stratified(labels, TEST_SIZE)
    return Dataset(
        name="digits",
        train=Split(images[~is_test], labels[~is_test]),
        test=Split(images[is_test], labels[is_test]),
        num_classes=10,
        class_names=tuple(str(name) for name in raw.target_names),
    )
