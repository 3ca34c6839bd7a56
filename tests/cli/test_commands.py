import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ntkit.cli import main
from ntkit.distill import Distilled
from ntkit.runs import Run

# What is tested is what happens around the steps.
SMALL = ("--steps", "40", "--target-batch", "50", "--full-set-limit", "200", "--log-every", "7", "--support-batch", "5")


def ntkit(*arguments):
    """Run the command line in this process; its exit status."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return exit_.code
    return 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run that `ntkit distill` makes of the digits, shorter."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert ntkit("distill", "--steps", "150", "--target-batch", "400", "--out", path) == 0
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert ntkit("distill", *SMALL, "--checkpoint-every", "0", "--out", path) == 0
    return path


def assert_same_bits(one, other):
    first, second = Distilled.load(one / "distilled.npz"), Distilled.load(other / "distilled.npz")
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def test_distilled_digits_beat_real_ones_by_a_wide_margin(finished):
    rows = json.loads((finished / "results.json").read_text())["regression"]
    assert [row["images"] for row in rows] == ["10 real", "10 distilled", "1,437 real (all)"]
    real, distilled, every = (row["test accuracy"] for row in rows)
    assert distilled > real["mean"] + 0.2
    assert distilled < every
    assert rows[0]["draws"] == len(real["values"]) == 10
    assert 0 < real["std"] < 0.2


def test_the_run_directory_is_complete(finished):
    names = {"config.json", "metrics.jsonl", "checkpoints", "distilled.npz", "distilled.png", "history.png"}
    assert names | {"report.html", "results.json"} <= set(os.listdir(finished))
    assert json.loads((finished / "config.json").read_text())["config"]["steps"] == 150
    assert [record["step"] for record in Run.resume(finished).metrics()] == list(range(10, 151, 10))
    report = (finished / "report.html").read_text()
    assert "10 distilled" in report
    assert "data:image/png;base64," in report
    distilled = Distilled.load(finished / "distilled.npz")
    assert distilled.images.shape == (10, 8, 8, 1)
    assert distilled.metadata["config"]["dataset"] == "digits"


def test_distill_ends_with_the_table(capsys, undisturbed, tmp_path):
    assert ntkit("distill", "--resume", undisturbed) == 0
    output, errors = capsys.readouterr()
    for row in ("10 real ", "10 distilled ", "1,437 real (all) "):
        assert re.search(rf"{re.escape(row)}.*\d+\.\d %", output)
    assert re.search(r"10 real .* ± .* 10 ", output)
    files = "report.html, results.json, distilled.png, history.png, distilled.npz"
    assert f"{undisturbed}: {files}" in "".join(output.splitlines())
    assert "Traceback" not in errors


def test_evaluate_a_run_a_file_and_a_file_of_other_code(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    accuracy = json.loads((finished / "results.json").read_text())["regression"][1]["test accuracy"]
    expected = f"{100 * accuracy:.1f} %"
    bare = Distilled.load(finished / "distilled.npz")
    np.savez(tmp_path / "kip.npz", images=bare.images, labels=bare.labels)
    quick = ("--network-steps", "0")
    for arguments in ((finished,), (finished / "distilled.npz",), (tmp_path / "kip.npz", "--dataset", "digits")):
        assert ntkit("evaluate", *arguments, *quick) == 0
        output = capsys.readouterr().out
        assert re.search(r"ntk of \w+1.*, ridge 1e-06", output)
        assert expected in output


@pytest.mark.slow
def test_evaluate_by_networks_under_attack(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    network = ("--network-steps", "100", "--network-seeds", "2", "--width", "64", "--network-learning-rate", "0.01")
    assert ntkit("evaluate", finished, "--ridge", "0.1", *network, "--attacked-images", "20", "--radius", "0.1") == 0
    output = capsys.readouterr().out
    assert output.count("AutoAttack") == 2
    assert "ridge 0.1" in output
    rows = [line for line in output.splitlines() if "10 distilled" in line]
    assert len(rows) == 1
    assert float(re.search(r"([\d.]+) ± [\d.]+ %", rows[0])[1]) > 50


@pytest.mark.slow
def test_a_learned_kernel_is_kept_with_the_set(tmp_path, capsys):
    assert ntkit("distill", *SMALL, "--learn-kernel", "--learning-rate", "0.05", "--out", tmp_path / "run") == 0
    accuracy = json.loads((tmp_path / "run" / "results.json").read_text())["regression"][1]["test accuracy"]
    (learned,) = Distilled.load(tmp_path / "run" / "distilled.npz").metadata["kernels"]
    assert abs(learned[0] - 2**0.5) > 1e-3 or abs(learned[1] - 2**0.5) > 1e-3
    capsys.readouterr()
    assert ntkit("evaluate", tmp_path / "run", "--network-steps", "0") == 0
    assert f"{100 * accuracy:.1f} %" in capsys.readouterr().out
    assert ntkit("evaluate", tmp_path / "run", "--network-steps", "0", "--depth", "2") == 0


@pytest.mark.parametrize(
    "learner", ["rat_bptt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rfad", "frepo", "rcig"))]
)
def test_other_learners(learner, tmp_path):
    options = ("--learner-width", "16", "--steps", "3", "--target-batch", "50", "--full-set-limit", "200")
    assert ntkit("distill", "--learner", learner, *options, "--out", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["learner"] == learner
    assert Distilled.load(tmp_path / "run" / "distilled.npz").images.shape == (10, 8, 8, 1)
    assert [record["step"] for record in Run.resume(tmp_path / "run").metrics()][-1] == 3


def test_label_solve(tmp_path, capsys):
    assert ntkit("label-solve", "--full-set-limit", "200", "--out", tmp_path / "run") == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["regression"]
    assert rows[1]["images"] == "10 real, labels solved"
    assert rows[1]["test accuracy"] > rows[0]["test accuracy"]["mean"] + 0.1
    assert "200 real of 1,437" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()


def test_info(capsys):
    assert ntkit("info") == 0
    output = capsys.readouterr().out
    for what in ("ntkit", "jax", "platform", "kernel engines"):
        assert what in output


@pytest.mark.parametrize("command", ["distill", "label-solve", "evaluate", "attack", "features", "dynamics", "score"])
def test_help_says_every_default(command, capsys):
    assert ntkit(command, "--help") == 0
    output = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    options = re.split(r"(?<!,) (?=(?:-\w, )?--[\w-]+[ ,])", output.split("show this help message and exit", 1)[1])[1:]
    assert len(options) >= 13
    for option in options:
        assert "(default:" in option or "(required)" in option, option
        assert len(option.split("(default:")[0].split()) >= 4, option


def test_resuming_takes_the_configuration_from_the_run(undisturbed, capsys):
    before = {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}
    assert ntkit("distill", "--resume", undisturbed, "--steps", "41") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("ntkit distill: --resume: got other values, expected those of the run in ")
    assert "these keys differ: steps: the run has 40, given 41" in errors
    assert before == {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_checkpoints_and_says_how_to_resume(number, status, undisturbed, tmp_path, monkeypatch, capfd):
    path = tmp_path / "a run"
    log = Run.log

    def interrupted(self, step, **values):
        log(self, step, **values)
        if step == 14:
            signal.raise_signal(number)

    monkeypatch.setattr(Run, "log", interrupted)
    assert ntkit("distill", *SMALL, "--out", path) == status
    errors = capfd.readouterr().err
    assert errors.endswith(
        f"ntkit distill: stopped after 14 of 40 steps, saved in {path}; go on with: ntkit distill --resume '{path}'\n"
    )
    monkeypatch.undo()
    assert ntkit("distill", "--resume", path) == 0
    assert_same_bits(path, undisturbed)


def start(*arguments):
    code = "import sys; from ntkit.cli import main; main(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(path, step, child):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if (Run.resume(path).step or 0) >= step:
                return
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint of step {step}: {child.communicate()[1]}")


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path):
    path = tmp_path / "run"
    child = start("distill", *SMALL, "--checkpoint-every", "0", "--out", path)
    wait_for_checkpoint(path, 3, child)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (path / "distilled.npz").exists()
    assert 3 <= Run.resume(path).step < 40
    assert ntkit("distill", "--resume", path) == 0
    assert_same_bits(path, undisturbed)


@pytest.fixture
def copied(undisturbed, tmp_path):
    return shutil.copytree(undisturbed, tmp_path / "copied")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0.05, 0.5])
def test_a_flipped_bit_in_a_checkpoint_changes_nothing_but_a_line(at, copied, undisturbed, capsys):
    flip(copied / "checkpoints" / "00000040.npz", at)
    for name in ("metrics.jsonl", "distilled.npz"):
        (copied / name).unlink()
    assert ntkit("distill", "--resume", copied) == 0
    errors = capsys.readouterr().err
    step = re.findall(
        r"00000040\.npz cannot be read, so the run goes on from step (\d+), the checkpoint before", errors
    )
    assert len(step) == 1
    assert 0 < int(step[0]) < 40
    assert errors.count(f"metrics.jsonl' had lost or changed records up to step {step[0]}; they are put back") == 1
    assert "Traceback" not in errors
    assert_same_bits(copied, undisturbed)


def check_refused(path, message, capsys):
    """Require that a run can't be resumed, for one reason, and that this leaves all files as they are."""
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    assert ntkit("distill", "--resume", path) == 2
    output, errors = capsys.readouterr()
    assert not output
    assert errors.count("\n") == 1
    assert errors.startswith("ntkit distill: ")
    assert message in errors
    assert {each: each.read_bytes() for each in path.rglob("*") if each.is_file()} == before


def test_without_an_undamaged_checkpoint_nothing_is_lost(copied, capsys):
    for path in (copied / "checkpoints").iterdir():
        flip(path, 0.5)
    check_refused(copied, "none of the checkpoints", capsys)


EDITS = {
    "steps below the checkpoint's": ({"config": {"steps": 7}}, "--steps: got 7, expected at least 40"),
    "another seed": ({"config": {"seed": 1}}, "these keys differ: seed: the run has 0, given 1"),
    "no seed": ({"config": {"seed": None}}, "--resume: got seed = None, expected what that option can be, in '"),
    "a number as text": (
        {"config": {"ridge": "1"}},
        "--resume: got ridge = '1', expected what that option can be, in '",
    ),
    "depth within depth": ({"config": {"depth": [[1]]}}, "--resume: got depth = [[1]], expected what"),
    "no versions": ({"versions": {}}, "config.json' is not a run's: expected the keys config, versions"),
    "versions that are numbers": ({"versions": {"ntkit": 1}}, "got {'ntkit': 1} for versions"),
    "a device that is a list": ({"device": []}, "got [] for device"),
    "no time": ({"created": None}, "got None for created"),
    "deep configuration": ({"config": {"deep": functools.reduce(lambda x, _: [x], range(400), 1)}}, "for config"),
    "deep device": ({"device": {"deep": functools.reduce(lambda x, _: {"x": x}, range(400), 1)}}, "for device"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_configuration_that_was_edited_is_refused(edit, copied, capsys):
    path = copied / "config.json"
    content = json.loads(path.read_text())
    changes, message = EDITS[edit]
    for key, change in changes.items():
        content[key] = {**content[key], **change} if key == "config" else change
    path.write_text(json.dumps(content))
    check_refused(copied, message, capsys)


def test_a_configuration_nested_without_end_is_refused(copied, capsys):
    (copied / "config.json").write_text("[" * 100_000)
    check_refused(copied, "config.json', which is not whole, expected JSON (", capsys)


def test_evaluate_refuses_a_run_whose_configuration_is_not_that_of_its_set(copied, capsys):
    path = copied / "config.json"
    path.write_text(path.read_text().replace('"ridge": 1e-06', '"ridge": 1e-02'))
    assert ntkit("evaluate", copied) == 2
    assert "whose config.json and distilled.npz differ" in capsys.readouterr().err


def test_nothing_is_left_of_a_run_that_was_stopped_before_its_first_step(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ntkit.distill.distill", interrupted)
    assert ntkit("distill", "--out", tmp_path / "run") == 130
    assert capsys.readouterr().err == "ntkit distill: stopped; nothing is kept\n"
    assert not (tmp_path / "run").exists()
