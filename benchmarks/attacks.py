"""PGD with 20 steps, ours against Foolbox's LinfPGD, on kernel predictors and on a small network.

    python benchmarks/attacks.py [--quick] [--data-dir DIR] [--out benchmarks/results/attacks-cpu.json]

Both begin at the same images with the same steps, without random starts, and take all of them, so that they find the
same examples; robust accuracies stand beside the times. The kernel predictor is a regression on 1,000 real images with
the NTK of a fully-connected network of two hidden layers. Foolbox gets it three times: with the kernel of
neural-tangents as people write it, without jit, and jitted; and with ntkit's kernel, jitted. The network is `conv(2)`
of 32 channels. Median of repeats in turns, all in one process; the first call's time, with compilation, stands beside.

Without --data-dir the images are scikit-learn's digits, enlarged: the sizes are those of the data sets, the robust
accuracies are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import jax
import jax.numpy as jnp
import numpy as np

import ntkit
from ntkit import attacks
from ntkit.attacks import Linf
from ntkit.data import one_hot
from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

STEPS = 20
# Of the most that 8 / 255 is to natural images; MNIST is attacked with more, and these kernels fall at less.
RADIUS = {"mnist_t10k": 0.1, "cifar10_jpeg": 4 / 255}
SHAPES = {"mnist_t10k": (28, 28, 1), "cifar10_jpeg": (32, 32, 3)}


def images_of(name: str, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Give images and labels: of a data set, or of its size."""
    if data_dir is not None:
        split = ntkit.data.load(name, data_dir).train
        return split.images, split.labels
    split = ntkit.data.load("digits").train
    shape = (len(split.images), *SHAPES[name])
    return np.asarray(jax.image.resize(split.images, shape, "linear")).clip(0, 1), split.labels


def by_foolbox(model: Callable[[Any], Any], x: Any, labels: Any, radius: float) -> Any:
    """Attack as a user of Foolbox does."""
    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=False)
    return attack(foolbox.JAXModel(model, bounds=(0, 1)), x, labels, epsilons=radius)[1]


def by_ntkit(model: Callable[[Any], Any], x: Any, labels: Any, radius: float) -> Any:
    """The same attack by ntkit."""
    return attacks.pgd(model, x, labels, Linf(radius), steps=STEPS, random_start=False, stop_early=False)


def seconds_of(run: Callable[[], Any]) -> float:
    """Time one call, until its result is there."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def compare(models: dict[str, Any], x: Any, labels: Any, radius: float, repeats: int) -> dict[str, Any]:
    """Attack `models["ntkit"]` by ntkit and the others by Foolbox, in turns."""
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    runs = {
        name: (lambda model=model, attack=by_ntkit if name == "ntkit" else by_foolbox: attack(model, x, labels, radius))
        for name, model in models.items()
    }
    first = {name: seconds_of(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds_of(run))
    found = {}
    for name, run in runs.items():
        seconds = statistics.median(times[name])
        found[name] = {
            "seconds": seconds,
            "all_seconds": times[name],
            "first_call_seconds": first[name],
            "robust_accuracy": ntkit.regression.accuracy(models["ntkit"], run(), labels),
        }
    for name in found:
        found[name]["times_ntkit"] = found[name]["seconds"] / found["ntkit"]["seconds"]
    return found


def predictors(name: str, data_dir: Path | None, support: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Give a kernel predictor as each side is handed it, and images to attack with their labels."""
    images, labels = images_of(name, data_dir)
    architecture = ntkit.fc(2)
    targets = one_hot(labels[:support], 10)
    ours = ntkit.regression.fit(ntkit.ntk(architecture), images[:support], targets, 1e-3)
    _, _, kernel_fn = architecture.stax(num_outputs=10, width=1)
    held = jnp.asarray(images[:support])

    def today(x: Any) -> Any:
        return kernel_fn(x, held, "ntk") @ ours.weights

    models = {
        "ntkit": ours,
        "Foolbox, neural-tangents jitted": jax.jit(today),
        "Foolbox, ntkit's kernel jitted": jax.jit(ours),
        "Foolbox, neural-tangents without jit": today,
    }
    return models, images[support:], labels[support:]


def network(name: str, data_dir: Path | None, steps: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Give a small convolutional network, trained on 1,000 images, and images to attack with their labels."""
    images, labels = images_of(name, data_dir)
    module = ntkit.conv(2).flax(num_outputs=10, width=32)
    trained = ntkit.networks.train(
        module, images[:1000], one_hot(labels[:1000], 10), key=jax.random.key(0), steps=steps, batch_size=64
    )
    return {"ntkit": trained, "Foolbox": jax.jit(trained)}, images[1000:], labels[1000:]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--data-dir", type=Path, help="where TFDS has mnist_t10k and cifar10_jpeg")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    support, counts, repeats = (100, (16,), 1) if options.quick else (1000, (64, 256), options.repeats)
    rows = []
    for name, radius in RADIUS.items():
        models, x, labels = predictors(name, options.data_dir, support)
        nets, net_x, net_labels = network(name, options.data_dir, 10 if options.quick else 500)
        for count in counts:
            for what, sides, images, truth in (
                ("kernel predictor", models, x, labels),
                ("network", nets, net_x, net_labels),
            ):
                found = compare(sides, images[:count], truth[:count], radius, repeats)
                rows.append({"model": what, "data": name, "images": count, "radius": radius, "sides": found})
                print(f"{what}, {name}, {count} images, l∞ {radius:.3f}")
                for side, values in found.items():
                    print(
                        f"  {side:38s} {1e3 * values['seconds']:9.1f} ms  {values['times_ntkit']:6.1f}×   "
                        f"first call {values['first_call_seconds']:5.1f} s   robust {values['robust_accuracy']:.1%}"
                    )
    if options.out is not None:
        settings = {"steps": STEPS, "support": support, "repeats": repeats, "data_dir": options.data_dir is not None}
        text = json.dumps({"rows": rows, **settings, "device": device(), "versions": versions()}, indent=2)
        atomic_write(options.out, text + "\n")


if __name__ == "__main__":
    main()
