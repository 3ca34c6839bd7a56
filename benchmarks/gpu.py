"""All that is worth knowing of a GPU, in one command and under nine minutes.

    python benchmarks/gpu.py [--wheels DIR] [--only convnet3 …] [--minutes 8.5] [--out benchmarks/results]
    python benchmarks/gpu.py --rehearse

It needs Python 3.12, JAX with its plugin for the GPU, and flax, optax, SciPy, scikit-learn and jaxtyping; ntkit need
not be installed. Of the wheels in DIR those that are missing here are installed into a folder that is removed again:
`rich`, which flax needs, and `neural_tangents` with `frozendict` for the comparisons. What is missing costs only the
parts that need it.

Each part (gpu_parts.py) is a process of its own with a time limit, the most important first; one that fails or hangs
costs only itself, and while one measures, the next one imports what it needs. All share one cache of compiled
programs. After each part, what there is goes to gpu-<device>.json under --out, and a table at the end says what fell
short of the goals in docs/kernels.md. With --only the other parts of an earlier result stay there. The exit status is
1 if a part did not give all of its numbers.

--rehearse runs every part on the CPU with small sizes, in under four minutes. It writes to a folder that is removed
again, if there is no --out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from parts import Part, Row, run

ROOT = Path(__file__).parents[1]
# Seconds that each part may take; by importance.
PARTS = {
    "peak": ("float32 products and memory, what the device can do", 60),
    "convnet3": ("a pair of convnet(3), beside neural-tangents", 90),
    "convnet3-gradient": ("a pair of it with its gradient, beside neural-tangents", 120),
    "convnet3-pallas": ("its first stage in a Pallas kernel, against XLA's", 60),
    "gram-convnet3": ("the Gram matrix of 1,000 images, convnet(3)", 60),
    "fc3": ("4,000 × 4,000 vectors, fc(3), against X Xᵀ and beside neural-tangents", 45),
    "fc3-symmetric": ("4,000 vectors with themselves, fc(3)", 45),
    "gram-fc3": ("the Gram matrix of 10,000 images, fc(3)", 40),
    "conv3": ("a pair of conv(3), beside neural-tangents", 45),
    "myrtle5": ("a pair of myrtle(5), beside neural-tangents", 90),
    "kip-fc1": ("a step of KIP, fc(1), beside today's loop with neural-tangents", 60),
    "training": ("a step of training a network", 60),
    "kip-convnet3": ("a step of KIP, convnet(3)", 90),
    "myrtle5-gradient": ("a pair of myrtle(5) with its gradient, beside neural-tangents", 120),
    "pgd20": ("PGD of 20 steps on a kernel predictor", 100),
    "empirical": ("tangent kernels of finite networks, beside neural-tangents", 120),
}
REHEARSAL_MINUTES = 3.9
UNKNOWN = "unknown device"


# --- Goals


@dataclasses.dataclass(frozen=True)
class Goal:
    """A line of the table in docs/kernels.md: a number of a part, and the most or the least that it shall be."""

    number: str
    most: bool
    bound: float
    unit: str

    def value(self, parts: Mapping[str, Row]) -> float | None:
        """Give the number, or `None` if it was not measured."""
        name, *path = self.number.split(".")
        value: Any = parts.get(name, {}).get("numbers")
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None

    def verdict(self, value: float | None) -> str:
        """Say whether it was reached."""
        if value is None:
            return "not measured"
        return "reached" if (value <= self.bound if self.most else value >= self.bound) else "MISSED"


def goals() -> list[Goal]:
    """Read the goals."""
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `([\w.-]+)` \| at (most|least) ([\d.e+-]+) ?([^|]*?) \|", text, re.M)
    return [Goal(number, bound == "most", float(value), unit) for number, bound, value, unit in found]


# --- Results


def leaves(numbers: Any) -> Iterator[Any]:
    """Give the values of a result, whatever they are nested in."""
    if isinstance(numbers, dict | list):
        for value in numbers.values() if isinstance(numbers, dict) else numbers:
            yield from leaves(value)
    else:
        yield numbers


def faults(parts: Mapping[str, Row]) -> list[str]:
    """Give what is wrong with each part that did not give all of its numbers, or gave ones that are none."""
    found = []
    for name, part in parts.items():
        values = [v for v in leaves(part["numbers"]) if isinstance(v, float)]
        if "why_not_all" in part:
            found.append(f"{name}: {part['why_not_all']}")
        elif not values:
            found.append(f"{name}: gave no numbers")
        elif not all(map(math.isfinite, values)):
            found.append(f"{name}: gave NaN or infinity")
    return found


def device_kind(parts: Mapping[str, Row]) -> str:
    """Give the name of the device, as the first part that started there said it."""
    return next((p["numbers"]["device_kind"] for p in parts.values() if "device_kind" in p["numbers"]), UNKNOWN)


def result_path(directory: Path, parts: Mapping[str, Row]) -> Path:
    """Give the file for a device."""
    return directory / f"gpu-{re.sub('[^a-z0-9]+', '-', device_kind(parts).lower()).strip('-')}.json"


def write(path: Path, result: Row) -> None:
    """Write a result, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def headline(numbers: Row) -> str:
    """Give the most telling numbers of a part."""
    ours = next((numbers[key] for key in ("ntkit", "pallas") if key in numbers), {})
    times = {"a pair": ours.get("seconds_per_pair", numbers.get("seconds_per_pair"))}
    times |= {"in all": numbers.get("seconds"), "a step": numbers.get("seconds_per_step")}
    said = [f"{duration(seconds)} {of}" for of, seconds in times.items() if seconds is not None]
    for name, network in numbers.get("networks", {}).items():
        seconds = network.get("seconds_per_step", network.get("ntkit", {}).get("seconds"))
        said += [f"{name} {duration(seconds)}"] if seconds is not None else []
    if "sides" in numbers:
        said.append(duration(numbers["sides"]["ntkit"]["seconds"]))
    if "operations_per_second" in numbers:
        said.append(f"{numbers['operations_per_second'] / 1e12:.3g} TFLOP/s")
    if "bytes_per_second" in numbers:
        said.append(f"{numbers['bytes_per_second'] / 1e12:.3g} TB/s")
    if "fraction_of_peak" in ours:
        said.append(f"{100 * ours['fraction_of_peak']:.2g} % of peak")
    if "value" in numbers:
        said.append(f"{numbers['value']:.3g} ×")
    peak = numbers.get("peak_device_bytes")
    return ", ".join([*said, *([] if peak is None else [f"{peak / 2**30:.2g} GiB"])])


def duration(seconds: float) -> str:
    """Write seconds in a unit that suits them."""
    unit, scale = next((one for one in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if seconds >= one[1]), ("ns", 1e-9))
    return f"{seconds / scale:.3g} {unit}"


def print_table(result: Row) -> None:
    """Print what was measured, and what fell short."""
    parts = result["parts"]
    print(f"\n{device_kind(parts)}, {result['minutes']:.1f} minutes" + (", a rehearsal" * result["rehearsal"]))
    for name, part in parts.items():
        print(f"  {name:18s} {part['seconds']:5.0f} s   {headline(part['numbers'])}")
    print("\ngoals of docs/kernels.md" + (", for the real sizes on a GPU" * result["rehearsal"]))
    for goal in goals():
        value = goal.value(parts)
        got = "" if value is None else f"{value:.3g} {goal.unit}"
        bound = f"at {'most' if goal.most else 'least'} {goal.bound:.3g} {goal.unit}"
        verdict = "not judged" if result["rehearsal"] else goal.verdict(value)
        print(f"  {goal.number:36s} {got:14s} {bound:18s} {verdict}")
    if result["faults"]:
        print("\nwhat is not all there")
        for fault in result["faults"]:
            print(f"  {fault}")


# --- The run


def installed(wheels: Path | None, directory: Path) -> dict[str, str]:
    """Install those wheels that are missing here, each by itself, and say what became of it."""
    found = {}
    for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
        try:
            found[wheel.name] = f"left out: {metadata.version(wheel.name.split('-')[0])} is here"
            continue
        except metadata.PackageNotFoundError:
            pass
        pip = "-m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check"
        command = [sys.executable, *pip.split(), "--target", str(directory), str(wheel)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found[wheel.name] = "installed" if done.returncode == 0 else f"failed: {done.stderr.strip()}"
    for name, what in found.items():
        print(f"{name}: {what}")
    return found


def environment_for(rehearse: bool, scratch: Path) -> dict[str, str]:
    """Give the variables that the parts need."""
    path = [str(scratch / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        # Memory as it is needed: that of a part which was killed may not be free yet.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(scratch / "cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if rehearse:
        found |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return found


def main() -> None:
    """Run the parts, write and print what they found."""
    started = time.monotonic()
    # Otherwise whoever ends this process would leave its part running, in a session of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="a folder with wheels of what may be missing")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on the CPU, to see that it runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(PARTS), help="parts to measure")
    parser.add_argument("--minutes", type=float, help=f"for all of it (default 8.5; {REHEARSAL_MINUTES} to rehearse)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the result goes (default benchmarks/results)")
    options = parser.parse_args()
    if options.wheels is not None and not options.wheels.is_dir():
        parser.error(f"--wheels: got {str(options.wheels)!r}, expected a folder")
    minutes = options.minutes or (REHEARSAL_MINUTES if options.rehearse else 8.5)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        out = options.out or (scratch if options.rehearse else ROOT / "benchmarks" / "results")
        out.mkdir(parents=True, exist_ok=True)
        result: Row = {"what": "one GPU, measured by benchmarks/gpu.py", "rehearsal": options.rehearse}
        result["wheels"] = installed(options.wheels, scratch / "site")

        def done(found: dict[str, Row]) -> None:
            path = result_path(out, found)
            earlier = json.loads(path.read_text(encoding="utf-8"))["parts"] if options.only and path.exists() else {}
            every = earlier | found
            result["parts"] = {name: every[name] for name in PARTS if name in every}
            result["minutes"] = (time.monotonic() - started) / 60
            result["faults"] = faults(result["parts"])
            if device_kind(found) != UNKNOWN:
                write(path, result)

        size = "small" if options.rehearse else "real"
        script = str(Path(__file__).with_name("gpu_parts.py"))
        parts = {
            name: Part(what, [sys.executable, script, name, size], limit, waits=True)
            for name, (what, limit) in PARTS.items()
            if not options.only or name in options.only
        }
        found = run(parts, started + 60 * minutes, done, environment_for(options.rehearse, scratch))
        print_table(result)
        if out != scratch and device_kind(found) != UNKNOWN:
            print(f"\n{result_path(out, found)}")
        sys.exit(1 if faults(found) else 0)


if __name__ == "__main__":
    main()
