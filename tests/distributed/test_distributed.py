"""The checks of this package with 8 virtual devices, and with two processes of 2 each."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(devices, *arguments):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distributed", *map(str, arguments)],
        cwd=ROOT,
        # Nearly all of the time is compilation, of what then runs for milliseconds.
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(child):
    try:
        output, _ = child.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
    assert child.returncode == 0, output
    assert "all passed" in output, output


@pytest.mark.slow
def test_eight_devices(tmp_path):
    finish(start(8, tmp_path))


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.slow
def test_two_processes(tmp_path):
    address = free_address()
    children = [start(2, tmp_path, address, process) for process in (0, 1)]
    try:
        for child in children:
            finish(child)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def listening(process):
    """The addresses that a process listens on: those of its sockets that the kernel has in that state (0A)."""
    folder = Path("/proc") / str(process)
    links = []
    for entry in (folder / "fd").iterdir():
        # What it closes meanwhile is no socket that it listens on.
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(entry))
    sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    tables = [(folder / "net" / name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return [row[1].split(":") for row in rows if row[3] == "0A" and row[9] in sockets]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_with_a_line(victim, tmp_path):
    address = free_address()
    options = ["--coordinator", address, "--processes", "2", "--checkpoint-every", "0", "--out", tmp_path / "run"]
    options += ["--kernel", "nngp", "--steps", 10**6, "--target-batch", 50]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", "from ntkit.cli import main; main()", "distill", "--distributed"]
            + [str(option) for option in (*options, "--process", process)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    other = children[1 - victim]
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints").exists() and time.monotonic() < deadline:
            assert all(child.poll() is None for child in children)
            time.sleep(0.05)
        # The coordinator is where it was told to be, and nowhere else.
        port = f"{int(address.split(':')[1]):04X}"
        loopback = ("0100007F", "0000000000000000FFFF00000100007F")
        assert [host in loopback for host, at in listening(children[0].pid) if at == port] == [True]
        children[victim].kill()
        _, errors = other.communicate(timeout=60)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert other.returncode == 2
    last = errors.splitlines()[-1]
    assert last.startswith(
        "ntkit distill: another process has ended, or cannot be reached; what is saved can be resumed"
    )
    assert "Traceback" not in errors
    assert list((tmp_path / "run" / "checkpoints").glob("*.npz"))
