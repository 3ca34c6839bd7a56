import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

from ntkit.cli import main
from ntkit.distill import Distilled
from ntkit.runs import Run
from tests.cli.command import status
from tests.data.test_loading import examples, write_tfds

DISTILL = {
    "--learner rat_bptt --ridge 0.01": "--ridge: got 0.01, expected a learner with a ridge beside it",
    "--learner kip --learner-width 7": "--learner-width: got 7, expected another learner than kip",
    "--learner rfad --learn-kernel": "--learn-kernel: got True, expected --learner kip beside it",
    "--per-class 0": "--per-class: got 0, expected an integer of at least 1",
    "--per-class 200": "--per-class: got 200, expected at most 142: class 0 has no more examples",
    "--per-class x": "Error parsing -n/--per-class: invalid literal for int() with base 10: 'x'",
    "--ridge -1": "--ridge: got -1.0, expected a finite number of at least 0",
    "--ridge nan": "--ridge: got nan, expected a finite number",
    "--dataset nope": "--dataset: got 'nope', expected 'digits' or the name of a TensorFlow Datasets (TFDS) set",
    "--dataset mnist --data-dir /absent": "--data-dir: got '/absent', expected an existing directory",
    "--architecture vgg": "invalid choice 'vgg' for argument '--architecture'. Expected one of ('fc',",
    "--architecture myrtle --depth 4": "--depth: got 4, expected 5, 7 or 10",
    "--architecture convnet --depth 5": "--architecture: got images of 8×8 pixels",
    "--depth -1": "--depth: got -1, expected",
    "--activation nope": "--activation: got 'nope', expected one of",
    "--W-std -1": "--W-std: got -1.0, expected",
    "--b-std nan": "--b-std: got nan, expected",
    "--learning-rate 0": "--learning-rate: got 0.0, expected a finite number above 0",
    "--steps -1": "--steps: got -1, expected an integer of at least 0",
    "--target-batch 0": "--target-batch: got 0, expected an integer of at least 1",
    "--support-batch 0": "--support-batch: got 0, expected an integer of at least 1",
    "--log-every 0": "--log-every: got 0, expected an integer of at least 1",
    "--checkpoint-every -1": "--checkpoint-every: got -1.0, expected a number of at least 0, or infinity",
    "--full-set-limit 0": "--full-set-limit: got 0, expected an integer of at least 1",
    "--seed -1": "--seed: got -1, expected at least 0 and below 2**32",
    "--preprocess zca --zca-regularization -1": "--zca-regularization: got -1.0, expected",
    "--distributed --processes 2 --process 0": "--coordinator: got none, expected it beside --processes, --process",
    "--distributed --coordinator here --processes 2 --process 0": "--coordinator: got 'here', expected HOST:PORT",
    "--distributed --coordinator a:1 --processes 0 --process 0": "--processes: got 0, expected an integer of",
    "--distributed --coordinator a:1 --processes 2 --process 2": "--process: got 2, expected 0 to 1",
    "--distributed --coordinator ::1:1 --processes 2 --process 0": "--coordinator: got '::1:1', expected HOST:PORT",
    "--distributed --coordinator 192.0.2.1:1 --processes 2 --process 0": (
        "--coordinator: got '192.0.2.1:1', expected an address of this machine with a free port: "
    ),
    "--process 1": "--process: got 1, expected --distributed beside it",
    "--adversary pgd --radius -1": "--radius: got -1.0, expected a finite number above 0",
    "--adversary pgd --radius 2": "--radius: got 2, expected at most 1, the range of the pixels",
    "--adversary pgd --adversary-steps 0": "--adversary-steps: got 0, expected an integer of at least 1",
    "--adversary fgsm --adversary-steps 3": "--adversary-steps: got 3 for fgsm, expected none: it has no steps",
    "--adversary autoattack": "invalid choice 'autoattack' for argument '--adversary'",
    "--radius 0.1": "--radius: got 0.1, expected --adversary beside it",
    "--adversary pgd --attacked-images 0": "--attacked-images: got 0, expected an integer of at least 1",
    "--adversary pgd --network-steps -1": "--network-steps: got -1, expected an integer of at least 0",
    "--adversary pgd --network-width 0": "--network-width: got 0, expected an integer of at least 1",
    "--adversary pgd --network-learning-rate 0": "--network-learning-rate: got 0.0, expected a finite number above 0",
    "--nope": "Unrecognized options: --nope",
}
OTHER = {
    "": "Expected one of {distill, label-solve, evaluate, attack, dynamics, features, score, info}.",
    "nope": "Unrecognized options: nope",
    "info more": "Unrecognized options: more",
    "distill --out run": "--out: 'run' already holds a run; resume it, or choose another directory",
    "distill --out file": "--out: got 'file', which is a file, expected a directory for the run",
    "distill --out file/run": "--out: cannot make the run directory 'file/run': Not a directory",
    "distill --out .": "--out: got '.', which contains",
    "distill --resume absent": "--resume: got 'absent', which does not exist, expected a run directory",
    "distill --resume run --out other": "--out: got 'other', expected none beside --resume",
    "distill --resume run": "--resume: got other values, expected those of the run in 'run'; these keys differ: ",
    "distill --resume edited": "--resume: got architecture = 'vgg', expected what that option can be",
    "distill --resume torn": "--resume: got 'torn/config.json', which is not whole, expected JSON",
    "label-solve --per-class 0 --out x": "--per-class: got 0, expected an integer of at least 1",
    "label-solve --per-class 500 --out x": "--per-class: got 500, expected at most 142",
    "label-solve --depth 1 2 --out x": "--depth: got (1, 2), expected one: labels are solved for one kernel",
    "label-solve --out run": "--out: 'run' already holds a run",
    "evaluate": "Missing from ntkit evaluate: RUN|FILE",
    "evaluate absent": "RUN|FILE: got 'absent', which does not exist",
    "evaluate file": "RUN|FILE: got 'file', expected an .npz of images and labels: it is neither",
    "evaluate truncated.npz": "RUN|FILE: got 'truncated.npz', expected an .npz of images and labels",
    "evaluate pickle.npz": "RUN|FILE: got 'pickle.npz', expected an .npz of images and labels: images.npy holds",
    "evaluate hostile.npz": "RUN|FILE: got depth = 5, expected what that option can be",
    "evaluate kernels.npz": "RUN|FILE: got hyper-parameters in the file that do not fit its configuration",
    "evaluate large.npz": "RUN|FILE: got images of shape (9, 9, 1) with 10 classes, expected (8, 8, 1) with 10",
    "evaluate run": "RUN|FILE: got 'run', expected a finished run: it has no distilled.npz",
    "evaluate set.npz --network-seeds 0": "--network-seeds: got 0, expected an integer of at least 1",
    "evaluate set.npz --width 0": "--width: got 0, expected an integer of at least 1",
    "evaluate set.npz --network-steps -1": "--network-steps: got -1, expected an integer of at least 0",
    "evaluate set.npz --network-learning-rate -1": "--network-learning-rate: got -1.0, expected",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One of each thing that is not what it should be."""
    path = tmp_path_factory.mktemp("bad")
    (path / "file").write_text("text")
    Run.create(path / "run", {"seed": 0})
    Run.create(path / "edited", {"architecture": "vgg"})
    Run.create(path / "torn", {})
    config = (path / "torn" / "config.json").read_bytes()
    (path / "torn" / "config.json").write_bytes(config[:50])
    images, labels = np.random.default_rng(0).normal(size=(10, 8, 8, 1)).astype(np.float32), np.eye(10)
    np.savez(path / "set.npz", images=images, labels=labels)
    (path / "truncated.npz").write_bytes((path / "set.npz").read_bytes()[:-30])
    np.savez(path / "pickle.npz", images=images.astype(object), labels=labels)
    np.savez(path / "hostile.npz", images=images, labels=labels, metadata=np.array('{"config": {"depth": 5}}'))
    np.savez(path / "kernels.npz", images=images, labels=labels, metadata=np.array('{"kernels": [[1, 2]]}'))
    np.savez(path / "large.npz", images=np.zeros((10, 9, 9, 1), np.float32), labels=labels)
    return path


COMMANDS = {f"distill {options} --out x": message for options, message in DISTILL.items()} | OTHER


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_is_one_line_and_exit_status_2(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(command))
    output, errors = capsys.readouterr()
    assert caught.value.code == 2
    assert errors.count("\n") == 1
    name = " ".join(["ntkit", *[word for word in command.split()[:1] if word != "nope"]])
    assert errors.startswith(f"{name}: {COMMANDS[command]}")
    assert "Traceback" not in errors
    assert not output
    # Nothing was lost, and no run directory is left.
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_run_that_diverges(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["distill", "--learning-rate", "1e30", "--target-batch", "50", "--out", str(tmp_path / "run")])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ntkit distill: distillation diverged: the loss is nan by step 10; try a smaller learning")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_process_exits_with_2(tmp_path):
    script = os.path.join(os.path.dirname(sys.executable), "ntkit")
    command = [script] if os.path.exists(script) else [sys.executable, "-c", "from ntkit.cli import main; main()"]
    child = subprocess.run(
        [*command, "distill", "--per-class", "x"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr == (
        "ntkit distill: Error parsing -n/--per-class: invalid literal for int() with base 10: 'x'\n"
    )
    assert not os.listdir(tmp_path)


def test_a_data_directory_that_a_file_names_runs_nothing(tmp_path, monkeypatch, capsys):
    write_tfds(tmp_path / "data", {"train": examples(6), "test": examples(6)})
    features = tmp_path / "data" / "made_up" / "1.0.0" / "features.json"
    own = "tensorflow_datasets.core.features.image_feature.Image"
    features.write_text(features.read_text().replace(own, "evil_features.X"))
    (tmp_path / "evil_features.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    config = {"config": {"dataset": "made_up", "data_dir": str(tmp_path / "data"), "preprocess": "none"}}
    Distilled(np.zeros((3, 5, 4, 3), np.float32), np.eye(3, dtype=np.float32), {}, config).save(tmp_path / "set.npz")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert status("evaluate", "set.npz") == 2
    message = (
        "ntkit evaluate: --dataset: got 'made_up', whose features.json names 'evil_features.X', expected TFDS's own"
    )
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "command", ["label-solve --out x", "features --images 20 --out x", "evaluate set.npz --network-steps 0"]
)
@pytest.mark.parametrize(("stds", "value"), [("--W-std 1e20", "inf"), ("--W-std 0 --b-std 0", "0")])
def test_a_kernel_that_overflows_or_is_0_is_blamed_itself(command, stds, value, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    name, *options = command.split()
    assert status(name, *options, *stds.split()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ntkit {name}: --W-std: got ")
    assert last.endswith(f"expected others: the kernel of an image with itself is {value}")
    assert not (folder / "x").exists()
