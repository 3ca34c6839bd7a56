"""Every option of every command with values that nobody means: one line that names it, before any work is done."""

import dataclasses
import os
import typing
from pathlib import Path

import numpy as np
import pytest

import ntkit
from ntkit.cli import options
from ntkit.cli.attack import Attack
from ntkit.cli.distill import Distill
from ntkit.cli.dynamics import Dynamics
from ntkit.cli.evaluate import Evaluate
from ntkit.cli.features import Features
from ntkit.cli.label_solve import LabelSolve
from ntkit.cli.score import Score
from ntkit.cli.under_attack import RobustnessOptions
from ntkit.data import Split
from tests.cli.command import status

COMMANDS = {
    "distill": (Distill, "--steps 3 --target-batch 50 --full-set-limit 60"),
    "label-solve": (LabelSolve, "--full-set-limit 60"),
    "evaluate": (Evaluate, "set.npz --network-steps 2 --network-seeds 1 --width 8"),
    "attack": (Attack, "--train-limit 50 --test-limit 10 --widths 4 --network-seeds 1 --network-steps 3"),
    "dynamics": (Dynamics, "--at 0 2 --sample 12 --top 2 --train-limit 50 --test-limit 10 --width 8"),
    "features": (Features, "--images 20 --test-limit 10"),
    "score": (Score, "--candidates fc1x4 fc2x4 --images 20 --train-limit 50 --epochs 1 --steps 2 --seeds 1"),
}
# What is done with an option's value depends on others.
BESIDE = dict.fromkeys((field.name for field in dataclasses.fields(RobustnessOptions)), "--adversary pgd")
BESIDE |= dict.fromkeys(("radius", "norm", "adversary_steps"), "--adversary pgd")
BESIDE |= {"zca_regularization": "--preprocess zca", "data_dir": "--dataset mnist"}
BESIDE |= {
    "coordinator": "--distributed --processes 1 --process 0",
    "processes": "--distributed --coordinator a:1 --process 0",
    "process": "--distributed --coordinator a:1 --processes 1",
}

HUGE = ["1000000000000", "9223372036854775808", "1" + "0" * 30]
NOT_INTEGERS = ["", "1.5", "nan", "x", "-", "1e3", "0x10", "1" * 5000]
NOT_NUMBERS = ["nan", "-inf", "-1", "-1e-300", "1e308", "1e39", "", "x", "1,5"]
PATHS = ["", "file", "directory", "fifo", "/dev/null", "/dev/full", "/proc/x", "absent/x", "file/x", "a\nb", "/"]
PATHS += [os.fsdecode(b"\xff\xfe"), "x" * 300]
TEXTS = [
    "",
    "x",
    os.fsdecode(b"\xff"),
    "a\nb",
    "x" * 5000,
    "relu\n",
    "../..",
    "digits:",
    "${x}",
    "[red]",
    "fc",
    "x4",
]
TEXTS += ["fc1x" + "9" * 30, "fc" + "9" * 10, "fc1x0", "myrtle3", "vgg11x99999999"]
# Of a limit or a batch that may be larger than what there is, all is taken.
ALL = {
    *("target_batch", "support_batch", "full_set_limit", "attacked_images", "train_limit", "test_limit", "images"),
    *("network_batch", "batch_size", "network_seeds", "seeds", "log_every", "epochs", "sample", "width", "widths"),
    *("network_width", "held_out", "steps", "seed"),
}


class Reached(Exception):
    """The work begins: all checks are behind."""


def reached(*arguments, **options):
    raise Reached


@pytest.fixture(scope="module")
def few():
    """Few digits."""
    digits = ntkit.data.load("digits")
    train, test = (Split(split.images[:300], split.labels[:300]) for split in (digits.train, digits.test))
    return dataclasses.replace(digits, train=train, test=test)


@pytest.fixture
def door(few, tmp_path, monkeypatch):
    """A folder of things that are not what they should be, and commands that end where work begins."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("text")
    Path("directory").mkdir()
    os.mkfifo("fifo")
    images = np.random.default_rng(0).normal(size=(10, 8, 8, 1)).astype(np.float32)
    np.savez("set.npz", images=images, labels=np.eye(10))
    load = options.load

    def loaded(name, folder, **own):
        return few if name == "digits" and {*own.values()} == {None} else load(name, folder, **own)

    monkeypatch.setattr(options, "load", loaded)
    monkeypatch.setattr(options, "_in_blocks", lambda preprocessing, images: images)
    monkeypatch.setattr("ntkit.runs.loop._run", reached)
    monkeypatch.setattr("jax.distributed.initialize", reached)
    for name in ("regression.fit", "regression.flow", "networks.train", "networks.initialize", "distill.label_solve"):
        monkeypatch.setattr(f"ntkit.{name}", reached)
    for name in (
        "networks.kernel_dynamics",
        "networks.rank_networks",
        "features.eigenfeatures",
        "cli.distill.compared",
    ):
        monkeypatch.setattr(f"ntkit.{name}", reached)
    return tmp_path


def hostile(name, hint):
    """Give values of an option, and whether each has to be refused."""
    text = str(hint)
    if "Path" in text:
        # A folder that exists may be one that data are downloaded to.
        folders = ("", "directory", "/") if name == "data_dir" else ()
        return [(value, False) for value in PATHS if value not in folders]
    if "Literal" in text:
        return [(value, True) for value in ("x", "", "-1")]
    if "int" in text:
        return [(value, True) for value in (*NOT_INTEGERS, *HUGE, "-1")] + [("2147483647", name not in ALL)]
    if "float" in text:
        return [(value, True) for value in NOT_NUMBERS] + [(value, False) for value in ("inf", "0", "1e-320", "1e30")]
    return [] if "bool" in text else [(value, False) for value in TEXTS]


def found(command, arguments, capsys):
    """Give what a command says of arguments, in one line if all is well, and whether it takes them."""
    try:
        code = status(command, *arguments)
    except Reached:
        return "", True
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300], False
    errors = capsys.readouterr().err
    return errors if code == 2 and errors.count("\n") == 1 else f"exit status {code}, {errors[:300]!r}", False


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=[pytest.mark.slow] if c in ("attack", "dynamics", "distill") else []) for c in COMMANDS],
)
def test_hostile_values(command, door, capsys):
    kind, base = COMMANDS[command]
    hints = typing.get_type_hints(kind)
    wrong = []
    for field in dataclasses.fields(kind):
        flag = "RUN|FILE" if field.name == "path" else f"--{field.name.replace('_', '-')}"
        beside = BESIDE.get(field.name, "")
        if command != "distill" and "adversary" in beside:
            beside = ""
        for number, (value, refused) in enumerate(hostile(field.name, hints[field.name])):
            arguments = [*base.split(), *beside.split(), flag, value]
            if field.name == "path":
                arguments = [value, *base.split()[1:]]
            elif field.name == "resume":
                arguments = [flag, value]
            elif field.name != "out" and command != "evaluate":
                arguments += ["--out", f"run-{field.name}-{number}"]
            what, taken = found(command, arguments, capsys)
            named = what.startswith(f"ntkit {command}: ") and (flag in what or flag.strip("-") in what)
            if refused if taken else not named:
                wrong.append(f"{flag} {value[:40]!r}: {'taken' if taken else what}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_values_are_not_refused_for_another_reason(door, capsys):
    for command, (_, base) in COMMANDS.items():
        out = [] if command == "evaluate" else ["--out", command]
        assert found(command, [*base.split(), *out], capsys)[1]
