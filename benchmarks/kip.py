"""KIP's compiled loop against the loop people write today, side by side in one run.

Today's loop: the neural-tangents kernel in one jitted update, called from Python for every step, its class-balanced
target batch drawn with NumPy and copied over. Ours: `ntkit.distill.KIP`. Both take the same kernel (the NTK of a
fully-connected network with one hidden layer), Adam, learned labels and batch sizes, on synthetic 32×32×3 images.

    python benchmarks/kip.py [--quick] [--out benchmarks/results/kip-cpu.json]

The two take turns; the median over repeats of the time per step is compared, and the peak memory of this process
before and after ten times as many steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntkit
from ntkit.data import one_hot
from ntkit.runs.environment import device, versions

CLASSES = 10
ARCHITECTURE = ntkit.fc(1)


def todays_loop(images: np.ndarray, labels: np.ndarray, support: int, batch: int) -> Callable[[int], Any]:
    """Give a function that takes a number of steps, as published KIP code takes them."""
    from neural_tangents import stax

    _, _, kernel_fn = stax.serial(stax.Flatten(), stax.Dense(1, 2**0.5, 0.1), stax.Relu(), stax.Dense(1, 2**0.5, 0.1))
    optimizer = optax.adam(0.01)

    def loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        k_ss = kernel_fn(params["x"], params["x"], "ntk")
        k_ts = kernel_fn(x, params["x"], "ntk")
        regularized = k_ss + 1e-6 * jnp.trace(k_ss) / len(k_ss) * jnp.eye(len(k_ss))
        predictions = k_ts @ jax.scipy.linalg.solve(regularized, params["y"], assume_a="pos")
        return 0.5 * jnp.mean(jnp.sum((predictions - y) ** 2, axis=1))

    @jax.jit
    def update(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, x, y)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    # neural-tangents keeps one product per pixel of an image; whoever has met that flattens first.
    flat = images.reshape(len(images), -1)
    targets = np.asarray(one_hot(labels, CLASSES))
    by_class = [np.flatnonzero(labels == label) for label in range(CLASSES)]
    rng = np.random.default_rng(0)

    def draw(size: int) -> np.ndarray:
        return np.concatenate([rng.choice(members, size // CLASSES, replace=False) for members in by_class])

    first = draw(support)
    params = {"x": jnp.asarray(flat[first]), "y": jnp.asarray(targets[first])}
    progress = [params, optimizer.init(params)]

    def run(steps: int) -> None:
        value = jnp.zeros(())
        for _ in range(steps):
            chosen = draw(batch)
            progress[0], progress[1], value = update(*progress, flat[chosen], targets[chosen])
        value.block_until_ready()

    return run


def problem(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Give n images with labels, as many of each class."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, 32, 32, 3), dtype=np.float32)
    return images, rng.permutation(np.arange(n) % CLASSES).astype(np.int32)


def our_loop(
    images: np.ndarray, labels: np.ndarray, support: int, batch: int, architecture: ntkit.Architecture = ARCHITECTURE
) -> Callable[[int], Any]:
    """Give a function that takes a number of steps of `ntkit.distill.distill`."""
    kernel = ntkit.ntk(architecture)

    def run(steps: int) -> Any:
        return ntkit.distill.distill(
            ntkit.distill.KIP(kernel),
            images,
            labels,
            per_class=support // CLASSES,
            steps=steps,
            key=jax.random.key(0),
            targets=ntkit.distill.Targets(batch=batch),
            session=ntkit.runs.Session(log_every=steps),
        )

    return run


def per_step(run: Callable[[int], Any], few: int, many: int) -> float:
    """Give seconds per step from two lengths, so that what a run costs once (transfers, checks) drops out."""
    times = []
    for steps in (few, many):
        started = time.perf_counter()
        run(steps)
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / (many - few)


def peak_bytes() -> int:
    """Give the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the comparison, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each loop (default 7)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    n, support, batch, few, many = (2000, 20, 500, 1, 3) if options.quick else (50_000, 100, 5000, 10, 60)
    repeats = 2 if options.quick else options.repeats
    images, labels = problem(n)
    loops = {"today": todays_loop, "ntkit": our_loop}
    runs = {name: make(images, labels, support, batch) for name, make in loops.items()}
    for run in runs.values():
        run(few)  # compilation
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(per_step(run, few, many))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    before = peak_bytes()
    runs["ntkit"](10 * many)
    after = peak_bytes()
    result: dict[str, Any] = {
        "what": f"KIP, NTK of fc(1), 32×32×3, {support} support images, target batches of {batch} of {n}",
        "seconds_per_step": medians,
        "all_seconds_per_step": seconds,
        "ratio": medians["today"] / medians["ntkit"],
        "ratio_of_each_turn": [a / b for a, b in zip(seconds["today"], seconds["ntkit"], strict=True)],
        "peak_bytes_before_and_after_ten_times_as_many_steps": [before, after],
        "versions": versions(),
        "device": {**device(), "cores": os.cpu_count()},
    }
    print(result["what"])
    for name, value in medians.items():
        print(f"  {name:6s} {1000 * value:8.1f} ms/step")
    print(f"  ratio  {result['ratio']:8.2f}  (at least 1.3 wanted)")
    print(f"  peak memory {before / 2**20:.0f} MiB, after ten times as many steps {after / 2**20:.0f} MiB")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
