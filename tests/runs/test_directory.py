import json
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

import ntkit.runs.environment
import ntkit.runs.lock
from ntkit.runs import Run

CONFIG = {"steps": 10, "ridge": 1e-6, "kernel": {"name": "fc", "depth": 2}, "shape": (8, 8, 1), "seed": None}


def test_config_holds_what_is_needed_to_repeat(tmp_path):
    run = Run.create(tmp_path / "a" / "b", CONFIG | {"data": pathlib.Path("x"), "rate": np.float64(0.5)})
    content = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert content["config"] == CONFIG | {"shape": [8, 8, 1], "data": "x", "rate": 0.5} == run.config
    assert {"python", "jax", "jaxlib", "numpy", "neural-tangents"} <= set(content["versions"])
    assert content["versions"]["jax"] == jax.__version__
    assert content["device"]["platform"] == jax.default_backend()
    assert content["device"]["x64"] is jax.config.jax_enable_x64
    assert content["created"].startswith("20")


def test_resume_opens_what_create_made(tmp_path):
    created = Run.create(tmp_path, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run in (Run.resume(tmp_path), Run.resume(str(tmp_path), CONFIG)):
            assert (run.config, run.versions, run.device, run.created) == (
                created.config,
                created.versions,
                created.device,
                created.created,
            )


def test_a_run_of_a_copy_that_is_not_installed(tmp_path, monkeypatch):
    versions = {name: version for name, version in ntkit.runs.environment.versions().items() if name != "ntkit"}
    monkeypatch.setattr(ntkit.runs.environment, "versions", lambda: versions)
    Run.create(tmp_path, CONFIG)
    assert Run.resume(tmp_path, CONFIG).versions == versions


def test_create_refuses_a_run_and_a_directory_of_other_things(tmp_path):
    Run.create(tmp_path / "run", CONFIG).log(1, loss=1.0)
    with pytest.raises(FileExistsError, match=r"path: '.*run' already holds a run; resume it, or choose another"):
        Run.create(tmp_path / "run", CONFIG)
    assert len(Run.resume(tmp_path / "run").metrics()) == 1
    with pytest.raises(FileExistsError, match=r"path: got .* contains 'run'.*, expected a new or empty directory"):
        Run.create(tmp_path, CONFIG)


def test_create_names_a_path_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run", "/proc/a/run"):
        with pytest.raises(OSError, match=r"^(\[Errno \d+\] )?path: ") as caught:
            Run.create(path, CONFIG)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_create_after_a_kill_before_the_config(tmp_path):
    (tmp_path / ".config.json.0123456789ab.tmp").write_text("{")
    assert Run.create(tmp_path, CONFIG).restore({}) is None
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": {"b": [1, object()]}}, r"config\.a\.b\[1\]: got <object.*, expected a number"),
        ({"a": {1: 2}}, r"config\.a: got 1, expected strings as keys"),
        ([1], "config: got .*, expected a mapping"),
    ],
)
def test_a_config_without_a_json_form(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        Run.create(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_resume_lists_every_key_that_differs(tmp_path):
    Run.create(tmp_path, CONFIG)
    other = {**CONFIG, "steps": 20, "kernel": {"name": "fc", "depth": 3}, "extra": "x"}
    del other["ridge"]
    with pytest.raises(ValueError, match=r"^config: got other values, expected those of the run in ") as caught:
        Run.resume(tmp_path, other)
    message = str(caught.value)
    assert "steps: the run has 10, given 20" in message
    assert "kernel.depth: the run has 2, given 3" in message
    assert 'extra: the run has nothing, given "x"' in message
    assert "ridge: the run has 1e-06, given nothing" in message
    assert "name" not in message
    assert "\n" not in message


def test_nan_and_tuples_in_a_config_equal_themselves(tmp_path):
    config = {"limit": float("nan"), "bound": float("inf"), "size": (1, 2)}
    Run.create(tmp_path, config)
    Run.resume(tmp_path, config)


def test_resume_of_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path: got '.*none', which does not exist, expected a run directory"):
        Run.resume(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"which has no config\.json"):
        Run.resume(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="which is a file"):
        Run.resume(tmp_path / "file")
    run = Run.create(tmp_path / "run", CONFIG)
    whole = (run.path / "config.json").read_text()
    for broken in (whole[: len(whole) // 2], "", "\0\0"):
        (run.path / "config.json").write_text(broken)
        with pytest.raises(ValueError, match=r"path: got '.*config\.json', which is not whole, expected JSON"):
            Run.resume(run.path)
    for foreign in ("[]", '{"config": {}}', '{"steps": 3}'):
        (run.path / "config.json").write_text(foreign)
        with pytest.raises(ValueError, match="expected the keys config, versions, device, created"):
            Run.resume(run.path)


def test_another_version_or_device_is_a_warning(tmp_path, monkeypatch):
    Run.create(tmp_path, CONFIG)
    versions = ntkit.runs.environment.versions() | {"jax": "0.1"}
    monkeypatch.setattr(ntkit.runs.environment, "versions", lambda: versions)
    device = ntkit.runs.environment.device() | {"kind": "abacus"}
    monkeypatch.setattr(ntkit.runs.environment, "device", lambda: device)
    with pytest.warns(UserWarning, match=r"may differ in their bits: jax: .* given \"0\.1\"; kind: .*\"abacus\""):
        Run.resume(tmp_path, CONFIG)


def test_metrics_round_trip(tmp_path):
    run = Run.create(tmp_path, CONFIG)
    third = np.float32(1) / np.float32(3)
    run.log(1, loss=jax.numpy.float32(third), accuracy=0.25, name="x", each=[np.float64(1.5), 2], none=None)
    run.log(np.int64(2), loss=float("nan"), flag=np.bool_(True), array=np.arange(3))
    first, second = run.metrics()
    assert first == {"step": 1, "loss": float(third), "accuracy": 0.25, "name": "x", "each": [1.5, 2], "none": None}
    assert np.isnan(second.pop("loss"))
    assert second == {"step": 2, "flag": True, "array": [0, 1, 2]}
    assert Run.resume(tmp_path).metrics()[0] == first


def test_a_metric_without_a_json_form(tmp_path):
    run = Run.create(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"loss: got <object object .*, expected a number"):
        run.log(1, loss=object())
    assert run.metrics() == []


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2}', b"\0\0\0", b"\xff", b"[1]\n"])
def test_a_torn_last_line_is_left_out_and_mended(tmp_path, torn):
    run = Run.create(tmp_path, CONFIG)
    run.log(1, loss=1.0)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    resumed = Run.resume(tmp_path)
    assert resumed.metrics() == [{"step": 1, "loss": 1.0}]
    resumed.log(2, loss=0.5)
    assert [record["step"] for record in resumed.metrics()] == [1, 2]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    run = Run.create(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl', line 2: got .*, expected a JSON object with a step"):
        run.metrics()


def test_restore_drops_the_metrics_after_the_checkpoint(tmp_path):
    run = Run.create(tmp_path, CONFIG)
    for step in range(1, 6):
        run.log(step, loss=step)
        if step == 3:
            run.save(step, {"x": np.ones(2)})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 6')
    step, _ = Run.resume(tmp_path).restore({"x": np.zeros(2)})
    assert step == 3 == run.step
    assert [record["step"] for record in run.metrics()] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "line", "digit", "nested"])
def test_restore_puts_back_records_that_the_file_has_lost(tmp_path, damage):
    run = Run.create(tmp_path / "run", CONFIG)
    for step in range(1, 6):
        run.log(step, loss=step / 10)
        if step == 3:
            run.save(step, {"x": np.ones(2)})
    path = run.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    if damage == "line":
        path.write_bytes(b"".join([lines[0], b'{"ste', *lines[1:]]))
    elif damage == "digit":
        path.write_bytes(b"".join(lines).replace(b"0.1", b"0.7"))
    elif damage == "nested":
        path.write_bytes(b'{"step": 1, "loss": ' + b"[" * 100_000 + b"\n" + b"".join(lines[1:]))
    elif damage != "missing":
        path.write_bytes(b"".join(lines)[:40] if damage == "torn" else b"")
    resumed = Run.resume(run.path)
    with pytest.warns(
        UserWarning, match=r"metrics\.jsonl' had lost or changed records up to step 3; they are put back"
    ):
        assert resumed.restore({"x": np.zeros(2)})[0] == 3
    assert path.read_bytes() == b"".join(lines[:3])


def test_restore_says_nothing_of_records_after_the_checkpoint(tmp_path):
    """Logged in another order than is usual, or torn by a kill: there is nothing to put back."""
    run = Run.create(tmp_path, CONFIG)
    run.log(2, loss=0.2)
    run.log(4, loss=0.4)
    run.save(3, 3)
    run.log(3, loss=0.3)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 6')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert Run.resume(tmp_path).restore(0) == (3, 3)
            assert [record["step"] for record in run.metrics()] == [2, 3]


def test_restore_without_a_checkpoint_begins_again(tmp_path):
    run = Run.create(tmp_path, CONFIG)
    assert run.step is None
    assert run.restore({"x": 1}) is None
    run.log(1, loss=1.0)
    with pytest.warns(UserWarning, match="has no checkpoint, so the run and its records begin anew"):
        assert run.restore({"x": 1}) is None
    assert run.metrics() == []


def test_one_process_writes_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    run = Run.create(tmp_path / "run", CONFIG)
    run.log(1, loss=1.0)
    Run.resume(run.path).log(2, loss=1.0)

    (tmp_path / "copy").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "copy" / name).write_bytes((run.path / name).read_bytes())
    # The module alone, since importing the whole package takes a second.
    code = (
        "import importlib.util as u, pathlib, sys;"
        f"s = u.spec_from_file_location('lock', {ntkit.runs.lock.__file__!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        f"m.acquire(pathlib.Path({str(tmp_path / 'copy')!r}));"
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    second = Run.resume(tmp_path / "copy", CONFIG)
    assert len(second.metrics()) == 2
    for write in (lambda: second.restore(0), lambda: second.save(1, 0), lambda: second.log(1)):
        with pytest.raises(BlockingIOError, match="another process is writing to this run"):
            write()
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with pytest.warns(UserWarning, match="has no checkpoint"):
        assert second.restore(0) is None


@pytest.mark.slow
def test_importing_is_cheap_and_plotting_leaves_pyplot_alone():
    code = (
        "import sys, ntkit.runs, ntkit.plot, numpy as np;"
        "print([m for m in ('rich', 'matplotlib', 'tensorflow') if m in sys.modules]);"
        "ntkit.plot.image_grid(np.zeros((1, 8, 8, 1))); ntkit.plot.history([]);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["[]", "False"]
