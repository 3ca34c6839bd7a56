"""Data sets by name."""

import os

from ntkit._checks import check_path, wrong
from ntkit.data._tfds import load_tfds
from ntkit.data.dataset import Dataset
from ntkit.data.digits import load_digits


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """A labelled image data set, all of it in memory.

    `"digits"` is scikit-learn's: 8×8×1, 1,437 train and 360 test images, nothing to download. Any other name is
    one of TensorFlow Datasets (TFDS), such as `"mnist"`, `"cifar10"` or `"svhn_cropped"`, or a prepared set in
    `data_dir` that TFDS has no class for. A prepared copy is read offline; what is not there is downloaded.

    TensorFlow is imported only if TFDS needs it to prepare a download. JPEG images are decoded by Pillow, whose
    pixels may differ from TensorFlow's by a grey level or two; PNG images, and so MNIST and CIFAR-10 as TFDS
    prepares them, are the same to the bit. Images keep the order of the files, which is no order of the classes.

    **Arguments:**

    - `name`: `"digits"` or a TFDS name, with a config and a version where one is wanted (`"cifar10:3.0.2"`).
    - `data_dir`: where TFDS keeps its data; must exist. Default: the environment variable `TFDS_DATA_DIR`, else
      TFDS's own default. `"digits"` takes no notice of it.

    **Returns:** a [`Dataset`][] whose `.train` and `.test` have float32 `.images` (n, height, width, channels) in
    [0, 1], with one channel for grey, and int32 `.labels` (n,).

    **Raises:**

    - `ValueError` if there is no such name, or for a set without an image and a class label, without train and test
      splits, with images of different sizes, with a split that is not labelled, or with damaged files.
    - `FileNotFoundError` if `data_dir` is not an existing directory.
    - `RuntimeError` if TFDS could not download the set (at once where no server answers); the cause is chained.
    """
    if not isinstance(name, str):
        raise wrong("name", name, "'digits' or the name of a TensorFlow Datasets (TFDS) set")
    folder = None if data_dir is None else check_path("data_dir", data_dir)
    if name == "digits":
        return load_digits()
    return load_tfds(name, folder)
