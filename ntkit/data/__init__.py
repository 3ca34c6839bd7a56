"""Data sets, what kernels regress on, preprocessing and augmentation."""

from ntkit.data.augment import Augmentation
from ntkit.data.checks import check_images, check_labels
from ntkit.data.dataset import Dataset, Split
from ntkit.data.loading import load
from ntkit.data.pixels import of_pixels
from ntkit.data.preprocess import ZCA, Identity, Preprocessing, Standardize
from ntkit.data.targets import accuracy, one_hot

__all__ = [
    "ZCA",
    "Augmentation",
    "Dataset",
    "Identity",
    "Preprocessing",
    "Split",
    "Standardize",
    "accuracy",
    "check_images",
    "check_labels",
    "load",
    "of_pixels",
    "one_hot",
]
