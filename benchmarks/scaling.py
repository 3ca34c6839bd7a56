"""What Gram matrices, conjugate gradients and KIP cost at size: a model from measured times per pair, in Markdown.

    python benchmarks/scaling.py

Prints the tables of docs/scaling.md. Times per pair are those of benchmarks/results/kernels-*.json, which
benchmarks/kernels.py writes, and of gpu-*.json, which benchmarks/gpu.py writes, a table for each file. Nothing here is
run at size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SIZES = (50_000, 1_000_000, 5_000_000)
DEVICES = (1, 8, 64, 512)
NAMES = {"fc3": "fc(3), d = 784", "conv3": "conv(3)", "convnet3": "convnet(3)", "myrtle5": "myrtle(5)"}
OUTPUTS = 10
# Images of 32×32×3, float32.
IMAGE_BYTES = 4 * 32 * 32 * 3
# The target batch of KIP, and support sets of 1, 10 and 50 images for each of 10 classes.
TARGETS, SUPPORTS = 5000, (10, 100, 500)


def measured() -> Iterator[tuple[str, dict[str, float]]]:
    """Give the devices, each with its seconds per pair by the names of the rows."""
    for path in sorted(RESULTS.glob("kernels-*.json")):
        result = json.loads(path.read_text())
        rows = {name: row["ntkit"]["seconds_per_pair"] for name, row in result["rows"].items() if "ntkit" in row}
        if rows and not result["quick"]:
            device = result["device"]
            yield f"CPU of {device['cores']} cores" if device["platform"] == "cpu" else device["kind"], rows
    for path in sorted(RESULTS.glob("gpu-*.json")):
        result = json.loads(path.read_text())
        parts = {name: part["numbers"] for name, part in result["parts"].items()}
        rows = {name: part["ntkit"]["seconds_per_pair"] for name, part in parts.items() if "ntkit" in part}
        if "convnet3-pallas" in parts:
            # What is the default since this was measured.
            rows["convnet3"] = parts["convnet3-pallas"]["pallas"]["seconds_per_pair"]
        kind = next(part["device_kind"] for part in parts.values() if "device_kind" in part)
        if rows and not result["rehearsal"]:
            yield kind, rows


def duration(seconds: float) -> str:
    """Give a time in the unit that people would say it in."""
    for unit, length in (("years", 365.25 * 86400), ("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length or unit == "s":
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.2g} {unit}"
    raise AssertionError


def size(count: float) -> str:
    """Give a number of bytes."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count:.0f} B"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def per_pair(seconds: float) -> str:
    """Give the time of a pair."""
    unit, length = ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6) if seconds >= 1e-6 else ("ns", 1e-9)
    return f"{seconds / length:.3g} {unit}"


def gram_times(seconds: dict[str, float]) -> str:
    """Give the times of the n (n + 1) / 2 pairs of a Gram matrix."""
    rows = [
        [NAMES[name], per_pair(seconds[name]), f"{n:,}"]
        + [duration(n * (n + 1) / 2 * seconds[name] / devices) for devices in DEVICES]
        for name in NAMES
        if name in seconds
        for n in SIZES
    ]
    head = ["kernel", "per pair", "n", *(f"on {devices}" for devices in DEVICES)]
    return table(head, rows)


def memory() -> str:
    """Give the bytes of a Gram matrix, of the data and of a step's communication."""
    rows = [
        [
            f"{n:,}",
            size(4 * n**2),
            *(size(4 * n**2 / devices) for devices in DEVICES[1:]),
            size(n * IMAGE_BYTES),
            size(4 * n * OUTPUTS),
        ]
        for n in SIZES
    ]
    shares = [f"per device of {devices}" for devices in DEVICES[1:]]
    return table(["n", "K, on disk or in all memories", *shares, "images", f"a product's {OUTPUTS} outputs"], rows)


def kip() -> str:
    """Give the pairs of a step of KIP on each device, and what it sends."""
    rows = []
    for support in SUPPORTS:
        own = support * (support + 1) // 2
        pairs = [-(-TARGETS // devices) * support + own for devices in DEVICES]
        sent = support * (IMAGE_BYTES + 4 * OUTPUTS) + 4 * TARGETS * OUTPUTS
        rows.append([str(support), *(f"{each:,} ({pairs[0] / each:.3g}×)" for each in pairs), size(sent)])
    head = ["support images", *(f"pairs on each of {devices}" for devices in DEVICES), "reduced and gathered per step"]
    return table(head, rows)


def main() -> None:
    """Print all tables."""
    for device, seconds in measured():
        print(f"Time of a Gram matrix, a device being {device}:\n\n{gram_times(seconds)}")
        slopes = {name: seconds[f"{name}-gradient"] for name in NAMES if f"{name}-gradient" in seconds}
        if slopes:
            rows = [
                [NAMES[name], *(duration((TARGETS * m + m * (m + 1) / 2) * slope) for m in SUPPORTS)]
                for name, slope in slopes.items()
            ]
            print(f"Time of a step of KIP on one {device}, {TARGETS:,} targets:\n")
            print(table(["kernel", *(f"{m} support images" for m in SUPPORTS)], rows))
    print(f"Bytes, float32:\n\n{memory()}")
    print(f"A step of KIP with {TARGETS:,} targets:\n\n{kip()}")


if __name__ == "__main__":
    main()
