"""TensorFlow Datasets read into memory without TensorFlow.

TFDS names, downloads and describes the data; the prepared files are read here. Importing TensorFlow takes many
seconds and claims the memory of any GPU it sees, and an image classification record needs neither: it is a
protocol buffer with a compressed image and a class.
"""

import contextlib
import difflib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ntkit.data._pictures import MOST_DEFLATED, Ragged, decoded
from ntkit.data._prepared import NAME, check_folder, check_inside
from ntkit.data._tfrecord import records
from ntkit.data.dataset import Dataset, Split

# More are made up.
MAX_CLASSES = 10**6
# How long a server may take to answer before another one of the set is asked.
ANSWER_SECONDS = 5.0


def load_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Read the TFDS set `name`, downloading it if no prepared copy is there; see `ntkit.data.load`."""
    builder = _builder(name, data_dir)
    image_key, label_key = _image_and_label(name, builder)
    _prepare(name, builder)
    missing = [split for split in ("train", "test") if split not in builder.info.splits]
    if missing:
        raise ValueError(
            f"name: got {name!r} with splits {', '.join(builder.info.splits) or 'none'}, expected a data set with "
            "train and test"
        )
    label = builder.info.features[label_key]
    if not 0 < (label.num_classes or 0) <= MAX_CLASSES:
        raise ValueError(f"name: got {name!r} with {label.num_classes} classes, expected 1 to {MAX_CLASSES}")
    if len(label.names) != label.num_classes:
        raise ValueError(
            f"name: got {name!r} with {len(label.names)} class names, expected {label.num_classes}, one for each class"
        )
    train, test = (
        _read_split(name, builder, split, image_key, label_key, label.num_classes) for split in ("train", "test")
    )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise _ragged(name, train.images.shape[1:], test.images.shape[1:])
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=label.num_classes,
        class_names=tuple(str(class_name) for class_name in label.names),
    )


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The TFDS builder of `name`: by its class, or read from a prepared folder that no class of TFDS made."""
    import tensorflow_datasets as tfds

    if data_dir is not None and not Path(data_dir).is_dir():
        raise FileNotFoundError(
            f"data_dir: got {os.fspath(data_dir)!r}, expected an existing directory (to download there, make it first)"
        )
    # TFDS reads its variable once, when it is imported; asking here lets a program set it later.
    folder = data_dir if data_dir is not None else os.environ.get("TFDS_DATA_DIR") or None
    if NAME.fullmatch(name):
        check_folder(name, Path(folder or tfds.core.constants.DATA_DIR).expanduser())
    try:
        if not NAME.fullmatch(name):
            raise ValueError("not a name, with a config and a version at most")
        return tfds.builder(name, data_dir=folder)
    except Exception as error:
        known = tfds.list_builders(with_community_datasets=False)
        # Names are case-sensitive to TFDS and come with a config and a version: "cifar10_1/v4:1.0.0".
        base = name.split("/")[0].split(":")[0]
        local = [p.name for p in Path(folder).iterdir() if p.is_dir()] if folder and Path(folder).is_dir() else []
        if base in known or base in local:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"name: got {name!r}, which TFDS refuses: {reason}") from error
        close = difflib.get_close_matches(base.lower(), ["digits", *local, *known])
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"name: got {name!r}, expected 'digits' or the name of a TensorFlow Datasets (TFDS) set{hint}"
        ) from error


def _image_and_label(name: str, builder: Any) -> tuple[str, str]:
    """The keys of the image and of the class label: TFDS's own supervised pair, else the plain names."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    pairs: list[tuple[str, str]] = [("image", "label")]
    if len(builder.info.supervised_keys or ()) == 2:
        pairs.insert(0, builder.info.supervised_keys)
    for image_key, label_key in pairs:
        # Supervised keys may be nested, and features may be no dictionary at all.
        try:
            image, label = features[image_key], features[label_key]
        except (KeyError, TypeError):
            continue
        if isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel):
            if not np.issubdtype(image.np_dtype, np.integer):
                raise ValueError(f"name: got {name!r}, whose pixels are {image.np_dtype}, expected integer pixels")
            return image_key, label_key
    got = ", ".join(f"{key} ({type(value).__name__})" for key, value in features.items())
    raise ValueError(f"name: got {name!r}, whose features are {got}, expected a data set of images with a class label")


def _prepare(name: str, builder: Any) -> None:
    """Download the set unless a prepared copy is there already; a download that fails leaves no empty folders."""
    if builder.data_path.exists() and builder.is_prepared():
        return
    before = _folders(builder)
    try:
        _check_connection(builder)
        builder.download_and_prepare()
    except Exception as error:
        for folder in sorted(_folders(builder) - before, reverse=True):
            with contextlib.suppress(OSError):  # what is not empty stays
                folder.rmdir()
        reason = (str(error).strip().splitlines() or [""])[0]
        raise RuntimeError(
            f"name: TFDS could not download {name!r} into {builder.data_path} ({type(error).__name__}: {reason}); "
            "where there is no network, give a data_dir that holds a prepared copy"
        ) from error


def _folders(builder: Any) -> set[Path]:
    """The folders that TFDS makes for a download, as far as they are there."""
    root = Path(builder.data_dir_root)
    downloads = root / "downloads"
    parents = (root, root / builder.name, downloads, downloads / builder.name)
    return {path for path in (root, *(path for parent in parents for path in parent.glob("*"))) if path.is_dir()}


def _check_connection(builder: Any) -> None:
    """Raise `ConnectionError` if none of the set's servers answers: TFDS would go on trying for minutes."""
    import requests

    downloads = Path(builder.data_dir_root) / "downloads"
    here = (path for folder in (builder.name, "manual") for path in (downloads / folder).rglob("*"))
    if any(path.is_file() and ".tmp." not in path.parent.name for path in here):
        return  # TFDS takes what was downloaded before
    urls = {urlsplit(url).netloc: url for url in builder.url_infos or () if url.startswith("http")}
    for url in urls.values():
        try:
            requests.head(url, timeout=ANSWER_SECONDS)
        except requests.RequestException:
            continue
        return
    if urls:
        raise ConnectionError(f"no answer from {' or '.join(urls)}")


def _read_split(name: str, builder: Any, split: str, image_key: str, label_key: str, num_classes: int) -> Split:
    n = builder.info.splits[split].num_examples
    if n == 0:
        raise ValueError(f"name: got {name!r}, whose {split} split is empty, expected images")
    paths = [Path(check_inside(name, path, builder.data_path)) for path in builder.info.splits[split].filepaths]
    feature = builder.info.features[image_key]
    pixels: np.ndarray | None = None
    try:
        size = sum(path.stat().st_size for path in paths)
        if not 0 < n <= size:
            raise ValueError(f"{n} examples announced, in files of {size} bytes")
        labels = np.empty(n, np.int32)
        count = 0
        for encoded, label in _examples(builder, split, paths, image_key, label_key):
            image = decoded(io.BytesIO(encoded), feature.shape[-1], None if pixels is None else pixels.shape[1:3])
            if pixels is None:
                if n * image.nbytes > MOST_DEFLATED * size:
                    raise ValueError(f"{n} images of shape {image.shape} announced, in files of {size} bytes")
                # Filled in place in the pixels' own dtype, a quarter of what they take as floats.
                pixels = np.empty((n, *image.shape), feature.np_dtype)
            if image.shape != pixels.shape[1:]:
                raise Ragged(pixels.shape[1:], image.shape)
            if count < n:
                pixels[count] = image
                labels[count] = label
            count += 1
        if pixels is None or count != n:
            raise ValueError(f"{count} images, expected {n}")
        images = np.divide(pixels, np.iinfo(feature.np_dtype).max, dtype=np.float32)
    except Ragged as error:
        raise _ragged(name, error.first, error.other) from None
    # What is cut off or made up makes readers and decoders raise nearly anything.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"name: got {name!r}, whose {split} split is damaged: {reason[:200]}") from error
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"name: got {name!r}, whose {split} split has labels from {labels.min()} to {labels.max()}, expected "
            f"classes from 0 to {num_classes - 1}"
        )
    return Split(images, labels)


def _examples(
    builder: Any, split: str, paths: list[Path], image_key: str, label_key: str
) -> Iterator[tuple[bytes, int]]:
    """The encoded images and the classes of a split, in the order of its files."""
    if builder.info.file_format.value != "tfrecord":
        import tensorflow_datasets as tfds

        undecoded = {image_key: tfds.decode.SkipDecoding()}
        for example in builder.as_data_source(split, decoders=undecoded):
            yield example[image_key], int(example[label_key])
        return

    from tensorflow_datasets.proto import tf_example_pb2

    for path in paths:
        for number, record in enumerate(records(path)):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            images, labels = feature[image_key].bytes_list.value, feature[label_key].int64_list.value
            if len(images) != 1 or len(labels) != 1:
                raise ValueError(f"record {number} has {len(images)} images and {len(labels)} classes, expected one")
            yield images[0], labels[0]


def _ragged(name: str, first: tuple[int | None, ...], other: tuple[int | None, ...]) -> ValueError:
    return ValueError(
        f"name: got {name!r} with images of shape {first} and {other}, expected images that all have one size"
    )
