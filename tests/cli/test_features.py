import functools
import json
import os

import numpy as np
import pytest

from tests.cli.command import check_one_line, status

SMALL = ("--images", "40", "--test-limit", "20")


command = functools.partial(status, "features")


@pytest.mark.slow
def test_the_run_directory_is_complete_and_the_same_again(tmp_path, capsys) -> None:
    for name in ("a", "b"):
        assert command(*SMALL, "--top", "12", "--out", tmp_path / name) == 0
    output = capsys.readouterr().out
    assert "digits, ntk of fc1: 12 features, l∞ of 0.1" in output
    assert "10 to 11" in output
    assert {"results.json", "features.png", "gradients.png", "report.html", "config.json"} <= set(
        os.listdir(tmp_path / "a")
    )
    text = (tmp_path / "a" / "results.json").read_text()
    assert text == (tmp_path / "b" / "results.json").read_text()
    found = json.loads(text)
    with np.load(tmp_path / "a" / "results.npz") as arrays:
        accuracy = arrays["accuracy"]
    assert accuracy.shape == (12,)
    assert [part["features"] for part in found["parts"]] == ["0", "1 to 2", "3 to 9", "10 to 11", "0 to 11"]
    np.testing.assert_allclose(found["parts"][1]["each: accuracy"], np.mean(accuracy[1:3]))
    assert found["parts"][-1]["sum: accuracy"] > 0.5
    assert found["parts"][-1]["sum: PGD-20"] <= found["parts"][-1]["sum: accuracy"]
    assert (tmp_path / "a" / "report.html").read_text().count("data:image/png;base64,") == 2


BAD = {
    "--radius 8": "--radius: got 8, expected at most 1",
    "--images 0": "--images: got 0, expected an integer of at least 1",
    "--test-limit 0": "--test-limit: got 0, expected an integer of at least 1",
    "--images 20 --top 21": "--top: got 21, expected an integer from 1 to 20",
    "--depth 1 2": "--depth: got (1, 2), expected one",
    "--seed -1": "--seed: got -1",
    "--norm l1": "invalid choice 'l1' for argument '--norm'",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_one_line_and_exit_status_2(options, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    check_one_line("features", options, BAD[options], capsys)
