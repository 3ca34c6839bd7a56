"""Adversarial examples crafted on an NTK, without training, shown to networks: clean, noise, kernel, white box.

    python benchmarks/ntk_transfer.py --data-dir DIR [--quick] [--tasks NAME …] [--out FILE]

The experiment of Tsilivis & Kempe 2022 (arXiv:2210.05577), reduced: 1,000 training images and at most 200 test images
of mnist_t10k and cifar10_jpeg (which are not the standard releases), two classes of each and all ten, standardized, in
l∞ balls of 0.2 and 8/255. Networks in the NTK parameterization, of one hidden layer, are trained by SGD on the squared
error (batches of 100, learning rate 0.3, output at initialization subtracted), which is the lazy regime if they are
wide; for the first task also a small CNN, trained by Adam as people train one. Three initializations of each.

Examples are crafted by PGD with 10 steps, all of them taken, on kernel ridge regression and on the closed form of
gradient flow at the time of each number of training steps, and there by a single step (FGSM), too. White box is PGD
with 50 steps on each network itself, since the gradient of a finite network is a rougher guide, and FGSM. Noise is
random signs, times the radius.

A run that is stopped and started again goes on with the networks that FILE does not have. Without --data-dir all data
are scikit-learn's digits, to see that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ntkit
from ntkit import attacks, data, regression
from ntkit.attacks import FGSM, PGD, Linf
from ntkit.data import Standardize, of_pixels, one_hot
from ntkit.networks import adam, random_noise, sgd, simple_cnn, transfer, transfer_rows
from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

RATE = 0.3
LAZY = {"optimizer": sgd(RATE), "batch_size": 100, "centred": True}
USUAL = {"optimizer": adam(0.001), "batch_size": 100}
# Relative to the mean of the Gram matrix's diagonal.
RIDGE = 1e-4


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set and a kernel, with the widths of finite networks of the kernel's own architecture."""

    data: str
    classes: tuple[int, ...]
    radius: float
    architecture: ntkit.Architecture = dataclasses.field(default_factory=lambda: ntkit.fc(1))
    widths: tuple[int, ...] = (64, 512, 4096)
    train: int = 1000
    cnn: bool = False


TEN = tuple(range(10))
TASKS = {
    "mnist-2-fc": Task("mnist_t10k", (3, 5), 0.2, cnn=True),
    "mnist-10-fc": Task("mnist_t10k", TEN, 0.2),
    "mnist-2-conv": Task("mnist_t10k", (3, 5), 0.2, ntkit.conv(1), (16, 64), 500),
    "cifar-2-fc": Task("cifar10_jpeg", (0, 1), 8 / 255, widths=(64, 512, 2048)),
    "cifar-10-fc": Task("cifar10_jpeg", TEN, 8 / 255, widths=(64, 512, 2048)),
}


def chosen(split: Any, classes: tuple[int, ...], limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the first images of some classes, and their places among these as labels."""
    rows = np.flatnonzero(np.isin(split.labels, classes))[:limit]
    return split.images[rows], np.searchsorted(classes, split.labels[rows])


def measure(
    task: Task, data_dir: Path | None, quick: bool, known: dict[str, Any], save: Callable[[dict[str, Any]], None]
) -> None:
    """Craft, train, and compare; `known` is what an earlier call saved of it."""
    started = time.monotonic()
    dataset = ntkit.data.load(task.data if data_dir else "digits", data_dir)
    images, classes = chosen(dataset.train, task.classes, 50 if quick else task.train)
    x, labels = chosen(dataset.test, task.classes, 10 if quick else 200)
    steps, seeds = ((2, 4), 1) if quick else ((30, 300), 3)
    outputs = 1 if len(task.classes) == 2 else len(task.classes)
    if outputs == 1:
        targets, labels = np.float32(2 * classes[:, None] - 1), 2 * labels - 1
    else:
        targets = np.asarray(one_hot(classes, outputs))
    preprocess = Standardize.fit(images)
    prepared = preprocess.transform(images)
    ball = Linf(task.radius)
    adversary = PGD(ball, steps=10, stop_early=False)
    white_box = {
        "white box": PGD(ball, steps=50, stop_early=False),
        "white box, one step": FGSM(ball),
    }
    key_noise, key_attack, key_networks = jax.random.split(jax.random.key(0), 3)

    kernel = ntkit.ntk(task.architecture)
    gram = ntkit.gram(kernel, prepared)
    predictors = {"ridge": regression.fit(kernel, prepared, targets, RIDGE, gram=gram)}
    for step in steps:
        predictors[f"flow {step}"] = regression.flow(kernel, prepared, targets, RATE * step * outputs)
    examples = {"noise": random_noise(x, ball, key=key_noise)}
    kernels = {}
    for name, predictor in predictors.items():
        model = of_pixels(predictor, preprocess)
        found = {name: adversary(model, x, labels, key=key_attack)}
        if name != "ridge":
            found[f"{name}, one step"] = attacks.FGSM(ball)(model, x, labels)
        examples |= found
        shown = {"clean": x, "noise": examples["noise"], **found}
        kernels[name] = {of: data.accuracy(model, np.asarray(these), labels) for of, these in shown.items()}
    result = {
        "data": dataset.name,
        "classes": task.classes,
        "radius": task.radius,
        "train_images": len(images),
        "test_images": len(x),
        "kernel": task.architecture.name,
        "kernel_accuracy": kernels,
        "seeds": seeds,
        "device": {**device(), "cores": os.cpu_count()},
        "versions": versions(),
        "crafting_seconds": time.monotonic() - started,
        "networks": known.get("networks", []),
    }

    widths = (8,) if quick else task.widths
    networks = {f"{task.architecture.name}, width {w}": (task.architecture.flax(outputs, w), LAZY) for w in widths}
    if task.cnn:
        networks["simple_cnn, Adam"] = (simple_cnn(outputs), USUAL)
    for name, (module, training) in networks.items():
        if any(row["network"] == name for row in result["networks"]):
            continue
        started = time.monotonic()
        by_seed = [
            transfer(
                of_pixels(module, preprocess),
                images,
                targets,
                x,
                labels,
                examples=examples,
                adversaries=white_box,
                steps=steps,
                key=jax.random.fold_in(key_networks, seed),
                **training,
            )
            for seed in range(seeds)
        ]
        seconds = time.monotonic() - started
        result["networks"] += [{**row, "seconds": seconds} for row in transfer_rows(name, by_seed)]
        save(result)
    for row in result["networks"]:
        print("  " + in_words(row), flush=True)
    total = sum({row["network"]: row["seconds"] for row in result["networks"]}.values())
    print(f"  {result['crafting_seconds']:.0f} s crafting, {total:.0f} s training and attacking networks", flush=True)


def in_words(row: Any) -> str:
    """Say a row, of the examples crafted on a flow those of its own time."""
    mean = {name: 100 * float(np.mean(values)) for name, values in row["accuracy"].items()}
    own = f"flow {row['steps']}"
    names = {name: name for name in mean if not name.startswith("flow")}
    names |= {own: "flow", f"{own}, one step": "flow, one step"}
    shares = "  ".join(f"{title} {mean[name]:.1f}" for name, title in names.items())
    return f"{row['network']:20s} {row['steps']:4d} steps   {shares}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--data-dir", type=Path, help="where TFDS has mnist_t10k and cifar10_jpeg")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    tasks: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        tasks = json.loads(options.out.read_text())["tasks"]
    for name in options.tasks:
        task = TASKS[name]
        print(f"{name}, l∞ of {task.radius:.3f}: accuracy in %", flush=True)

        def save(result: dict[str, Any], name: str = name) -> None:
            tasks[name] = result
            if options.out is None:
                return
            settings = {
                "lazy": f"SGD at {RATE}, batches of 100, centred",
                "usual": "Adam at 0.001, batches of 100",
                "ridge": RIDGE,
                "attack": "PGD, 10 steps; white box: 50 steps",
            }
            ordered = {known: tasks[known] for known in TASKS if known in tasks}
            with atomic_write(options.out, "w") as file:
                file.write(json.dumps({"tasks": ordered, **settings}, indent=1) + "\n")

        measure(task, options.data_dir, options.quick, tasks.get(name, {}), save)


if __name__ == "__main__":
    main()
