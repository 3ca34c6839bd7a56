"""The command line in several processes: one of them writes and prints."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

from ntkit.cli import main, options
from ntkit.data import Dataset, Split
from ntkit.distill import Distilled
from tests.distill.small import clouds


def three_clouds(name, data_dir, **own):
    """A data set of 3 classes, 2×2×1: most of what the command compiles, it compiles for each class."""
    images, labels = clouds(60)
    images, labels = np.clip(images, 0, 1).reshape(60, 2, 2, 1), labels.astype(np.int32)
    return Dataset(name, Split(images[:42], labels[:42]), Split(images[42:], labels[42:]), 3, ("a", "b", "c"))


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
    path = directory / "cli"
    small = ("--kernel", "nngp", "--steps", 8, "--target-batch", 30, "--log-every", 5, "--out", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "load", three_clouds)
        output, errors, status = ntkit("distill", "--distributed", *small)
        assert status == 0, errors
        assert ("3 distilled" in output) == (jax.process_index() == 0)
        assert jax.process_index() == 0 or not output + errors
        # Both must be there before either looks, and the second run must not begin before they have.
        wait()
        assert len(Distilled.load(path / "distilled.npz").images) == 3
        stored = json.loads((path / "config.json").read_text())
        assert stored["device"]["processes"] == 2
        assert "distributed" not in stored["config"]
        _, errors, status = ntkit("distill", "--distributed", *small)
    assert status == 2
    assert errors.count("\n") == 1
    assert ("already holds a run" if jax.process_index() == 0 else "process 0 failed") in errors


def check_other_options_are_refused(mesh, directory):
    if jax.process_count() == 1:
        return
    mine = jax.process_index()
    other = f"in process {mine} and another value in process {1 - mine}, expected the same in all\n"
    small = ("--steps", 8, "--target-batch", 30, "--out", directory / f"refused {mine}")
    different = {
        "seed": ("distill", "--seed", mine),
        "ridge": ("distill", "--ridge", 10.0**-mine),
        "steps": ("distill", "--steps", 8 + mine),
        "depth": ("distill", *(("--depth", 1, 2) if mine else ())),
        "resume": ("distill", *(("--resume", directory / "cli") if mine else ())),
    }
    for name, (command, *given) in different.items():
        _, errors, status = ntkit(command, "--distributed", *(() if "--resume" in given else small), *given)
        assert (status, errors.count("\n")) == (2, 1), errors
        assert errors.startswith(f"ntkit distill: --{name}: got "), errors
        assert errors.endswith(other), errors
    _, errors, status = ntkit("label-solve", "--distributed", "--seed", mine, "--out", directory / "refused")
    assert status == 2
    assert errors == f"ntkit label-solve: --seed: got {mine} {other}"
    _, errors, status = ntkit(("distill", "label-solve")[mine], "--distributed", "--out", directory / "refused")
    assert status == 2
    assert errors.endswith(other), errors
    assert not list(directory.glob("refused*"))


def check_a_run_that_one_process_cannot_resume_is_refused_by_all(mesh, directory):
    if jax.process_count() == 1:
        return
    path = directory / ("cli" if jax.process_index() else "absent")
    _, errors, status = ntkit("distill", "--distributed", "--resume", path)
    assert (status, errors.count("\n")) == (2, 1), errors
    expected = "process 0 failed, and says why" if jax.process_index() else "expected a run directory"
    assert expected in errors


def wait():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("checks_cli")
