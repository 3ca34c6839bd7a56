"""Signals at any moment of a command: one line, 128 + signal, and no directory that is in the way of another try."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import ntkit_command
from ntkit.runs import Run, directory
from tests.cli.command import status

LABEL_SOLVE = ("label-solve", "--full-set-limit", "60")
DISTILL = ("distill", "--steps", "20", "--log-every", "2", "--target-batch", "50", "--full-set-limit", "60")


def raise_signal(number):
    return lambda *arguments, **named: signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["distill", "label-solve", "attack", "features", "dynamics", "score"])
def test_while_setting_up(command, number, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ntkit.cli.options.load", raise_signal(number))
    assert status(command, "--out", tmp_path / "run") == 128 + number
    assert capsys.readouterr().err.startswith(f"ntkit {command}: stopped")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("command", ["distill", "label-solve", "features", "score"])
def test_while_the_run_directory_is_made(command, tmp_path, monkeypatch, capsys):
    write = directory.atomic_write

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return write(*arguments)

    monkeypatch.setattr(directory, "atomic_write", interrupted)
    assert status(command, "--out", tmp_path / "run") == 143
    assert capsys.readouterr().err == f"ntkit {command}: stopped; nothing is kept\n"
    assert not os.listdir(tmp_path)


def test_while_the_table_is_printed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("ntkit.cli.tables.print_tables", raise_signal(signal.SIGTERM))
        assert status(*LABEL_SOLVE, "--out", path) == 143
    message = capsys.readouterr().err
    assert message.startswith(f"ntkit label-solve: stopped; kept in {path}: distilled.npz, distilled.png, ")
    assert set(message.split(": ")[-1].strip().split(", ")) == {*os.listdir(path)} - {"config.json", ".lock"}
    assert json.loads((path / "results.json").read_text())
    assert status(*LABEL_SOLVE, "--out", path) == 2
    message = f"ntkit label-solve: --out: {str(path)!r} already holds a run, expected another directory\n"
    assert capsys.readouterr().err == message


def test_what_was_killed_before_it_did_anything_is_not_in_the_way(tmp_path, monkeypatch, capsys):
    """As `kill -9` leaves it: the configuration, a lock that nobody holds, a file half written."""
    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "discard", lambda run: None)
        patched.setattr("ntkit.distill.label_solve", raise_signal(signal.SIGTERM))
        assert status(*LABEL_SOLVE, "--out", path) == 143
    assert "config.json" in os.listdir(path)
    assert status(*LABEL_SOLVE, "--ridge", "1", "--out", path) == 2  # another run
    assert status(*LABEL_SOLVE, "--out", path) == 0
    assert (path / "report.html").exists()


@pytest.mark.parametrize("logged", [0, 2])
def test_a_second_ctrl_c_says_what_is_kept(logged, tmp_path, monkeypatch, capsys):
    log = Run.log

    def impatient(self, step, **values):
        if logged:
            log(self, step, **values)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "log", impatient)
        assert status(*DISTILL, "--out", path) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    if not logged:
        assert last == "ntkit distill: stopped at once; nothing is kept"
        assert not path.exists()
        return
    hint = f"there is no checkpoint yet, begin again with: ntkit distill --resume {path}"
    assert last == f"ntkit distill: stopped at once; {hint}"
    assert status("distill", "--resume", path) == 0
    assert (path / "report.html").exists()


def test_while_the_report_is_written(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("ntkit.plot.image_grid", raise_signal(signal.SIGHUP))
        assert status(*DISTILL, "--out", path) == 129
    message = f"ntkit distill: stopped; go on with: ntkit distill --resume {path}"
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert status("distill", "--resume", path) == 0
    assert (path / "report.html").exists()


def test_an_empty_directory_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("ntkit.distill.label_solve", raise_signal(signal.SIGTERM))
    path = tmp_path / "mine"
    path.mkdir()
    assert status(*LABEL_SOLVE, "--out", path) == 143
    assert path.exists()
    assert not os.listdir(path)


# JAX is half imported for most of it.
SLOW_IMPORT = """
import sys, time, types
sys.modules["jax"] = types.ModuleType("jax")
print("importing", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_ntkit_is_imported(number, tmp_path):
    (tmp_path / "ntkit").mkdir()
    (tmp_path / "ntkit" / "__init__.py").write_text(SLOW_IMPORT)
    child = subprocess.Popen(
        [sys.executable, "-c", "import ntkit_command; ntkit_command.main()"],
        cwd=tmp_path,  # which comes before the path
        env={**os.environ, "PYTHONPATH": os.path.dirname(ntkit_command.__file__)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "importing\n"
    child.send_signal(number)
    assert child.communicate(timeout=10) == ("", "ntkit: stopped\n")
    assert child.returncode == 128 + number


def test_while_a_stream_is_written_to(monkeypatch):
    # As of a write during which the signal's handler runs.
    class Busy(io.StringIO):
        def flush(self) -> None:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    ended = []
    monkeypatch.setattr(sys, "stdout", Busy())
    monkeypatch.setattr(os, "_exit", ended.append)
    ntkit_command._end(143)
    assert ended == [143]


@pytest.mark.slow
@pytest.mark.parametrize("after", [1.0, 1.5, 2.0, 3.0, 4.5])
def test_the_process_at_any_moment(after, tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-c", "import ntkit_command; ntkit_command.main()", *DISTILL, "--steps", "1000000"]
    child = subprocess.Popen([*command, "--out", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(after)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=60)
    assert (child.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(("ntkit: stopped", "ntkit distill: stopped"))
    assert not path.exists() or Run.resume(path).step is not None
