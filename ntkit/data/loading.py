"""Data sets by name, and your own by path."""

import os
from pathlib import Path

import jax

from ntkit._checks import check_key, check_number, check_path, check_text, wrong
from ntkit.data._csv import load_csv
from ntkit.data._folder import load_folder
from ntkit.data._npz import load_npz
from ntkit.data._prepared import NAME
from ntkit.data._tfds import load_tfds
from ntkit.data.dataset import Dataset
from ntkit.data.digits import load_digits


def load(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    target: str | None = None,
    test_fraction: float | None = None,
    key: jax.Array | None = None,
) -> Dataset:
    """A labelled data set, all of it in memory.

    `"digits"` is scikit-learn's: 8×8×1, 1,437 train and 360 test images, nothing to download. Your own data are given
    by their path, and anything else is a name in TensorFlow Datasets (TFDS), such as `"mnist"`, `"cifar10"` or
    `"svhn_cropped"`, or a prepared set in `data_dir` that TFDS has no class for. A prepared copy is read offline; what
    is not there is downloaded.

    Your own data are one of

    - an `.npz` with `images` and `labels`, and `test_images` and `test_labels` if there is a test split. Images are
      uint8, or floats in [0, 1], (n, height, width, channels) or (n, height, width); or vectors (n, d) of any numbers.
    - a folder with a folder of PNG or JPEG files for each class, or with `train` and `test` folders of such folders.
      All images have one size; they are grey if all of them are, else RGB.
    - a `.csv` with a header, a column of classes, and numbers in all others, which become vectors (n, d).

    Classes are integers or strings, numbered in their order. The order of the images is drawn by `key`, and without a
    test split so is one, stratified by class.

    TensorFlow is imported only if TFDS needs it to prepare a download. JPEG images are decoded by Pillow, whose
    pixels may differ from TensorFlow's by a grey level or two; PNG images, and so MNIST and CIFAR-10 as TFDS
    prepares them, are the same to the bit. Images of TFDS keep the order of the files, which is no order of the
    classes.

    **Arguments:**

    - `name`: `"digits"`, the path of your own data, or a TFDS name, with a config and a version where one is wanted
      (`"cifar10:3.0.2"`). A path is a `pathlib.Path`, or a string that ends in `.npz` or `.csv` or is a directory with
      a separator in it: `"./photos"`, as `"photos"` is a TFDS name.
    - `data_dir`: where TFDS keeps its data; must exist. Default: the environment variable `TFDS_DATA_DIR`, else
      TFDS's own default.
    - `target`: the column of a CSV that holds the classes. Default: `"target"`.
    - `test_fraction`: of your own data without a test split, the part that becomes one. Default: 0.2.
    - `key`: of your own data, draws the order and the test split. Default: `jax.random.key(0)`.

    **Returns:** a [`Dataset`][] whose `.train` and `.test` have float32 `.images`, (n, height, width, channels) in
    [0, 1], with one channel for grey, or (n, d), and int32 `.labels` (n,).

    **Raises:**

    - `ValueError` if there is no such name, for files that are damaged or hold something else, for a set with images of
      different sizes, without an image and a class label, or without train and test splits, and for an argument that
      the set takes no notice of.
    - `FileNotFoundError` if a path or `data_dir` does not exist.
    - `RuntimeError` if TFDS could not download the set (at once where no server answers); the cause is chained.
    """
    if not isinstance(name, str | os.PathLike):
        raise wrong("name", name, "'digits', the path of your own data or the name of a TensorFlow Datasets (TFDS) set")
    if target is not None:
        check_text("target", target)
    if test_fraction is not None and not 0 < check_number("test_fraction", test_fraction) < 1:
        raise wrong("test_fraction", test_fraction, "a number above 0 and below 1")
    if key is not None:
        check_key("key", key)
    folder = None if data_dir is None else check_path("data_dir", data_dir)
    kind = _kind_of_path(name, folder)
    taken = {"target": kind == "csv", "test_fraction": kind is not None, "key": kind is not None}
    taken["data_dir"] = kind is None and name != "digits"
    for argument, value in (("target", target), ("test_fraction", test_fraction), ("key", key), ("data_dir", folder)):
        if value is not None and not taken[argument]:
            raise wrong(argument, value, f"none for {os.fspath(name)!r}, which needs none")
    if kind == "csv":
        return load_csv(name, target, test_fraction, key)
    if kind == "npz":
        return load_npz(name, test_fraction, key)
    if kind == "folder":
        return load_folder(name, test_fraction, key)
    return load_digits() if name == "digits" else load_tfds(str(name), folder)


def _kind_of_path(name: str | os.PathLike[str], data_dir: Path | None) -> str | None:
    """Say what your own data are; None for a name."""
    text = os.fspath(name)
    if (suffix := os.path.splitext(text)[1].lower()) in (".npz", ".csv"):
        return suffix[1:]
    if isinstance(name, str):
        # "cifar10_1/v4" is a name, too, and "../cifar10" is not.
        in_folder = {os.sep, os.altsep} & {*name} and (os.path.isdir(name) or not NAME.fullmatch(name))
        if data_dir is not None or not in_folder:
            return None
    path = check_path("name", name)
    if not path.exists():
        raise FileNotFoundError(f"name: got {text!r}, which does not exist, expected your own data")
    if not path.is_dir():
        raise ValueError(f"name: got {text!r}, expected an .npz, a .csv or a folder of class folders of images")
    return "folder"
