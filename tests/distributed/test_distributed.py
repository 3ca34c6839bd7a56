"""The checks of this package with 8 virtual devices, and with two processes of 2 each."""

import os
import socket
import subprocess
import sys
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


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    children = [start(2, tmp_path, address, process) for process in (0, 1)]
    try:
        for child in children:
            finish(child)
    finally:
        for child in children:
            child.kill()
            child.communicate()
