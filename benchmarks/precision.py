"""Fits in float32 on lines, planes and nearly equal images: their distance from float64, ours and neural-tangents'.

    python benchmarks/precision.py [--quick] [--out benchmarks/results/precision-cpu.json]

A smooth function is fitted with ridge 1e-4 on n inputs and predicted at 300 others between them. Both kernels feed the
same fit; beside each stands the largest difference between float32 and float64, relative to the largest target, and
whether `fit` warned. The line and the plane begin at 20, since distance from the origin makes inputs near: the angle
between 20 and 21 is 0.0002 for a network with `b_std=0.1`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntkit
from ntkit.regression import RoundingWarning
from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

RIDGE = 1e-4
Inputs = Callable[[np.ndarray], np.ndarray]


def line(t: np.ndarray) -> np.ndarray:
    """Numbers from 20 to 30."""
    return 20 + 10 * t[:, :1]


def years(t: np.ndarray) -> np.ndarray:
    """Numbers from 1950 to 2020."""
    return 1950 + 70 * t[:, :1]


def plane(t: np.ndarray) -> np.ndarray:
    """Two numbers from 20 to 25."""
    return 20 + 5 * t


def images(t: np.ndarray) -> np.ndarray:
    """One image of 6×6 pixels, changed by up to a thousandth."""
    base, change = np.random.default_rng(0).normal(size=(2, 6, 6, 1))
    return base + 1e-3 * t[:, :1, None, None] * change


ROWS: list[tuple[str, Inputs, ntkit.Architecture]] = [
    ("line", line, ntkit.fc(1)),
    ("line", line, ntkit.fc(3)),
    ("years", years, ntkit.fc(1)),
    ("plane", plane, ntkit.fc(1)),
    ("plane", plane, ntkit.fc(3)),
    ("images", images, ntkit.conv(1)),
    ("images", images, ntkit.convnet(1)),
]


def predictions(kernel: ntkit.Kernel, data: tuple[np.ndarray, ...], dtype: Any) -> tuple[np.ndarray, bool]:
    """Fit and predict in a precision; and whether that warned."""
    x, y, others = (jnp.asarray(a, dtype) for a in data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = ntkit.regression.fit(kernel, x, y, RIDGE)
    return np.asarray(model(others), np.float64), any(issubclass(w.category, RoundingWarning) for w in caught)


def in_double() -> Any:
    """Turn on x64; the name of JAX's own context depends on its version."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(True)


def row(name: str, inputs: Inputs, architecture: ntkit.Architecture, n: int) -> dict[str, Any]:
    """Measure one row of the table."""
    rng = np.random.default_rng(n)
    t, between = (np.sort(rng.uniform(size=(count, 2)), axis=0) for count in (n, 300))
    between = np.clip(between, t.min(axis=0), t.max(axis=0))
    # What float32 is given, in both precisions.
    x, others = (inputs(a).astype(np.float32) for a in (t, between))
    data = (x, np.sin(6 * t.sum(axis=1, keepdims=True)), others)
    found: dict[str, Any] = {"inputs": name, "architecture": architecture.name, "n": n}
    for engine in ("fused", "neural_tangents"):
        kernel = ntkit.ntk(architecture, engine)
        single, warned = predictions(kernel, data, np.float32)
        with in_double():
            double, _ = predictions(ntkit.ntk(architecture), data, np.float64)
        error = float(np.abs(single - double).max() / np.abs(data[1]).max())
        found[engine] = {"error": error, "warned": warned}
    return found


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few inputs, to see that it runs")
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    arguments = parser.parse_args()
    rows = []
    print("| inputs | network | n | ntkit | neural-tangents |\n| --- | --- | ---: | ---: | ---: |")
    for name, inputs, architecture in ROWS[:1] if arguments.quick else ROWS:
        for n in (10,) if arguments.quick else (10, 50, 200):
            rows.append(row(name, inputs, architecture, n))
            said = (
                f"{rows[-1][engine]['error']:.1g}" + (" (warned)" if rows[-1][engine]["warned"] else "")
                for engine in ("fused", "neural_tangents")
            )
            print(f"| {name} | {architecture.name} | {n} | {' | '.join(said)} |", flush=True)
    if arguments.out is not None:
        what = (__doc__ or "").splitlines()[0]
        result = {"what": what, "ridge": RIDGE, "rows": rows, "device": device(), "versions": versions()}
        with atomic_write(arguments.out, "w") as file:
            file.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
