import json
import os
import zipfile

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkit.distill import Distilled

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 3, 3, 1)).astype(np.float32)
LABELS = RNG.normal(size=(4, 2)).astype(np.float32)
HISTORY = {"step": np.array([1, 2]), "loss": np.array([0.5, 0.1 + 0.2])}


def test_saves_and_loads(tmp_path):
    metadata = {"config": {"seed": 0, "depth": [1, 2]}, "note": "ü"}
    Distilled(IMAGES, LABELS, HISTORY, metadata).save(tmp_path / "set.npz")
    loaded = Distilled.load(tmp_path / "set.npz")
    assert loaded.images.dtype == loaded.labels.dtype == np.float32
    np.testing.assert_array_equal(loaded.images, IMAGES)
    np.testing.assert_array_equal(loaded.labels, LABELS)
    assert loaded.metadata == metadata
    assert {name: list(column) for name, column in loaded.history.items()} == {
        name: list(column) for name, column in HISTORY.items()
    }
    assert loaded.kernel is None


@pytest.mark.parametrize("column", [np.array(["a"]), np.array([None, 1.0]), np.array([True]), np.ones((2, 2))])
def test_a_history_that_could_not_be_loaded_again_is_refused(column):
    with pytest.raises(ValueError, match=r"^history: got .* for note, expected numbers"):
        Distilled(IMAGES, LABELS, HISTORY | {"note": column})


def test_other_code_can_read_it(tmp_path):
    Distilled(IMAGES, LABELS, HISTORY, {"config": {"seed": 0}}).save(tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz", allow_pickle=False) as content:
        assert sorted(content.files) == ["images", "labels", "metadata"]
        np.testing.assert_array_equal(content["images"], IMAGES)
        np.testing.assert_array_equal(content["labels"], LABELS)
        assert json.loads(str(content["metadata"]))["config"] == {"seed": 0}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("images", [IMAGES, IMAGES.reshape(4, 9).astype(np.float64)])
def test_opens_the_published_format(save, images, tmp_path):
    save(tmp_path / "kip.npz", images=images, labels=LABELS)
    loaded = Distilled.load(tmp_path / "kip.npz")
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.images.dtype == images.dtype
    assert not loaded.history
    assert not loaded.metadata


def test_integer_labels_become_centred_targets(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.array([0, 3, 1, 2]))
    np.testing.assert_allclose(Distilled.load(tmp_path / "a.npz").labels, np.eye(4)[[0, 3, 1, 2]] - 0.25)


def archive(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)


def header(shape, dtype="<f4"):
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape})
    text = text + " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


BAD = {
    "truncated": (lambda path: cut(path, 200), "zip"),
    "empty": (lambda path: path.write_bytes(b""), "zip"),
    "not a zip": (lambda path: path.write_text("images, labels"), "zip"),
    "a folder": (lambda path: path.mkdir(), "directory"),
    "an array": (lambda path: save_array(path), "zip"),
    "wrong keys": (lambda path: np.savez(path, x=IMAGES, y=LABELS), "it has no array 'images', only x, y"),
    "no labels": (lambda path: np.savez(path, images=IMAGES), "it has no array 'labels', only images"),
    "pickle": (lambda path: np.savez(path, images=IMAGES.astype(object), labels=LABELS), "holds pickled objects"),
    "pickled metadata": (
        lambda path: np.savez(path, images=IMAGES, labels=LABELS, metadata=np.array({"a": 1}, object)),
        "holds pickled objects",
    ),
    "bytes": (
        lambda path: np.savez(path, images=(255 * IMAGES).astype(np.uint8), labels=LABELS),
        "images: got dtype uint8",
    ),
    "strings": (lambda path: np.savez(path, images=IMAGES, labels=np.array(["a"] * 4)), "labels: got <U1"),
    "lengths": (lambda path: np.savez(path, images=IMAGES, labels=LABELS[:3]), "labels: got shape (3"),
    "nothing": (lambda path: np.savez(path, images=IMAGES[:0], labels=LABELS[:0]), "images: got shape (0"),
    "NaN": (lambda path: np.savez(path, images=IMAGES * np.nan, labels=LABELS), "images: got NaN or infinity"),
    "infinity": (lambda path: np.savez(path, images=IMAGES, labels=LABELS / 0), "labels: got NaN or infinity"),
    "negative class": (lambda path: np.savez(path, images=IMAGES, labels=np.arange(4) - 1), "its labels go from -1"),
    "class bomb": (lambda path: np.savez(path, images=IMAGES, labels=np.arange(4) * 10**12), "its labels go from 0"),
    "no JSON": (lambda path: np.savez(path, images=IMAGES, labels=LABELS, metadata=np.array("{")), "Expecting"),
    "a list": (lambda path: np.savez(path, images=IMAGES, labels=LABELS, metadata=np.array("[]")), "metadata are not"),
    "deep": (lambda path: np.savez(path, images=IMAGES, labels=LABELS, metadata=np.array("[" * 10**6)), "recursion"),
    "history": (
        lambda path: np.savez(path, images=IMAGES, labels=LABELS, metadata=np.array('{"history": {"a": [[1], 2]}}')),
        "inhomogeneous",
    ),
    "history of text": (
        lambda path: np.savez(path, images=IMAGES, labels=LABELS, metadata=np.array('{"history": {"a": "b"}}')),
        "history: got",
    ),
    "a lying shape": (
        lambda path: archive(path, {"images.npy": header((10**14, 2)), "labels.npy": header((4, 2))}),
        "",
    ),
    "an impossible shape": (
        lambda path: archive(path, {"images.npy": header((10**30, 2)), "labels.npy": header((4, 2))}),
        "",
    ),
    "a bomb": (lambda path: bomb(path), "it would unpack to 5.0 GiB"),
}


def cut(path, size):
    Distilled(IMAGES, LABELS).save(path)
    os.truncate(path, size)


def save_array(path):
    with open(path, "wb") as file:
        np.save(file, IMAGES)


def bomb(path):
    # The size stands in the directory of the archive: zeros that compress well would take seconds to write.
    np.savez(path, images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    second = content.index(b"PK\x01\x02", at + 4)
    content[second + 24 : second + 28] = (2**30 + 2).to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(name, tmp_path):
    make, reason = BAD[name]
    path = tmp_path / "set.npz"
    make(path)
    with pytest.raises(ValueError, match=r"^path: got '.*set.npz', .*expected an .npz of images and labels") as caught:
        Distilled.load(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^path: got '.*nope.npz', which does not exist, expected an .npz"):
        Distilled.load(tmp_path / "nope.npz")


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_is_a_value_error_or_harmless(changes, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    with open(path, "wb") as file:
        np.savez(file, images=IMAGES, labels=LABELS, metadata=np.array('{"history": {"step": [1]}, "config": {}}'))
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        loaded = Distilled.load(path)
    except ValueError as error:
        message = str(error)
    else:
        message = "path: " if np.isfinite(loaded.images).all() else "loaded something else"
    assert message.startswith("path: ")


def test_a_file_survives_a_failed_save(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    Distilled(IMAGES, LABELS).save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        Distilled(IMAGES, LABELS, {}, {"what": object()}).save(path)

    def fail(file, **arrays):
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="No space left"):
        Distilled(2 * IMAGES, LABELS).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["set.npz"]


def test_an_unwritable_path(tmp_path):
    with pytest.raises(OSError, match=r"path: cannot write '.*/absent/set.npz'"):
        Distilled(IMAGES, LABELS).save(tmp_path / "absent" / "set.npz")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[0], LABELS, "images: got shape"),
        (IMAGES, LABELS[:, 0], "labels: got shape"),
        (IMAGES.astype(int), LABELS, "images: got dtype int64, expected floats"),
        (IMAGES, LABELS * np.nan, "labels: got NaN or infinity, expected finite numbers"),
    ],
)
def test_a_set_is_checked(images, labels, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Distilled(images, labels)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "set.npz")
    with pytest.raises(ValueError, match=r"^path: got '.*set.npz', which is a pipe, a socket or a device, expected an"):
        Distilled.load(tmp_path / "set.npz")


def test_opens_checkpoints_of_flax(tmp_path):
    """With images (n, channels, height, width), under names of their own."""
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 6)).astype(np.float32)
    labels = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    content = {"params": {"coreset": images, "y": labels}, "step": 7, "opt": {"mu": np.zeros(3, np.float32)}}
    (tmp_path / "checkpoint_7").write_bytes(msgpack_serialize(content))
    loaded = Distilled.load(tmp_path / "checkpoint_7")
    np.testing.assert_array_equal(loaded.images, np.moveaxis(images, 1, 3))
    np.testing.assert_array_equal(loaded.labels, labels)
    # As others write `.npz` files, too.
    np.savez(tmp_path / "nchw.npz", images=images, labels=labels)
    np.testing.assert_array_equal(Distilled.load(tmp_path / "nchw.npz").images, loaded.images)
    for content, message in (
        ({"a": images, "b": images, "y": labels}, "it has 2 arrays of images, not one"),
        ({"a": images, "y": labels[:3]}, "it has 0 arrays of labels for 4 images, not one"),
    ):
        (tmp_path / "other").write_bytes(msgpack_serialize(content))
        with pytest.raises(ValueError, match=f"path: got .*other', expected an .npz of images and labels: {message}"):
            Distilled.load(tmp_path / "other")
