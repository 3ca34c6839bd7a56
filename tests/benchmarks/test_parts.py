"""Parts that hang, crash and say nothing, and what is left of them."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

REPORT = "import os, parts, subprocess, sys, time; "
CODE = {
    "good": "parts.report({'seconds': 1.5}); parts.report({'seconds': 2.5})",
    # With a child, neither of which minds being told to end.
    "hangs": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "parts.report({'first': 0.5, 'child': child.pid}); time.sleep(60)",
    "leaves a child": "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "parts.report({'seconds': 0.5, 'child': child.pid})",
    "crashes": "parts.report({'first': 0.25}); os.abort()",
    "raises": "raise ValueError('no such device')",
    "says nothing": "pass",
    "not a number": "parts.report({'seconds': [1.0, float('nan')]})",
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("parts")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_fails_or_hangs_costs_only_itself(parts: ModuleType, gpu: ModuleType) -> None:
    given = {
        name: parts.Part(name, [sys.executable, "-c", REPORT + code], 1.0 if name == "hangs" else 20.0)
        for name, code in CODE.items()
    }
    after_each: list[list[str]] = []
    started = time.monotonic()
    environment = {"PYTHONPATH": str(BENCHMARKS)}
    found = parts.run(given, started + 60, lambda row: after_each.append(list(row)), environment, least=0.5)
    assert time.monotonic() - started < 20
    assert after_each == [list(CODE)[: i + 1] for i in range(len(CODE))]
    assert found["good"]["numbers"] == {"seconds": 2.5}
    assert {name: row.get("why_not_all") for name, row in found.items()} == {
        "good": None,
        "hangs": "stopped after 1 s",
        "leaves a child": None,
        "crashes": found["crashes"]["why_not_all"],
        "raises": "ended with status 1: ValueError: no such device",
        "says nothing": "ended well, and gave no numbers",
        "not a number": None,
    }
    assert found["crashes"]["why_not_all"].startswith("killed by SIGABRT")
    assert found["crashes"]["numbers"] == {"first": 0.25}
    assert found["hangs"]["numbers"]["first"] == 0.5
    for name in ("hangs", "leaves a child"):
        assert not is_running(found[name]["numbers"]["child"])
    faulty = [fault.partition(":")[0] for fault in gpu.faults(found)]
    assert faulty == ["hangs", "crashes", "raises", "says nothing", "not a number"]


def test_the_next_part_gets_ready_and_waits_for_its_turn(parts: ModuleType) -> None:
    code = "import parts, time; ready = time.time(); parts.wait(); turn = time.time(); time.sleep({}); "
    code += "parts.report({{'ready': ready, 'turn': turn, 'end': time.time()}})"
    given = {
        name: parts.Part(name, [sys.executable, "-c", code.format(seconds)], 10.0, waits=True)
        for name, seconds in (("one", 1.0), ("two", 0.2), ("three", 0.0))
    }
    given["fails before"] = parts.Part("", [sys.executable, "-c", "raise SystemExit(3)"], 10.0, waits=True)
    found = parts.run(given, time.monotonic() + 60, lambda _: None, {"PYTHONPATH": str(BENCHMARKS)}, least=0.5)
    one, two, three = (found[name]["numbers"] for name in ("one", "two", "three"))
    assert two["ready"] < one["end"] <= two["turn"]
    assert two["end"] <= three["turn"]
    assert found["two"]["seconds"] < 1
    assert found["fails before"]["why_not_all"] == "ended with status 3"


def test_what_there_is_no_time_for_is_left_out(parts: ModuleType, gpu: ModuleType) -> None:
    part = parts.Part("never begun", [sys.executable, "-c", "raise SystemExit(3)"], 5.0)
    found = parts.run({"late": part}, time.monotonic() + 1, lambda _: None)
    assert found["late"] == {"numbers": {}, "seconds": 0.0, "why_not_all": "left out: no time was left"}
    assert gpu.faults(found) == ["late: left out: no time was left"]


def test_all_together_end_at_the_deadline(parts: ModuleType) -> None:
    code = "import time; time.sleep(60)"
    part = parts.Part("sleeps", [sys.executable, "-c", code], 50.0)
    started = time.monotonic()
    found = parts.run({"one": part, "two": part}, started + 1, lambda _: None, least=0.5)
    assert time.monotonic() - started < 3
    assert found["one"]["why_not_all"] == "stopped after 1 s"
    assert found["two"]["why_not_all"] == "left out: no time was left"


def test_the_goals_are_of_numbers_that_there_are(gpu: ModuleType) -> None:
    goals = {goal.number: goal for goal in gpu.goals()}
    assert {number.partition(".")[0] for number in goals} <= set(gpu.PARTS)
    goal = goals["convnet3.ntkit.seconds_per_pair"]
    assert (goal.most, goal.bound, goal.unit) == (True, 8e-6, "s")
    assert goals["convnet3-pallas.value"].most is False

    def verdict(seconds: float) -> str:
        parts = {"convnet3": {"numbers": {"ntkit": {"seconds_per_pair": seconds}}}}
        assert goal.value(parts) == seconds
        return goal.verdict(seconds)

    assert (verdict(7e-6), verdict(9e-6)) == ("reached", "MISSED")
    assert goal.value({}) is None
    assert goal.value({"convnet3": {"numbers": {"ntkit": "not there"}}}) is None
    assert goal.verdict(None) == "not measured"


def test_each_part_has_its_measure_in_both_sizes(gpu: ModuleType) -> None:
    measures = importlib.import_module("gpu_parts").measures
    assert set(measures(True)) == set(measures(False)) == set(gpu.PARTS)


def test_the_result_is_named_after_the_device(gpu: ModuleType, tmp_path: Path) -> None:
    found = {
        "hung": {"numbers": {}, "why_not_all": "stopped"},
        "peak": {"numbers": {"device_kind": "NVIDIA H100 80GB HBM3"}},
    }
    assert gpu.result_path(tmp_path, found) == tmp_path / "gpu-nvidia-h100-80gb-hbm3.json"


def test_a_rehearsal_of_one_part(gpu: ModuleType, tmp_path: Path) -> None:
    """Beside an earlier result, whose other parts stay, and with a wheel that is none."""
    earlier = {"parts": {"fc3": {"numbers": {"device_kind": "cpu", "value": 1.5}, "seconds": 1.0}}}
    (tmp_path / "gpu-cpu.json").write_text(json.dumps(earlier))
    (tmp_path / "broken-1.0-py3-none-any.whl").write_text("no wheel")
    options = ["--rehearse", "--only", "peak", "--wheels", str(tmp_path), "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py"), *options], check=True)
    result = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert list(result["parts"]) == ["peak", "fc3"]
    assert result["parts"]["fc3"]["numbers"] == earlier["parts"]["fc3"]["numbers"]
    assert result["parts"]["peak"]["numbers"]["operations_per_second"] > 1e6
    assert result["parts"]["peak"]["numbers"]["bytes_per_second"] > 1e6
    assert result["wheels"]["broken-1.0-py3-none-any.whl"].startswith("failed: ")
    assert result["faults"] == []
