import io
import json
import os
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ntkit.data import Dataset, load
from tests.data.test_tfrecord import by_bits

PREPARED = Path(os.environ.get("NTKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data" / "tfds"))


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (PREPARED / name).is_dir(), reason=f"no prepared {name} in {PREPARED} (set NTKIT_TEST_DATA)"
    )


def assert_is_a_dataset(data: Dataset, image_shape: tuple[int, ...]) -> None:
    assert len(data.class_names) == data.num_classes
    for split in (data.train, data.test):
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
        assert split.images.shape == (len(split), *image_shape)
        assert split.labels.shape == (len(split),)
        assert split.images.min() == 0
        assert split.images.max() == 1
        assert set(np.unique(split.labels)) == set(range(data.num_classes))


@pytest.mark.slow
def test_importing_needs_no_data_library_and_loading_no_tensorflow(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": examples(3), "test": examples(2)})
    code = (
        "import sys, ntkit.data; "
        "print([m for m in ('sklearn', 'tensorflow', 'tensorflow_datasets', 'PIL') if m in sys.modules]); "
        f"print(len(ntkit.data.load('made_up', {str(tmp_path)!r}).train), 'tensorflow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == ["[]", "3 False"]


def test_digits() -> None:
    data = load("digits")
    assert_is_a_dataset(data, (8, 8, 1))
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.name == "digits"
    assert data.class_names == tuple("0123456789")


def test_digits_are_all_there_once_and_keep_their_labels() -> None:
    from sklearn.datasets import load_digits

    data = load("digits")
    raw = load_digits()

    def rows(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        rows = np.column_stack([images.reshape(len(images), -1), labels])
        return rows[np.lexsort(rows.T)]

    images = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels])
    np.testing.assert_array_equal(rows(images, labels), rows(raw.images / 16, raw.target))


def test_digits_split_is_stratified_and_always_the_same() -> None:
    data, again = load("digits"), load("digits")
    np.testing.assert_array_equal(data.test.images, again.test.images)
    train, test = np.bincount(data.train.labels), np.bincount(data.test.labels)
    assert (np.abs(test - 360 * (train + test) / 1797) < 1).all()


@needs("mnist_t10k")
def test_mnist_t10k_found_by_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(PREPARED))
    data = load("mnist_t10k")
    assert_is_a_dataset(data, (28, 28, 1))
    assert (len(data.train), len(data.test)) == (8000, 2000)


@needs("cifar10_jpeg")
def test_cifar10_jpeg(tmp_path: Path) -> None:
    """Read through a copy that announces the first 300 images only: the whole takes 15 seconds."""
    folder = tmp_path / "cifar10_jpeg" / "1.0.0"
    folder.mkdir(parents=True)
    (source,) = (PREPARED / "cifar10_jpeg").glob("*/")
    for file in source.iterdir():
        if "tfrecord" in file.name:
            (folder / file.name).write_bytes(first_records(file, 300))
        elif file.name != "dataset_info.json":
            (folder / file.name).write_bytes(file.read_bytes())
    info = json.loads((source / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["shardLengths"] = ["300"]
    (folder / "dataset_info.json").write_text(json.dumps(info))

    data = load("cifar10_jpeg", tmp_path)
    assert_is_a_dataset(data, (32, 32, 3))
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    # The channels are in order: over CIFAR-10 red is brightest on average and blue is darkest.
    red, green, blue = data.train.images.mean(axis=(0, 1, 2))
    assert red > green > blue


def first_records(path: Path, n: int) -> bytes:
    content = path.read_bytes()
    end = 0
    for _ in range(n):
        end += 16 + struct.unpack_from("<Q", content, end)[0]
    return content[:end]


Examples = Sequence[tuple[np.ndarray, int]]


def framed(record: bytes) -> bytes:
    """A record as TFRECORD files have it, with its checksums."""

    def masked(message: bytes) -> bytes:
        crc = by_bits(message)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


def write_tfds(
    data_dir: Path,
    splits: dict[str, Examples],
    *,
    shape: Sequence[int | None] = (None, None, 3),
    encoding: str = "png",
    features: dict[str, object] | None = None,
    cut: int = 0,
) -> None:
    """A prepared TFDS folder "made_up", written byte by byte: 3 classes, images as PNG or JPEG in TFRECORD files."""
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / "made_up" / "1.0.0"
    folder.mkdir(parents=True)
    for split, examples in splits.items():
        content = b""
        for pixels, label in examples:
            buffer = io.BytesIO()
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, encoding)
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(buffer.getvalue())
            example.features.feature["label"].int64_list.value.append(label)
            content += framed(example.SerializeToString())
        file = folder / f"made_up-{split}.tfrecord-00000-of-00001"
        file.write_bytes(content[: len(content) - cut])
    module = "tensorflow_datasets.core.features"
    dimensions = [str(-1 if size is None else size) for size in shape]
    image = {"shape": {"dimensions": dimensions}, "dtype": "uint8", "encodingFormat": encoding}
    features = features or {
        "image": {"pythonClassName": f"{module}.image_feature.Image", "image": image},
        "label": {"pythonClassName": f"{module}.class_label_feature.ClassLabel", "classLabel": {"numClasses": "3"}},
    }
    (folder / "features.json").write_text(
        json.dumps({"pythonClassName": f"{module}.features_dict.FeaturesDict", "featuresDict": {"features": features}})
    )
    (folder / "dataset_info.json").write_text(
        json.dumps(
            {
                "name": "made_up",
                "version": "1.0.0",
                "fileFormat": "tfrecord",
                "splits": [
                    {
                        "name": split,
                        "shardLengths": [str(len(examples))],
                        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    }
                    for split, examples in splits.items()
                ],
            }
        )
    )


def examples(
    n: int, shape: tuple[int, ...] = (5, 4, 3), seed: int = 0, dtype: type = np.uint8
) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True), i % 3) for i in range(n)]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_pixels_are_read_to_the_bit(tmp_path: Path, channels: int) -> None:
    train, test = examples(7, (5, 4, channels)), examples(3, (5, 4, channels), seed=1)
    write_tfds(tmp_path, {"train": train, "test": test}, shape=(5, 4, channels))
    data = load("made_up", tmp_path)
    for split, written in ((data.train, train), (data.test, test)):
        pixels = np.stack([pixels for pixels, _ in written])
        np.testing.assert_array_equal(split.images, pixels.astype(np.float32) / 255)
        np.testing.assert_array_equal(split.labels, [label for _, label in written])
    assert data.num_classes == 3
    assert data.class_names == ("0", "1", "2")


def test_images_of_unannounced_but_equal_size(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": examples(3), "test": examples(2)})
    assert load("made_up", tmp_path).train.images.shape == (3, 5, 4, 3)


def test_a_grey_jpeg_in_a_colour_set(tmp_path: Path) -> None:
    grey = [(np.full((8, 8, 1), 100, np.uint8), 0)]
    write_tfds(tmp_path, {"train": grey, "test": grey}, encoding="jpeg")
    images = load("made_up", tmp_path).train.images
    assert images.shape == (1, 8, 8, 3)
    np.testing.assert_allclose(images, 100 / 255, atol=2 / 255)


def test_images_of_different_sizes(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": [*examples(3), *examples(1, (6, 4, 3))], "test": examples(2)})
    with pytest.raises(ValueError, match=r"name: got 'made_up' with images of shape \(5, 4, 3\) and \(6, 4, 3\)"):
        load("made_up", tmp_path)


def test_splits_of_different_sizes(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": examples(3), "test": examples(2, (6, 4, 3))})
    with pytest.raises(ValueError, match=r"\(5, 4, 3\) and \(6, 4, 3\), expected images that all have one size"):
        load("made_up", tmp_path)


def test_no_test_split(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": examples(3), "validation": examples(2)})
    with pytest.raises(ValueError, match="name: got 'made_up' with splits train, validation, expected"):
        load("made_up", tmp_path)


def test_unlabelled_split(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": examples(3), "test": [(examples(1)[0][0], -1)]})
    with pytest.raises(ValueError, match="'made_up', whose test split has labels from -1 to -1, expected"):
        load("made_up", tmp_path)


def test_no_image_feature(tmp_path: Path) -> None:
    text = {
        "pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
        "text": {},
    }
    write_tfds(tmp_path, {"train": [], "test": []}, features={"words": text})
    with pytest.raises(ValueError, match=r"name: got 'made_up', whose features are words \(Text\), expected"):
        load("made_up", tmp_path)


def test_empty_split(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": [], "test": examples(2)})
    with pytest.raises(ValueError, match="'made_up', whose train split is empty"):
        load("made_up", tmp_path)


def test_damaged_file(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": examples(3), "test": examples(2)}, cut=5)
    with pytest.raises(ValueError, match="is damaged: it ends inside a record"):
        load("made_up", tmp_path)


def test_missing_records(tmp_path: Path) -> None:
    write_tfds(tmp_path, {"train": examples(3), "test": examples(2)})
    file = tmp_path / "made_up" / "1.0.0" / "made_up-train.tfrecord-00000-of-00001"
    file.write_bytes(first_records(file, 2))
    with pytest.raises(ValueError, match="whose train split is damaged: 2 images, expected 3"):
        load("made_up", tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar11", "'cifar10'"),
        ("digit", "'digits'"),
        ("made_upp", "'made_up'"),
        ("Cifar 10", "'cifar10'"),
        ("", ""),
        (None, ""),
    ],
)
def test_unknown_name(tmp_path: Path, name: str, hint: str) -> None:
    write_tfds(tmp_path, {"train": examples(3), "test": examples(2)})
    with pytest.raises(
        ValueError, match=r"^name: got .*, expected 'digits'.* or the name of a Tensor.*" + hint
    ) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert name is None or caught.value.__cause__ is not None


def test_a_version_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^name: got 'mnist:99\.0\.0', which TFDS refuses: ") as caught:
        load("mnist:99.0.0", tmp_path)
    assert caught.value.__cause__ is not None


def test_data_dir_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^data_dir: got '.*nowhere', expected an existing directory"):
        load("mnist", tmp_path / "nowhere")


def test_without_a_network_it_fails_at_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for scheme in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # where nobody answers
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"could not download 'mnist' .*no answer from [\w.]+\); where there is no"):
        load("mnist", tmp_path)
    assert time.monotonic() - start < 10
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests
    import tensorflow_datasets as tfds

    kept = [tmp_path / "downloads" / "mnist" / "half.tmp" / "file", tmp_path / "downloads" / "of_the_user"]

    def offline(self: object) -> None:
        kept[0].parent.mkdir(parents=True)
        kept[0].touch()
        (tmp_path / "downloads" / "extracted").mkdir()
        (tmp_path / "downloads" / "mnist" / "empty.tmp").mkdir()
        (tmp_path / "mnist").mkdir()
        raise ConnectionError("no route to host\nand more")

    kept[1].mkdir(parents=True)
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(
        RuntimeError, match=r"could not download 'mnist' into .*ConnectionError: no route to host\)"
    ) as e:
        load("mnist", tmp_path)
    assert isinstance(e.value.__cause__, ConnectionError)
    assert "\n" not in str(e.value)
    assert {path for path in tmp_path.rglob("*") if path.is_file() or not list(path.iterdir())} == set(kept)


def of_made_up(data_dir: Path, name: str) -> Path:
    return data_dir / "made_up" / "1.0.0" / name


TRAIN = "made_up-train.tfrecord-00000-of-00001"


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    write_tfds(tmp_path / "data", {"train": examples(3), "test": examples(2)})
    return tmp_path / "data"


def test_a_class_that_is_not_of_tfds_is_not_imported(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made_up / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    monkeypatch.syspath_prepend(made_up)
    file = of_made_up(made_up, "features.json")
    text = file.read_text()
    own = "tensorflow_datasets.core.features.image_feature.Image"
    nested = {"type": "evil.X", "content": {}}
    for hostile in (
        text.replace(own, "evil.X"),
        text.replace('"pythonClassName"', '"python_class_name"').replace(own, "evil.X"),
        # Twice the same key: a reader may take either.
        text.replace(f'"{own}"', f'"evil.X", "pythonClassName": "{own}"'),
        json.dumps(nested),
        json.dumps({"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "x": [nested]}),
    ):
        file.write_text(hostile)
        with pytest.raises(ValueError, match=r"^name: got 'made_up', whose features.json names 'evil.X', expected "):
            load("made_up", made_up)
    assert not (made_up / "ran").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_features_that_are_no_json(made_up: Path, text: str) -> None:
    of_made_up(made_up, "features.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"^name: got 'made_up', whose features.json is no JSON"):
        load("made_up", made_up)


@pytest.mark.parametrize("template", ["../../../stolen", "{tmp}/stolen", "link"])
def test_only_files_inside_the_directory(made_up: Path, tmp_path: Path, template: str) -> None:
    of_made_up(made_up, TRAIN).rename(tmp_path / "stolen")
    of_made_up(made_up, "link").symlink_to(tmp_path / "stolen")
    file = of_made_up(made_up, "dataset_info.json")
    text = file.read_text().replace("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", template.format(tmp=tmp_path))
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^name: got 'made_up', of which .* lies outside of .*, expected it inside"):
        load("made_up", made_up)


def test_a_directory_that_leads_elsewhere(made_up: Path, tmp_path: Path) -> None:
    (made_up / "made_up").rename(tmp_path / "elsewhere")
    (made_up / "made_up").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"lies outside of .*data, expected it inside"):
        load("made_up", made_up)
    # The directory itself may be a link.
    (tmp_path / "link").symlink_to(made_up)
    (made_up / "made_up").unlink()
    (tmp_path / "elsewhere").rename(made_up / "made_up")
    assert len(load("made_up", tmp_path / "link").train) == 3


@pytest.mark.parametrize("name", ["../made_up", "made_up/..", "evil:made_up", "huggingface:x", "made_up/a=1", "."])
def test_names_that_lead_elsewhere(made_up: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^name: got "):
        load(name, made_up)


@pytest.mark.parametrize("file", [TRAIN, "features.json", "dataset_info.json"])
def test_pipes_are_not_opened(made_up: Path, file: str) -> None:
    of_made_up(made_up, file).unlink()
    os.mkfifo(of_made_up(made_up, file))
    with pytest.raises(ValueError, match=r"^name: got 'made_up', of which .* is a pipe, a socket or a device"):
        load("made_up", made_up)


def test_every_flipped_bit_and_every_cut_is_met(made_up: Path) -> None:
    file = of_made_up(made_up, TRAIN)
    whole = file.read_bytes()
    places = range(0, len(whole), 7)
    for damaged in (
        *(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in places),
        *(whole[:at] for at in places),
        whole + b"0",
        whole + struct.pack("<Q", 2**63) + bytes(20),
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^name: got 'made_up', whose train split is damaged: ") as caught:
            load("made_up", made_up)
        assert "\n" not in str(caught.value)


def image_file(format: str, size: tuple[int, int] = (4, 5), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, format, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "encoded",
    [
        *(b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n%%EndComments\nshowpage\n"),
        *(image_file("GIF"), image_file("TIFF"), image_file("BMP"), image_file("WEBP"), image_file("PPM")),
        *(image_file("PNG")[:45], image_file("JPEG")[:-50], image_file("PNG")[:30] + b"\0" * 40),
        *(png_of_size(4, 5), png_of_size(100_000, 100_000), png_of_size(2**13, 2**14)),
    ],
)
def test_what_is_no_png_or_jpeg(made_up: Path, encoded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin
    from tensorflow_datasets.proto import tf_example_pb2

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: pytest.fail("Ghostscript was called"))
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(encoded)
    example.features.feature["label"].int64_list.value.append(1)
    of_made_up(made_up, TRAIN).write_bytes(framed(example.SerializeToString()) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"^name: got 'made_up', whose train split is damaged: ") as caught:
            load("made_up", made_up)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("record", [b"", b"\xff" * 20, b"\n\0"])
def test_records_that_are_no_examples(made_up: Path, record: bytes) -> None:
    of_made_up(made_up, TRAIN).write_bytes(framed(record) * 3)
    with pytest.raises(ValueError, match=r"^name: got 'made_up', whose train split is damaged: "):
        load("made_up", made_up)


@pytest.mark.parametrize("number", ["1000000000000", "9223372036854775807", "-1"])
def test_more_examples_announced_than_fit_the_files(made_up: Path, number: str) -> None:
    file = of_made_up(made_up, "dataset_info.json")
    file.write_text(file.read_text().replace('["3"]', f'["{number}"]'))
    with pytest.raises(ValueError, match=r"^name: got 'made_up', whose train split is damaged: .* examples announced"):
        load("made_up", made_up)


@pytest.mark.parametrize("names", ["one", "one\ntwo\nthree\nfour"])
def test_as_many_class_names_as_classes(made_up: Path, names: str) -> None:
    of_made_up(made_up, "label.labels.txt").write_text(names)
    with pytest.raises(ValueError, match=r"^name: got 'made_up'") as caught:
        load("made_up", made_up)
    assert "\n" not in str(caught.value)


def test_an_unbelievable_number_of_classes(made_up: Path) -> None:
    file = of_made_up(made_up, "features.json")
    file.write_text(file.read_text().replace('"numClasses": "3"', '"numClasses": "1000000000000"'))
    with pytest.raises(ValueError, match=r"^name: got 'made_up' with 1000000000000 classes"):
        load("made_up", made_up)


def test_more_pixels_announced_than_the_files_can_hold(made_up: Path) -> None:
    black = [(np.zeros((2000, 2000, 3), np.uint8), 0)]
    write_tfds(made_up / "bomb", {"train": black, "test": black})
    file = of_made_up(made_up / "bomb", "dataset_info.json")
    file.write_text(file.read_text().replace('["1"]', '["9000"]'))
    with pytest.raises(ValueError, match=r"damaged: 9000 images of shape \(2000, 2000, 3\) announced, in files of"):
        load("made_up", made_up / "bomb")
