import functools
import json

import numpy as np
import pytest
import scipy.stats

from tests.cli.command import check_one_line, status

SMALL = ("--images", "20", "--train-limit", "64", "--epochs", "1", "--steps", "30", "--seeds", "1")


command = functools.partial(status, "score")


@pytest.mark.slow
def test_ranks_and_writes(tmp_path, capsys) -> None:
    for name in ("a", "b"):
        assert command(*SMALL, "--candidates", "fc1x8", "fc2x16", "simple_cnnx4", "--out", tmp_path / name) == 0
    assert "Kendall's τ" in capsys.readouterr().out
    text = (tmp_path / "a" / "results.json").read_text()
    assert text == (tmp_path / "b" / "results.json").read_text()
    found = json.loads(text)
    assert {row["network"] for row in found["networks"]} == {"fc1x8", "fc2x16", "simple_cnnx4"}
    accuracies = [row["accuracy"] for row in found["networks"]]
    expected = scipy.stats.kendalltau([-row["condition_number"] for row in found["networks"]], accuracies).statistic
    np.testing.assert_allclose({row["score"]: row["tau"] for row in found["kendall"]}["condition_number"], expected)
    assert accuracies == sorted(accuracies, reverse=True)


BAD = {
    "--candidates fc1": "--candidates: got ('fc1',), expected two or more to rank",
    "--candidates fc1 nope": "--candidates: got 'nope', expected one such as fc2",
    "--candidates fc1 convnet7": "--candidates: got 'convnet7': ",
    "--images 0": "--images: got 0, expected an integer of at least 1",
    "--seeds 0": "--seeds: got 0, expected an integer of at least 1",
    "--learning-rate 0": "--learning-rate: got 0.0, expected a finite number above 0",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_one_line_and_exit_status_2(options, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    check_one_line("score", options, BAD[options], capsys)


def test_a_learning_rate_at_which_networks_diverge_is_blamed(tmp_path, capsys):
    small = "--candidates fc1x4 fc2x4 --images 20 --train-limit 50 --epochs 1 --steps 2 --seeds 1 --learning-rate 1e30"
    check_one_line(
        "score", f"{small} --out {tmp_path / 'run'}", "--learning-rate: got 1e+30, expected less: the networks", capsys
    )
    assert not (tmp_path / "run").exists()
