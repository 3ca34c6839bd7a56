"""The tangent kernel of finite networks, beside neural-tangents' three implementations: seconds, and memory.

    python benchmarks/empirical.py [--quick] [--repeats 5] [--out benchmarks/results/empirical-cpu.json]

A fully-connected network and a convolutional one with 10 outputs; the whole kernel, for each pair of outputs, and its
mean over outputs ("traced"). Everything is jitted; compilation is reported by itself. Medians of repeats in turns, all
in one process. Memory is what the compiled function needs beside its arguments and result (`memory_analysis()`), which
is known before it runs: what would need more than --memory GiB is not run, and counts as out of memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntkit
from ntkit import _neural_tangents as nt
from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

RIVALS = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES")
OURS = "ntkit"
# Seconds of a call, above which a side takes one turn only, and no other before it.
SLOW = 2.0


def cases(quick: bool) -> dict[str, tuple[Any, tuple[int, ...], int]]:
    """Give modules, the shapes of an image, and numbers of images."""
    if quick:
        return {
            "fc, width 16": (ntkit.fc(2).flax(num_outputs=10, width=16), (4, 4, 1), 4),
            "cnn, width 4": (ntkit.networks.simple_cnn(10, width=4), (8, 8, 3), 4),
        }
    return {
        "fc(3), width 512, 28×28": (ntkit.fc(3).flax(num_outputs=10, width=512), (28, 28, 1), 100),
        "fc(3), width 2048, 28×28": (ntkit.fc(3).flax(num_outputs=10, width=2048), (28, 28, 1), 40),
        "simple_cnn, 32×32×3": (ntkit.networks.simple_cnn(10), (32, 32, 3), 40),
        "convnet(3), width 64, 32×32×3": (ntkit.convnet(3).flax(num_outputs=10, width=64), (32, 32, 3), 20),
        "simple_cnn, 32×32×3, many": (ntkit.networks.simple_cnn(10), (32, 32, 3), 400),
    }


def problem(module: Any, shape: tuple[int, ...], n: int) -> tuple[Any, Any]:
    """Give n images, and the parameters of a network for them."""
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(n, *shape)), jnp.float32)
    return x, jax.jit(module.init)(jax.random.key(0), x[:1])


def kernels(module: Any, traced: bool, rivals: Sequence[str] = RIVALS) -> dict[str, Callable[[Any, Any], Any]]:
    """Give each side's kernel as a function of parameters and images."""

    def ours(params: Any, x: Any) -> Any:
        kernel = ntkit.empirical_ntk(module.apply, params)
        return kernel(x) if traced else kernel.full(x)

    sides: dict[str, Callable[[Any, Any], Any]] = {OURS: ours}
    for name in rivals:
        # An image at a time, as its documentation recommends for networks without batch normalization.
        theirs = nt.empirical_ntk_fn(
            module.apply,
            trace_axes=(-1,) if traced else (),
            vmap_axes=0,
            implementation=getattr(nt.NtkImplementation, name),
        )
        sides[name] = lambda params, x, theirs=theirs: theirs(x, None, params)
    return sides


def compare(
    sides: dict[str, Callable[[Any, Any], Any]], variables: Any, x: Any, repeats: int, memory: float
) -> dict[str, Any]:
    """Compile each side, and time those that fit in turns."""
    found: dict[str, Any] = {}
    compiled, results = {}, {}
    for name, side in sides.items():
        started = time.perf_counter()
        try:
            compiled[name] = jax.jit(side).lower(variables, x).compile()
        except Exception as error:  # whatever a rival raises is its result
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        analysis = compiled[name].memory_analysis()
        needed = analysis.temp_size_in_bytes / 2**30
        found[name] = {"compile_seconds": time.perf_counter() - started, "temporary_GiB": needed}
        if needed > memory:
            found[name]["error"] = f"out of memory: needs {needed:.1f} GiB beside its result"
            del compiled[name]
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for turn in range(repeats + 1):
        for name, run in compiled.items():
            if times[name] and times[name][0] > SLOW:
                continue
            started = time.perf_counter()
            results[name] = jax.block_until_ready(run(variables, x))
            seconds = time.perf_counter() - started
            if turn > 0 or seconds > SLOW:
                times[name].append(seconds)
    for name, all_seconds in times.items():
        difference = jnp.abs(results[name] - results[OURS]).max() / jnp.abs(results[OURS]).max()
        found[name] |= {
            "seconds": statistics.median(all_seconds),
            "all_seconds": all_seconds,
            "relative_difference": float(difference),
        }
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB that a side may need (default 12)")
    parser.add_argument("--only", help="cases whose name has this in it")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    rows = []
    for name, (module, shape, n) in cases(options.quick).items():
        if options.only is not None and options.only not in name:
            continue
        x, variables = problem(module, shape, n)
        for traced in (False, True):
            found = compare(kernels(module, traced), variables, x, repeats, options.memory)
            what = "traced" if traced else "full"
            rows.append({"network": name, "kernel": what, "images": n, "sides": found})
            print(f"{name}, {n} images, {what}", flush=True)
            best = min(
                (side["seconds"] for key, side in found.items() if key != OURS and "seconds" in side), default=None
            )
            for side, values in found.items():
                if "seconds" in values:
                    print(
                        f"  {side:24s} {1e3 * values['seconds']:10.1f} ms   {values['temporary_GiB']:7.3f} GiB   "
                        f"compiled in {values['compile_seconds']:5.1f} s   off by {values['relative_difference']:.0e}"
                    )
                else:
                    print(f"  {side:24s} {values['error']}")
            if best is not None:
                rows[-1]["best_rival_over_ours"] = best / found[OURS]["seconds"]
                print(f"  the best of neural-tangents takes {rows[-1]['best_rival_over_ours']:.2f} times as long")
            if options.out is not None:
                settings = {"repeats": repeats, "memory_GiB": options.memory}
                text = json.dumps({"rows": rows, **settings, "device": device(), "versions": versions()}, indent=2)
                with atomic_write(options.out, "w") as file:
                    file.write(text + "\n")


if __name__ == "__main__":
    main()
