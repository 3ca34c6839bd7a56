import contextlib
import os
import re
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from ntkit.runs import progress

# The module alone, since importing the whole package takes a second.
LOOP = f"""
import runpy, time
progress = runpy.run_path({sys.modules["ntkit.runs.bars"].__file__!r})["progress"]
with progress(40, "distilling [x]", start=10) as bar:
    for step in range(11, 41):
        time.sleep(0.01)
        bar.update(step, loss=1.5 / step, test_accuracy=0.5)
"""


class Opaque:
    """A metric that counts how often it is read."""

    def __init__(self):
        self.reads = 0

    def __float__(self):
        self.reads += 1
        return 0.25


def test_plain_lines_are_few_and_end_with_the_last_step(capsys):
    value = Opaque()
    with progress(1000, "distilling") as bar:
        for step in range(1, 1001):
            bar.update(step, loss=jnp.float32(0.125), test_accuracy=value)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert value.reads == 2
    assert lines[0].startswith("distilling     1/1000    0%  loss 0.125  test accuracy 25.0%")
    assert re.fullmatch(
        r"distilling  1000/1000  100%  loss 0\.125  test accuracy 25\.0%  .* steps/s  0:00 left", lines[1]
    )


def test_plain_lines_show_how_far_an_error_came(capsys):
    def train():
        with progress(10, "training") as bar:
            bar.update(1)
            bar.update(2, loss=float("nan"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train()
    assert "2/10   20%  loss nan" in capsys.readouterr().err.splitlines()[-1]


def test_a_line_every_few_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress(100, "x") as bar:
        for step in range(1, 31):
            now[0] += 1
            bar.update(step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    assert lines[-1] == "x   30/100   30%  1 steps/s  1:10 left"


def test_silence(capsys):
    with progress(10, "x", enabled=False) as bar:
        bar.update(1, loss=object())
    assert capsys.readouterr().err == ""


def test_nothing_updated_and_no_steps(capsys):
    with progress(0, "x"):
        pass
    assert capsys.readouterr().err == ""
    with progress(0, "x") as bar:
        bar.update(0)
    assert "100%" in capsys.readouterr().err


def test_negative_totals():
    with pytest.raises(ValueError, match="total: got -1, expected an integer of at least 0"), progress(-1, "x"):
        pass


def in_terminal(code, term):
    pty = pytest.importorskip("pty")
    outer, inner = pty.openpty()
    environment = os.environ | {"TERM": term, "COLUMNS": "120", "LINES": "30"}
    child = subprocess.Popen([sys.executable, "-c", code], stderr=inner, stdout=subprocess.PIPE, env=environment)
    os.close(inner)
    chunks = []
    while True:
        try:
            chunk = os.read(outer, 4096)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(outer)
    assert child.wait() == 0
    assert child.stdout.read() == b""
    return b"".join(chunks).decode()


def test_a_bar_on_a_terminal():
    text = in_terminal(LOOP, "xterm-256color")
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    last = [line for line in re.split(r"[\r\n]+", plain) if "40/40" in line][-1]
    assert "distilling [x]" in last
    assert "loss 0.0375" in last
    assert "test accuracy 50.0%" in last
    assert re.search(r"\d steps/s", last)
    assert "0:00 left" in last


def test_a_dumb_terminal_gets_lines():
    text = in_terminal(LOOP, "dumb")
    assert "\x1b" not in text
    assert text.splitlines()[-1].startswith("distilling [x]  40/40  100%  loss 0.0375")


@pytest.mark.parametrize("stream", ["none", "closed", "full"])
def test_a_stream_that_takes_nothing(stream, monkeypatch):
    steps = []
    with contextlib.suppress(OSError), open("/dev/full", "w", buffering=1) as file:
        if stream == "closed":
            file.close()
        monkeypatch.setattr("sys.stderr", None if stream == "none" else file)
        with progress(2, "training") as bar:
            for step in (1, 2):
                bar.update(step)
                steps.append(step)
    assert steps == [1, 2]
