"""Data of the user's own: archives, folders and tables."""

import io
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import ntkit
from ntkit.data import Dataset, load
from ntkit.data._splits import stratified
from tests.cli.command import status

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 4, 5, 3), np.uint8)
LABELS = np.arange(20) % 4


def members(data: Dataset) -> dict[bytes, str]:
    """Each image with the name of its class, in both splits."""
    pairs = [
        (image.tobytes(), data.class_names[label])
        for split in (data.train, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert len({*pairs}) == len(pairs)
    return dict(pairs)


def test_an_npz_without_a_test_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS + 7)
    data = load(tmp_path / "a.npz")
    assert (len(data.train), len(data.test), data.num_classes) == (16, 4, 4)
    assert data.class_names == ("7", "8", "9", "10")
    assert sorted(data.test.labels) == [0, 1, 2, 3]
    expected = {
        (image / np.float32(255)).tobytes(): str(label + 7) for image, label in zip(PIXELS, LABELS, strict=True)
    }
    assert members(data) == expected
    other = load(tmp_path / "a.npz", key=jax.random.key(1), test_fraction=0.5)
    assert len(other.test) == 10
    assert members(other) == expected
    again = load(str(tmp_path / "a.npz"), test_fraction=0.2, key=jax.random.key(0))
    np.testing.assert_array_equal(again.train.images, data.train.images)


def test_an_npz_with_a_test_split_of_grey_floats_and_names(tmp_path: Path) -> None:
    grey = RNG.uniform(size=(6, 3, 3))
    names = np.array(["dog", "cat"] * 3)
    np.savez(tmp_path / "a.npz", images=grey, labels=names, test_images=grey[:2], test_labels=names[:2])
    data = load(tmp_path / "a.npz")
    assert data.train.images.shape == (6, 3, 3, 1)
    assert data.class_names == ("cat", "dog")
    assert len(data.test) == 2
    with pytest.raises(ValueError, match=r"test_fraction: got 0\.3, expected none for .*, which has a test split"):
        load(tmp_path / "a.npz", test_fraction=0.3)


def save(path: Path, **changes: Any) -> None:
    arrays: dict[str, Any] = {"images": PIXELS, "labels": LABELS} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def bomb(path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 4, 4, 3)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header.getvalue())


NPZ = {
    "no zip": (lambda path: path.write_bytes(b"text"), "File is not a zip file"),
    "truncated": (lambda path: (save(path), path.write_bytes(path.read_bytes()[:-40])), "expected an .npz of images"),
    "pickled": (lambda path: save(path, images=np.array([object()] * 20)), "holds pickled objects"),
    "no labels": (lambda path: save(path, labels=None), "which has no labels, only images"),
    "half a test split": (lambda path: save(path, test_images=PIXELS), "which has no test_labels"),
    "too few labels": (lambda path: save(path, labels=LABELS[1:]), r"whose labels are int64 of shape \(19,\)"),
    "float labels": (lambda path: save(path, labels=LABELS + 0.5), "whose labels are float64"),
    "one class": (lambda path: save(path, labels=0 * LABELS), "with the class '0' alone"),
    "large floats": (lambda path: save(path, images=PIXELS.astype(np.float32)), r"go from 0 to 255 in float32"),
    "nan": (
        lambda path: save(path, images=np.where(PIXELS[3, 0, 0, 0] == PIXELS, np.nan, 0.5)),
        "hold NaN or infinity",
    ),
    "complex": (lambda path: save(path, images=PIXELS * 1j), "are complex128"),
    "announced": (bomb, "announces uint8 of shape"),
    "another shape": (
        lambda path: save(path, test_images=PIXELS[:, :3], test_labels=LABELS),
        r"test_images of \(3, 5, 3\), expected one shape",
    ),
    "another class": (
        lambda path: save(path, test_images=PIXELS, test_labels=LABELS + 1),
        "whose test split has the class '4'",
    ),
}


@pytest.mark.parametrize("case", NPZ)
def test_a_bad_npz_is_one_line(case: str, tmp_path: Path) -> None:
    make, message = NPZ[case]
    make(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "a.npz")
    assert str(error.value).startswith("name: got ")
    assert "\n" not in str(error.value)


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    expected = {}
    for number, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        folder = tmp_path / "photos" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
        expected[(image / np.float32(255)).tobytes()] = f"class {label}"
    (tmp_path / "photos" / ".hidden").touch()
    data = load(f"{tmp_path}/photos")
    assert members(data) == expected
    assert len(data.test) == 4


def test_train_and_test_folders_of_grey_jpegs(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for label in "ab":
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(PIXELS[number, ..., 0]).save(folder / f"{number}.jpg", quality=100)
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (6, 2)
    assert data.train.images.shape[1:] == (4, 5, 1)
    # A JPEG is not exact.
    nearest = min(np.abs(data.test.images[0, ..., 0] - PIXELS[0, ..., 0] / 255).max() for _ in "a")
    assert nearest < 0.05


def picture(path: Path, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)


FOLDERS = {
    "empty": (lambda path: None, "has no folders"),
    "no class": (lambda path: picture(path / "1.png"), "expected it in a class's folder"),
    "empty class": (lambda path: (picture(path / "a" / "1.png"), (path / "b").mkdir()), "whose folder 'b' is empty"),
    "text": (lambda path: (picture(path / "a" / "1.png"), (path / "a" / "x.txt").touch()), "with 'a/x.txt'"),
    "no picture": (
        lambda path: (picture(path / "a" / "1.png"), (path / "a" / "2.png").write_bytes(b"text")),
        "with 'a/2.png', expected a PNG or JPEG file that is whole",
    ),
    "sizes": (
        lambda path: (picture(path / "a" / "1.png"), picture(path / "b" / "1.png", (5, 4))),
        "'b/1.png' of 5×4, expected images that all have one size",
    ),
    "one class": (lambda path: picture(path / "a" / "1.png"), "with the class 'a' alone"),
    "too few": (
        lambda path: (picture(path / "a" / "1.png"), picture(path / "b" / "1.png")),
        "2 images of 2 classes, expected more",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_bad_folder_is_one_line(case: str, tmp_path: Path) -> None:
    make, message = FOLDERS[case]
    make(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_table(tmp_path: Path) -> None:
    x = RNG.normal(size=(30, 3)).astype(np.float32)
    lines = ["a,species,b,c", *(f"{a!r},kind {i % 3},{b!r},{c!r}" for i, (a, b, c) in enumerate(x.tolist()))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n\n")
    data = load(tmp_path / "t.csv", target="species")
    assert members(data) == {row.tobytes(): f"kind {i % 3}" for i, row in enumerate(x)}
    assert data.train.images.shape == (24, 3)


TABLES = {
    "": "it is empty",
    "a,b\n1,2\n": "target: got 'target', expected a column of .*: 'a', 'b'",
    "a,target\n1,x\n2\n": "with 1 cells in row 3, expected 2 as in its header",
    "a,target\n1,x\ntwo,x\n": "with 'two' in row 3, column 'a', expected a finite number",
    "a,target\nnan,x\n": "with 'nan' in row 2, column 'a', expected a finite number",
    "a,target\n1e39,x\n": "with '1e39' in row 2",
    "a,target\n1,0.5\n": "with '0.5' in row 2, column 'target', expected a class",
    "a,target\n1,\n": "with '' in row 2, column 'target', expected a class",
    "a,a,target\n1,1,2\n": "with two columns 'a'",
    "target\n1\n": "with the column 'target' alone",
    "a,target\n": "without rows",
    'a,target\n1,"x\n': "expected a CSV in UTF-8",
    "a,target\n1,x\n2,x\n": "with the class 'x' alone",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_bad_table_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=TABLES[text]) as error:
        load(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


def test_what_is_not_there_and_what_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("none.npz", "none.csv"):
        with pytest.raises(FileNotFoundError, match="none"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="which does not exist, expected your own data"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="target: got 'a', expected none for 'digits'"):
        load("digits", target="a")
    with pytest.raises(ValueError, match="test_fraction: got 1"):
        load("digits", test_fraction=1)


def test_stratified_leaves_one_of_each_class_outside() -> None:
    labels = np.array([0] * 50 + [1] * 2 + [2])
    chosen = stratified(labels, 50)
    assert {*labels[~chosen]} == {0, 1, 2}
    assert stratified(labels, 10).sum() == 10


@pytest.mark.slow
def test_the_command_line_distils_and_evaluates_a_table(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    centres = 3 * np.eye(3)
    rows = [f"{a},{b},{c},{i % 3}" for i, (a, b, c) in enumerate(centres[np.arange(60) % 3] + RNG.normal(size=(60, 3)))]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,kind", *rows]))
    table = ("--dataset", "t.csv", "--target", "kind")
    small = ("--steps", "5", "--target-batch", "20", "--out", "run")
    assert status("distill", *table, *small) == 0
    assert status("evaluate", "run", "--network-steps", "0") == 0
    assert "3 images, t.csv" in capsys.readouterr().out
    assert status("distill", "--dataset", "t.csv") == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("ntkit distill: --target: got 'target', expected a column")
    )
    kernel = ntkit.ntk(ntkit.fc(1))
    assert kernel(load("t.csv", target="kind").train.images).shape == (48, 48)
