"""Networks trained on poisoned images: NTGA beside clean images and noise of the same size, by accuracy on clean tests.

    OPENBLAS_NUM_THREADS=1 python benchmarks/ntga.py [--quick] [--data-dir DIR] [--seeds 0 1 2] [--out FILE]

The attack is of Yuan & Wu 2021 ("Neural Tangent Generalization Attacks", ICML), in l∞ balls. On a training set that was
poisoned through the NTK of fc(2), with random signs times the radius, and as it is, these are trained: regression with
that kernel; fc(2) of width 512 on the squared error; convnet(2) of 32 channels on the cross-entropy. A seed decides the
blocks of the attack, the noise, and the networks' initialization and batches. Labels are always right.

Time, blocks and the like were chosen by the kernel's accuracy on images of the training set that were held out. What
was tried is in the result as `choices`; test sets were looked at afterwards. Digits, and with --data-dir mnist_t10k,
which is not the standard release of MNIST. A run that is stopped and started again goes on with what FILE does not
have. The variable is for machines on which other work runs: threads of OpenBLAS that wait for each other make an
eigendecomposition a hundred times slower there.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ntkit
from ntkit import data, regression
from ntkit.attacks import Linf
from ntkit.data import one_hot
from ntkit.networks import adam, train
from ntkit.networks.transferring import random_noise
from ntkit.poison import ntga
from ntkit.runs import Session, atomic_write
from ntkit.runs.environment import device, versions

SHOWN = Session(show_progress=True)
RADII = {"digits": (0.1, 0.2, 0.3), "mnist_t10k": (0.1, 0.2, 0.3)}
ATTACK = {
    "loss": "mse",
    "time": 512.0,
    "block_size": 512,
    "steps": 10,
    "step_size": None,
    "target_batch": 2000,
}
RIDGE = 1e-4

# What was tried on 2,000 training images, the last fifth of these held out, at the radius of each data set.
TRIED_RADII = {"digits": 0.15, "mnist_t10k": 0.1}
TRIED = (
    [{"time": float(time)} for time in (1, 8, 64, 128, 256, 512, 1024, 2048, 4096)]
    + [{"time": float(time), "loss": "cross_entropy"} for time in (8, 64, 512)]
    + [{"block_size": size} for size in (64, 128, 256, 2000)]
    + [{"target_batch": size} for size in (100, 400)]
    # As the authors' code does, whose steps all begin at the clean images.
    + [{"time": float(time), "steps": 1, "step_size": "radius"} for time in (64, 512)]
    + [{"steps": 30}]
)

# Yuan & Wu 2021, "FNN Surrogate" in the README of the authors' code (github.com/lionelmessi6410/ntga): MNIST, 50,000
# images, radius 0.3, accuracy in %.
PUBLISHED = {
    "FNN": {"clean": 96.26, "NTGA": 2.57},
    "FNN-ReLU": {"clean": 97.87, "NTGA": 2.18},
    "CNN": {"clean": 99.49, "NTGA": 26.03},
}

Row = dict[str, Any]


def surrogate() -> ntkit.Kernel:
    """Give the kernel that the attack goes through."""
    return ntkit.ntk(ntkit.fc(2))


def by_kernel(images: np.ndarray, labels: np.ndarray, seed: int, quick: bool) -> Any:
    """Fit kernel regression."""
    return regression.fit(surrogate(), images, one_hot(labels, 10), RIDGE)


def by_fc(images: np.ndarray, labels: np.ndarray, seed: int, quick: bool) -> Any:
    """Train a fully-connected network."""
    steps = 5 if quick else 500
    options = {"steps": steps, "batch_size": 128, "optimizer": adam(0.01, decay_over=steps)}
    module = ntkit.fc(2).flax(num_outputs=10, width=512)
    return train(module, images, one_hot(labels, 10), key=jax.random.key(seed), **options)


def by_convnet(images: np.ndarray, labels: np.ndarray, seed: int, quick: bool) -> Any:
    """Train a convolutional network."""
    steps = 5 if quick else 300
    options = {"steps": steps, "batch_size": 128, "optimizer": adam(0.03, decay_over=steps), "loss": "cross_entropy"}
    module = ntkit.convnet(2).flax(num_outputs=10, width=32)
    return train(module, images, one_hot(labels, 10), key=jax.random.key(seed), **options)


LEARNERS: dict[str, Callable[..., Any]] = {
    "kernel regression": by_kernel,
    "fc(2), width 512": by_fc,
    "convnet(2), width 32": by_convnet,
}


def choices(name: str, dataset: ntkit.data.Dataset, quick: bool) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """Give what is tried, and how to measure it, on a part of the training set."""
    images, labels = dataset.train.images[:2000], dataset.train.labels[:2000]
    part = 4 * len(images) // 5
    radius = TRIED_RADII[name]
    for options in TRIED[:1] if quick else TRIED:

        def measure(options: Row = options) -> Row:
            attack = ATTACK | options
            if attack.get("step_size") == "radius":
                attack["step_size"] = radius
            started = time.monotonic()
            poisoned = ntga(surrogate(), images[:part], labels[:part], Linf(radius), key=jax.random.key(0), **attack)
            seconds = time.monotonic() - started
            model = by_kernel(poisoned, labels[:part], 0, quick)
            return {"seconds": seconds, "accuracy": data.accuracy(model, images[part:], labels[part:])}

        yield {"data": name, "radius": radius, **ATTACK, **options}, measure


def trainings(
    name: str, dataset: ntkit.data.Dataset, seeds: list[int], quick: bool
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """Give each training, and how to measure it."""
    clean, labels = dataset.train.images, dataset.train.labels

    @functools.cache
    def poisoned(radius: float, seed: int) -> tuple[np.ndarray, float]:
        started = time.monotonic()
        attack = ATTACK | {"steps": 1} if quick else ATTACK
        found = ntga(surrogate(), clean, labels, Linf(radius), key=jax.random.key(seed), session=SHOWN, **attack)
        return found, time.monotonic() - started

    for seed in seeds:
        kinds = [("clean", 0.0)]
        kinds += [(kind, radius) for radius in RADII[name][-1 if quick else 0 :] for kind in ("noise", "NTGA")]
        for kind, radius in kinds:
            for learner, learn in LEARNERS.items():

                def measure(
                    kind: str = kind, radius: float = radius, seed: int = seed, learn: Callable[..., Any] = learn
                ) -> Row:
                    images, row = clean, {}
                    if kind == "noise":
                        images = np.asarray(random_noise(clean, Linf(radius), key=jax.random.key(seed)))
                    if kind == "NTGA":
                        images, row["attack_seconds"] = poisoned(radius, seed)
                    started = time.monotonic()
                    model = learn(images, labels, seed, quick)
                    row["seconds"] = time.monotonic() - started
                    row["train_accuracy"] = data.accuracy(model, images, labels)
                    row["accuracy"] = data.accuracy(model, dataset.test.images, dataset.test.labels)
                    return row

                yield {"data": name, "images": kind, "radius": radius, "model": learner, "seed": seed}, measure


def table(rows: list[Row]) -> None:
    """Print means and standard deviations over seeds, in %."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["radius"], row["images"], row["model"]), []).append(row["accuracy"])
    print("\naccuracy on clean test images, %")
    for (name, radius, kind, model), values in groups.items():
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        print(f"{name:10}  {radius:4g}  {kind:5}  {model:20}  {100 * statistics.mean(values):5.1f}{spread}")
    print("\nYuan & Wu 2021, MNIST, 50,000 images, radius 0.3:")
    for model, found in PUBLISHED.items():
        print(f"{model:10}  clean {found['clean']}  NTGA {found['NTGA']}")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where mnist_t10k is; without it digits alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--quick", action="store_true", help="digits, few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file to write, or to go on with")
    options = parser.parse_args()
    seeds = options.seeds[:1] if options.quick else options.seeds
    result: dict[str, Any] = {"attack": ATTACK, "ridge": RIDGE, "published": PUBLISHED, "choices": [], "trainings": []}
    if options.out is not None and options.out.exists():
        result |= json.loads(options.out.read_text())
    result |= {"device": {**device(), "cores": os.cpu_count()}, "versions": versions()}

    names = ["digits"] if options.data_dir is None or options.quick else ["digits", "mnist_t10k"]
    for name in names:
        dataset = ntkit.data.load(name, options.data_dir)
        for part, work in (
            ("choices", choices(name, dataset, options.quick)),
            ("trainings", trainings(name, dataset, seeds, options.quick)),
        ):
            for what, measure in work:
                if any(what.items() <= row.items() for row in result[part]):
                    continue
                row = what | measure()
                result[part].append(row)
                print(row, flush=True)
                if options.out is not None:
                    with atomic_write(options.out, "w") as file:
                        file.write(json.dumps(result, indent=2) + "\n")
    table(result["trainings"])


if __name__ == "__main__":
    main()
