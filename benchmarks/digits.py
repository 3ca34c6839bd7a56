"""Ten digits, distilled with a fully-connected and with a convolutional kernel, beside each other.

    JAX_NUM_CPU_DEVICES=2 python benchmarks/digits.py [--quick] [--seeds 0 1 2] [--out FILE]

The variable says how many CPU cores share the convolutional kernel.

Each row is the command `ntkit distill` as a user types it, in a process of its own, and what it says at its end: test
accuracies of a kernel regression on 10 distilled images (one per class, labels learned), on 10 real ones (10 draws)
and on all, with the time of the whole command. A row gives the mean and the standard deviation over seeds. The numbers
of steps were not tuned.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

STEPS = {"fc": 1000, "convnet": 300}


def distil(architecture: str, steps: int, seed: int, out: Path) -> tuple[dict[str, float], float]:
    """Run the command, and give its accuracies by the images regressed on, and its seconds."""
    options = ["--architecture", architecture, "--steps", str(steps), "--seed", str(seed), "--out", str(out)]
    command = [sys.executable, "-c", "from ntkit.cli import main; main()", "distill", *options]
    started = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - started
    rows = json.loads((out / "results.json").read_text())["regression"]
    # Of what was drawn several times the mean.
    accuracies = [row["test accuracy"] for row in rows]
    means = [found["mean"] if isinstance(found, dict) else found for found in accuracies]
    return {row["images"]: mean for row, mean in zip(rows, means, strict=True)}, seconds


def mean_and_spread(values: list[float]) -> dict[str, Any]:
    """Give a mean, the standard deviation over seeds (none of one), and the values."""
    return {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "by_seed": values,
    }


def in_words(accuracy: dict[str, Any]) -> str:
    """Say a mean, with the spread where there is one."""
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.1f}"
    return f"{100 * accuracy['mean']:.1f}{spread} %"


def measure(architecture: str, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Give one architecture's row."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [distil(architecture, steps, seed, Path(folder) / str(seed)) for seed in seeds]
    accuracies = {name: mean_and_spread([found[name] for found, _ in runs]) for name in runs[0][0]}
    seconds = [seconds for _, seconds in runs]
    said = ", ".join(f"{name} {in_words(found)}" for name, found in accuracies.items())
    print(f"{architecture}, {steps} steps: {said}; {statistics.mean(seconds):.0f} s", flush=True)
    return {"architecture": architecture, "steps": steps, "accuracy": accuracies, "seconds": seconds}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=STEPS, default=list(STEPS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = [measure(name, 3 if options.quick else STEPS[name], options.seeds) for name in options.architectures]
    if options.out is not None:
        here = {**device(), "devices": jax.device_count(), "cores": os.cpu_count()}
        result = {"rows": rows, "seeds": options.seeds, "device": here, "versions": versions()}
        with atomic_write(options.out, "w") as file:
            file.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
