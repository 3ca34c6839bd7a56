import functools
import json
import os

import numpy as np
import pytest

import ntkit
from ntkit.networks import Dynamics
from ntkit.runs import Run
from tests.cli.command import check_one_line, status

TINY = (
    *("--at", "0", "2", "4", "--width", "8", "--sample", "15", "--top", "5", "--adversary-steps", "1"),
    *("--train-limit", "40", "--test-limit", "20"),
)


command = functools.partial(status, "dynamics")


def results(path):
    return json.loads((path / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "dynamics"
    assert command(*TINY, "--learning-rate", "0.5", "--radius", "0.15", "--out", path) == 0
    return path


@pytest.mark.slow
def test_the_run_directory_is_complete(finished):
    names = {"config.json", "results.json", "results.npz", "report.html", "dynamics.png"}
    assert names <= set(os.listdir(finished))
    assert Run.resume(finished).config["radius"] == 0.15
    report = (finished / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 1
    assert "bottom: angle" in report


@pytest.mark.slow
def test_results_are_those_of_the_kernels(finished):
    found = results(finished)
    assert list(found) == ["title", "summary", "metrics", "accuracy", "rotation"]
    with np.load(finished / "results.npz") as content:
        assert content["steps"].tolist() == [0, 2, 4]
        assert content["images"].shape == (15, 8, 8, 1)
        y = np.asarray(ntkit.data.one_hot(content["labels"], 10))
        for kind in ("standard", "adversarial"):
            metrics, rotation, accuracy = (
                {name: [row[name] for row in found[table] if row["training"] == kind] for name in found[table][0]}
                for table in ("metrics", "rotation", "accuracy")
            )
            dynamics = Dynamics((0, 2, 4), content[kind])
            np.testing.assert_allclose(metrics["moved"], dynamics.distances[0], rtol=1e-6, atol=1e-15)
            np.testing.assert_allclose(metrics["aligned"], dynamics.alignment(y), rtol=1e-6)
            np.testing.assert_allclose(metrics["top 10"], dynamics.concentration(10), rtol=1e-6)
            assert "top 20" not in metrics
            for part in ("all", "top", "bottom"):
                radius, angle = dynamics.rotation(part, top=5)
                np.testing.assert_allclose(rotation[f"{part}: radius"], radius, rtol=1e-5)
                np.testing.assert_allclose(rotation[f"{part}: angle"], np.degrees(angle), rtol=1e-5)
            assert [len(accuracy[name]) for name in ("clean", "pgd")] == [3, 3]
        assert np.array_equal(content["standard"][0], content["adversarial"][0])
        assert not np.allclose(content["standard"][1:], content["adversarial"][1:])


@pytest.mark.slow
def test_both_trainings_from_each_step_on(tmp_path, capsys):
    small = ("--at", "0", "20", "100", "--train-limit", "300", "--test-limit", "60", "--width", "32")
    kind = ("--optimizer", "adam", "--learning-rate", "0.01", "--centred", "--loss", "mse", "--linearize")
    for name in ("a", "b"):
        assert command(*small, *kind, "--seed", 1, "--out", tmp_path / name) == 0
    output = capsys.readouterr().out
    assert "standard and adversarial training (l∞ of 0.1)" in " ".join(output.split())
    assert "linearized: at that step" in output
    found = results(tmp_path / "a")
    for kind in ("standard", "adversarial"):
        ends = [row for row in found["accuracy"] if row["training"] == kind and "linearized: clean" in row]
        assert [row["step"] for row in ends] == [0, 20]
        assert all(row["linearized: clean"] > 0.7 for row in ends)
    assert (tmp_path / "a" / "results.json").read_bytes() == (tmp_path / "b" / "results.json").read_bytes()
    robust = {row["training"]: row["pgd"] for row in found["accuracy"] if row["step"] == 100}
    assert robust["adversarial"] > robust["standard"] + 0.1


@pytest.mark.slow
def test_networks_with_proportions_of_their_own(tmp_path):
    small = ("--at", "0", "1", "--train-limit", "20", "--test-limit", "5", "--sample", "8", "--top", "2")
    kind = (
        "--architecture",
        "simple_cnn",
        "--width",
        "2",
        "--adversary",
        "fgsm",
        "--norm",
        "l2",
        "--batch-size",
        "None",
    )
    assert command(*small, *kind, "--out", tmp_path / "run") == 0
    assert not any(name.startswith("top") for name in results(tmp_path / "run")["metrics"][0])


BAD = {
    "--radius -1": "--radius: got -1.0, expected a finite number above 0, in units of the pixels",
    "--radius 8": "--radius: got 8, expected at most 1, the range of the pixels' bounds",
    "--adversary none": "invalid choice 'none' for argument '--adversary'",
    "--adversary fgsm --adversary-steps 5": "--adversary-steps: got 5 for fgsm, expected none: it has no steps",
    "--adversary-steps 0": "--adversary-steps: got 0, expected an integer of at least 1",
    "--at 5": "--at: got (5,), expected two or more different numbers of steps",
    "--at 5 5": "--at: got (5, 5), expected two or more different numbers of steps",
    "--at 0 -1": "--at: got -1, expected an integer of at least 0",
    "--sample 1": "--sample: got 1, expected an integer of at least 2",
    "--top 0": "--top: got 0, expected an integer of at least 1",
    "--top 20 --sample 20": "--top: got 20, expected less than the 20 images of the sample",
    "--top 20 --train-limit 20": "--top: got 20, expected less than the 20 images of the sample",
    "--train-limit 0": "--train-limit: got 0, expected an integer of at least 1",
    "--test-limit 0": "--test-limit: got 0, expected an integer of at least 1",
    "--width 0": "--width: got 0, expected an integer of at least 1",
    "--depth 0": "--depth: got 0, expected an integer of at least 1",
    "--depth 2 --architecture vgg11": "--depth: got 2 for vgg11, expected none: it has its own",
    "--architecture convnet --depth 5": "--architecture: got images of 8×8 pixels",
    "--architecture vgg": "invalid choice 'vgg' for argument '--architecture'",
    "--activation nope": "--activation: got 'nope', expected one of",
    "--batch-size 0": "--batch-size: got 0, expected an integer of at least 1",
    "--learning-rate nan": "--learning-rate: got nan, expected a finite number above 0",
    "--seed -1": "--seed: got -1, expected at least 0 and below 2**32",
    "--dataset nope": "--dataset: got 'nope', expected 'digits' or the name of a TensorFlow Datasets (TFDS) set",
    "--out file": "--out: got 'file', which is a file, expected a directory for the run",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_one_line_and_exit_status_2(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    check_one_line("dynamics", options, BAD[options], capsys)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
def test_training_that_diverges(tmp_path, capsys):
    diverging = ("--loss", "mse", "--learning-rate", "1e20", "--at", "0", "40")
    assert command(*TINY, *diverging, "--out", tmp_path / "run") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ntkit dynamics: training diverged: the loss is nan by step 40; try a smaller learning rate")
    assert not (tmp_path / "run").exists()
