import functools
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.runs import Run
from tests.cli.command import check_one_line, status

SMALL = (
    *("--steps", "3", "--train-limit", "200", "--test-limit", "60", "--widths", "16"),
    *("--network-steps", "40", "80", "--network-seeds", "2"),
)
TINY = ("--steps", "2", "--train-limit", "50", "--test-limit", "10", "--widths", "4", "--network-seeds", "1")


command = functools.partial(status, "attack")


def results(path):
    return json.loads((path / "results.json").read_text())


def loaded(path):
    with np.load(path / "results.npz") as content:
        return content["clean"], content["adversarial"], content["labels"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "attack"
    assert command(*SMALL, "--radius", "0.15", "--widths", "16", "256", "--out", path) == 0
    return path


@pytest.mark.slow
def test_the_run_directory_is_complete(finished):
    names = {"config.json", "results.npz", "results.json", "report.html", "transfer.png", "examples.png"}
    assert names <= set(os.listdir(finished))
    assert Run.resume(finished).config["radius"] == 0.15
    report = (finished / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 2
    assert "kernel-crafted" in report
    assert "fc1, width 256" in report


@pytest.mark.slow
def test_the_examples_are_in_their_ball_and_fool_the_kernel(finished):
    clean, adversarial, labels = loaded(finished)
    digits = ntkit.data.load("digits").test
    assert clean.shape == adversarial.shape == (60, 8, 8, 1)
    where = [np.flatnonzero((digits.images == image).all((1, 2, 3))) for image in clean]
    assert all(label in digits.labels[rows] for label, rows in zip(labels, where, strict=True))
    assert np.abs(adversarial.astype(np.float64) - clean).max() <= 0.15
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    kernel = results(finished)["accuracy"][0]
    assert kernel["clean"] > 0.9
    assert kernel["noise"] > kernel["kernel-crafted"] + 0.2


@pytest.mark.slow
def test_networks_fall_for_what_was_crafted_on_the_kernel(finished):
    rows = results(finished)["accuracy"][1:]
    assert [(row["model"], row["steps"]) for row in rows] == [
        ("fc1, width 16", 40),
        ("fc1, width 16", 80),
        ("fc1, width 256", 40),
        ("fc1, width 256", 80),
    ]
    for row in rows:
        assert set(row) == {"model", "steps", "clean", "noise", "kernel-crafted", "white-box"}
        assert all(len(row[name]["values"]) == 2 for name in [*row][2:])
    narrow, wide = ({name: row[name]["mean"] for name in [*row][2:]} for row in rows[1::2])
    assert wide["noise"] > wide["kernel-crafted"] + 0.1
    # As much as for what is crafted on the network itself, if it is wide.
    assert abs(wide["kernel-crafted"] - wide["white-box"]) < 0.1
    assert narrow["kernel-crafted"] - narrow["white-box"] > 0.1


@pytest.mark.slow
def test_two_classes_and_a_time_of_the_flow(tmp_path, capsys):
    options = ("--classes", "8", "3", "--time", "5", "--attack", "fgsm", "--norm", "l2", "--preprocess", "none")
    small = ("--train-limit", "80", "--test-limit", "30", "--widths", "8", "--network-steps", "5")
    assert command(*options, *small, "--network-seeds", "1", "--out", tmp_path / "run") == 0
    output = capsys.readouterr().out
    assert re.search(r"digits, fgsm in l2 of 1\b", output)
    clean, adversarial, labels = loaded(tmp_path / "run")
    assert set(labels) == {3, 8}
    assert np.linalg.norm((adversarial - clean).reshape(30, -1).astype(np.float64), axis=1).max() <= 1
    # The same by hand: the closed form of the flow, and a step along its gradient as JAX finds it.
    split = ntkit.data.load("digits").train
    config = Run.resume(tmp_path / "run").config
    key_task = jax.random.split(jax.random.key(config["seed"]), 3)[0]
    of_both = np.flatnonzero(np.isin(split.labels, (3, 8)))
    chosen = of_both[np.sort(jax.random.permutation(jax.random.split(key_task)[0], len(of_both))[:80])]
    x, y = split.images[chosen], np.where(split.labels[chosen] == 3, 1.0, -1.0)[:, None]
    kernel = ntkit.ntk(ntkit.fc(1))
    values, vectors = np.linalg.eigh(np.asarray(kernel(x), np.float64))
    weights = vectors @ ((-np.expm1(-values * 5 / 80) / values)[:, None] * (vectors.T @ y))
    gradient = jax.grad(lambda z: jnp.sum(kernel(z, x) @ weights))(jnp.asarray(clean))
    sign = np.where(labels == 3, 1, -1)
    step = -sign[:, None] * np.asarray(gradient).reshape(30, -1)
    expected = np.clip(clean.reshape(30, -1) + step / np.linalg.norm(step, axis=1, keepdims=True), 0, 1)
    np.testing.assert_allclose(adversarial.reshape(30, -1), expected, atol=1e-3)


@pytest.mark.slow
def test_architectures_of_all_kinds(tmp_path):
    small = ("--train-limit", "20", "--test-limit", "5", "--network-steps", "1", "--network-seeds", "1", "--steps", "1")
    kinds = ("--network-architectures", "fc", "convnet", "simple_cnn", "--widths", "2", "--depth", "2")
    assert command(*small, *kinds, "--no-centred", "--network-optimizer", "adam", "--out", tmp_path / "run") == 0
    found = [row["model"] for row in results(tmp_path / "run")["accuracy"][1:]]
    assert found == ["fc2, width 2", "convnet3, width 2", "simple_cnn"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command(*TINY, "--network-steps", "2", "--seed", seed, "--out", tmp_path / name) == 0
    one, again, other = (loaded(tmp_path / name) for name in "abc")
    assert all(np.array_equal(left, right) for left, right in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert (tmp_path / "a" / "results.json").read_bytes() == (tmp_path / "b" / "results.json").read_bytes()


@pytest.mark.slow
def test_a_stop_keeps_the_examples(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ntkit.cli.attack.transfer", interrupted)
    path = tmp_path / "run"
    assert command(*TINY, "--out", path) == 130
    assert capsys.readouterr().err.endswith(
        f"ntkit attack: stopped; kept in {path}: examples.png, report.html, results.json, results.npz\n"
    )
    assert loaded(path)[0].shape == (10, 8, 8, 1)


BAD = {
    "--radius -1": "--radius: got -1.0, expected a finite number above 0, in units of the pixels",
    "--radius 8": "--radius: got 8, expected at most 1, the range of the pixels' bounds",
    "--attack nope": "invalid choice 'nope' for argument '--attack'",
    "--norm l1": "invalid choice 'l1' for argument '--norm'",
    "--steps 0": "--steps: got 0, expected an integer of at least 1",
    "--attack fgsm --steps 5": "--steps: got 5 for fgsm, expected one of its options: loss",
    "--attack square --restarts 5": "--restarts: got 5 for square, expected one of its options:",
    "--restarts 0": "--restarts: got 0, expected an integer of at least 1",
    "--time -1": "--time: got -1.0, expected a number of at least 0, or infinity",
    "--time nan": "--time: got nan, expected a number of at least 0, or infinity",
    "--classes 3": "--classes: got (3,), expected two or more different ones of 0 to 9",
    "--classes 3 3": "--classes: got (3, 3), expected two or more different ones of 0 to 9",
    "--classes 3 10": "--classes: got (3, 10), expected two or more different ones of 0 to 9",
    "--train-limit 0": "--train-limit: got 0, expected an integer of at least 1",
    "--test-limit 0": "--test-limit: got 0, expected an integer of at least 1",
    "--widths 8 0": "--widths: got 0, expected an integer of at least 1",
    "--network-steps 0": "--network-steps: got 0, expected an integer of at least 1",
    "--network-seeds 0": "--network-seeds: got 0, expected an integer of at least 1",
    "--network-batch 0": "--network-batch: got 0, expected an integer of at least 1",
    "--network-learning-rate 0": "--network-learning-rate: got 0.0, expected a finite number above 0",
    "--network-architectures vgg": "invalid choice 'vgg' for argument '--network-architectures'",
    "--network-architectures fc convnet --architecture convnet --depth 5": (
        "--network-architectures: got images of 8×8 pixels"
    ),
    "--architecture convnet --depth 5": "--architecture: got images of 8×8 pixels",
    "--depth 1 2": "--depth: got (1, 2), expected one: examples are crafted on one kernel",
    "--seed -1": "--seed: got -1, expected at least 0 and below 2**32",
    "--dataset nope": "--dataset: got 'nope', expected 'digits' or the name of a TensorFlow Datasets (TFDS) set",
    "--out file": "--out: got 'file', which is a file, expected a directory for the run",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_one_line_and_exit_status_2(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    check_one_line("attack", options, BAD[options], capsys)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
def test_training_that_diverges(tmp_path, capsys):
    diverging = ("--network-steps", "100", "--network-learning-rate", "1e20")
    assert command(*TINY, *diverging, "--out", tmp_path / "run") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ntkit attack: training diverged: the loss is nan by step 100; try a smaller learning rate")
