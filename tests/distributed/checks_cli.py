"""The command line in several processes: one of them writes and prints."""

import contextlib
import io
import json

import jax

from ntkit.cli import main
from ntkit.distill import Distilled


def ntkit(*arguments):
    """Run a command; what it prints, its errors and its exit status."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = exit_.code
    return output.getvalue(), errors.getvalue(), status


def check_distill(mesh, directory):
    if jax.process_count() == 1:
        return
    small = ("--steps", 8, "--target-batch", 50, "--full-set-limit", 100, "--log-every", 5)
    path = directory / "cli"
    output, errors, status = ntkit("distill", "--distributed", *small, "--out", path)
    assert status == 0, errors
    assert ("10 distilled" in output) == (jax.process_index() == 0)
    assert jax.process_index() == 0 or not output + errors
    # Both must be there before either looks, and the second run must not begin before they have.
    wait()
    assert len(Distilled.load(path / "distilled.npz").images) == 10
    stored = json.loads((path / "config.json").read_text())
    assert stored["device"]["processes"] == 2
    assert "distributed" not in stored["config"]
    _, errors, status = ntkit("distill", "--distributed", *small, "--out", path)
    assert status == 2
    assert errors.count("\n") == 1
    assert ("already holds a run" if jax.process_index() == 0 else "process 0 failed") in errors


def wait():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("checks_cli")
