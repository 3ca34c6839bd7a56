"""Usefulness and FGSM robustness of every feature of a kernel, in one sweep, beside a Python loop over the features.

    python benchmarks/features.py [--quick] [--data-dir DIR] [--out benchmarks/results/features-cpu.json]

n images of mnist_t10k (or, without --data-dir, digits enlarged to 28×28), the NTK of a fully-connected network of two
hidden layers, and all n features of its Gram matrix, measured on images that were not among those. The loops are run on
a few features and their time is multiplied up; both call FGSM and the feature itself, clean and attacked:

- "each model jitted": what people write, a function of images for each feature, jitted, which is compiled each time;
- "one jitted function": compiled once, and handed each feature's weights.

Accuracies of the features that the loops measured are compared with the sweep's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntkit
from ntkit import features
from ntkit.attacks import Linf
from ntkit.attacks.losses import cross_entropy
from ntkit.data import one_hot
from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

RADIUS = 0.1


def data(n: int, m: int, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give n images to decompose and m to measure on, with their labels."""
    if data_dir is not None:
        split = ntkit.data.load("mnist_t10k", data_dir).train
        images, labels = split.images, split.labels
    else:
        split = ntkit.data.load("digits").train
        images = np.asarray(jax.image.resize(split.images, (len(split.images), 28, 28, 1), "linear")).clip(0, 1)
        labels = split.labels
    n = min(n, len(images) - m)
    return images[:n], labels[:n], images[n : n + m], labels[n : n + m]


def measured(outputs: Callable[[Any], Any], gradient: Callable[[Any], Any], x: Any, labels: Any) -> tuple[float, float]:
    """Give accuracy as it is and under one step along the gradient."""
    right = np.asarray(outputs(x)).argmax(1) == labels
    moved = jnp.clip(x + RADIUS * jnp.sign(gradient(x)), 0, 1)
    still = right & (np.asarray(outputs(moved)).argmax(1) == labels)
    return float(right.mean()), float(still.mean())


def each_model_jitted(feature: Any, x: Any, labels: Any) -> tuple[float, float]:
    """Measure one feature with functions of its own."""
    kernel, support, weights = feature.kernel, feature.support, feature.weights
    outputs = jax.jit(lambda x: kernel(x, support) @ weights)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(cross_entropy(kernel(x, support) @ weights, labels))))
    return measured(outputs, gradient, x, labels)


@jax.jit
def _outputs(feature: Any, x: Any) -> Any:
    return feature(x)


@jax.jit
def _gradient(feature: Any, x: Any, labels: Any) -> Any:
    return jax.grad(lambda x: jnp.sum(cross_entropy(feature(x), labels)))(x)


def one_jitted_function(feature: Any, x: Any, labels: Any) -> tuple[float, float]:
    """Measure one feature with functions of all."""
    return measured(lambda x: _outputs(feature, x), lambda x: _gradient(feature, x, labels), x, labels)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--data-dir", type=Path, help="where TFDS has mnist_t10k")
    parser.add_argument("--images", type=int, default=2000, help="n, and how many features there are (default 2000)")
    parser.add_argument("--measured-on", type=int, default=100, help="images to measure on (default 100)")
    parser.add_argument("--sample", type=int, default=20, help="features that the loops are run on (default 20)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    n, m, sample = (40, 10, 3) if options.quick else (options.images, options.measured_on, options.sample)
    support, support_labels, x, labels = data(n, m, options.data_dir)
    kernel = ntkit.ntk(ntkit.fc(2))
    started = time.perf_counter()
    found = features.eigenfeatures(kernel, support, one_hot(support_labels, 10))
    jax.block_until_ready(found.vectors)
    decomposition = time.perf_counter() - started
    # Compiled apart: blocks of a sweep have one shape, whatever the number of features.
    started = time.perf_counter()
    swept = features.sweep(found, x, labels, Linf(RADIUS), show_progress=not options.quick)
    seconds = {"sweep, with compilation": time.perf_counter() - started}
    chosen = np.linspace(0, len(found) - 1, sample).astype(int)
    rows: dict[str, Any] = {}
    for name, loop in (("each model jitted", each_model_jitted), ("one jitted function", one_jitted_function)):
        loop(found[0], jnp.asarray(x), labels)
        started = time.perf_counter()
        alone = np.array([loop(found[int(i)], jnp.asarray(x), labels) for i in chosen])
        seconds[name] = (time.perf_counter() - started) / sample * len(found)
        beside = np.stack([swept.accuracy[chosen], swept.robust_accuracy[chosen]], 1)
        rows[name] = {
            "seconds": seconds[name],
            "times_sweep": seconds[name] / seconds["sweep, with compilation"],
            "accuracies_differ_by_at_most": float(np.abs(alone - beside).max()),
        }
    print(f"{len(found)} features of {n} images, measured on {m}, l∞ {RADIUS}")
    print(f"  decomposition                {decomposition:8.1f} s")
    print(f"  sweep, with compilation      {seconds['sweep, with compilation']:8.1f} s")
    for name, row in rows.items():
        print(
            f"  loop, {name:22s} {row['seconds']:8.1f} s   {row['times_sweep']:.1f} times as long "
            f"(from {sample} features; accuracies differ by at most {row['accuracies_differ_by_at_most']:.3f})"
        )
    if options.out is not None:
        result = {
            "images": n,
            "measured_on": m,
            "features": len(found),
            "radius": RADIUS,
            "sample": sample,
            "decomposition_seconds": decomposition,
            "sweep_seconds": seconds["sweep, with compilation"],
            "loops": rows,
            "device": device(),
            "versions": versions(),
        }
        with atomic_write(options.out, "w") as file:
            file.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
