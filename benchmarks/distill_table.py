"""Distilled sets past KIP, judged by exact kernel regression or by networks, the published numbers beside ours.

    python benchmarks/distill_table.py --data-dir DIR [--rows NAME …] [--seeds 0 …] [--published FILE] [--out FILE]
    python benchmarks/distill_table.py --quick

Rows of RFAD (Loo et al. 2022, arXiv:2210.12067) are judged by the test accuracy of kernel ridge regression with the
exact kernels of the infinitely wide network, NNGP and NTK; rows of FRePo (Zhou et al. 2022, arXiv:2206.00719) by the
field's standard network, trained on the set from five initializations, with and without flips, beside as many real
images (`ntkit.distill.judge`). RFAD never evaluates the exact kernel.

The test set is looked at once, at the end, and nothing is chosen by it: the settings of RFAD are those of a prototype
with another seed, and the ridge is that of the distillation; networks' learning rates and steps are chosen on held-out
training images. Each row is a run directory below --runs; an interrupted one goes on.

The row `step` compares the time of a step with that of KIP with the exact kernel, one after the other in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax

import ntkit
from ntkit import data, distill, networks, regression
from ntkit.cli.options import DataOptions, prepare
from ntkit.data import Augmentation
from ntkit.networks import adabelief
from ntkit.networks.training import Module
from ntkit.runs import Run, Session, atomic_write
from ntkit.runs.environment import device, versions


@dataclasses.dataclass(frozen=True)
class Row:
    """A data set, what is learned from it, and for how long."""

    dataset: str
    per_class: int
    steps: int
    preprocess: Literal["standardize", "zca"]
    learner: Literal["rfad", "frepo"] = "rfad"
    depth: int = 3
    width: int = 128
    targets: int = 256
    ridge: float = 5e-3
    learning_rate: float = 0.01
    flip: bool = True

    @property
    def architecture(self) -> ntkit.Architecture:
        """The network whose random features RFAD learns on, and whose kernels judge."""
        return ntkit.convnet(self.depth)

    @property
    def module(self) -> Module:
        """The network that FRePo learns on, and that judges."""
        return networks.standard_convnet(10, width=self.width, depth=self.depth)

    @property
    def chosen(self) -> distill.Learner:
        """The learner."""
        if self.learner == "frepo":
            return distill.FRePo(self.module, ridge=self.ridge)
        return distill.RFAD(self.architecture, width=self.width, ridge=self.ridge)


ROWS = {
    "cifar10_jpeg-1": Row("cifar10_jpeg", 1, 12_000, "zca"),
    "cifar10_jpeg-10": Row("cifar10_jpeg", 10, 14_000, "zca"),
    "fashion_mnist-1": Row("fashion_mnist", 1, 6_000, "standardize"),
    "fashion_mnist-10": Row("fashion_mnist", 10, 5_000, "standardize"),
    "cifar10_jpeg-1-frepo": Row("cifar10_jpeg", 1, 10_000, "zca", "frepo", ridge=1e-3),
    "fashion_mnist-1-frepo": Row("fashion_mnist", 1, 10_000, "standardize", "frepo", ridge=1e-3),
}
QUICK = {
    "digits-1": Row("digits", 1, 20, "standardize", depth=1, width=16, targets=64),
    "digits-1-frepo": Row("digits", 1, 20, "standardize", "frepo", depth=1, width=16, targets=64, ridge=1e-3),
}
# Data sets whose published numbers are those of another one's: the same images, in JPEG.
COPIES = {"cifar10_jpeg": "cifar10"}
SIZES = (1, 10, 50)


def published(path: Path | None, row: Row) -> dict[str, float]:
    """Give published test accuracies in percent for sets of as many images.

    KIP's set, learned with the exact kernel without augmentation, is judged by regression with that kernel, other
    learners' sets by networks. What the file has from memory is left out.
    """
    if path is None:
        return {}
    every = json.loads(path.read_text())
    dataset = COPIES.get(row.dataset, row.dataset)
    kip, column = every["kip_table_1"], every["kip_table_1"]["columns"].index("KIP ConvNet")
    found = {}
    for values in kip.get(dataset, []):
        if values[0] == row.per_class:
            found["kip"] = values[column]
    if row.per_class in SIZES:
        learners = every["distilled_sets_on_networks"].get(dataset, {})
        found |= {name: values[SIZES.index(row.per_class)] for name, values in learners.items()}
    return {name: value for name, value in found.items() if value is not None}


def judged(row: Row, made: distill.Distilled, prepared: Any, quick: bool) -> dict[str, Any]:
    """Give the test accuracies of exact kernel regression on a set, or of networks."""
    if row.learner == "frepo":
        return by_networks(row, made, prepared, quick)
    found = {}
    for name, kernel in (("nngp", ntkit.nngp(row.architecture)), ("ntk", ntkit.ntk(row.architecture))):
        model = regression.fit(kernel, made.images, made.labels, row.ridge)
        accuracy = data.accuracy(model, prepared.test_images, prepared.dataset.test.labels, batch_size=1000)
        found[name] = round(100 * accuracy, 2)
    return found


def by_networks(row: Row, made: distill.Distilled, prepared: Any, quick: bool) -> dict[str, Any]:
    """Give the test accuracies of networks trained on a set and on as many real images, with what was chosen."""
    labels = prepared.dataset.train.labels
    sets = {"distilled": made, "herded": distill.herded(prepared.train_images, labels, per_class=row.per_class)}
    result = distill.judge(
        sets,
        {"standard_convnet": row.module},
        data.Split(prepared.train_images, labels),
        data.Split(prepared.test_images, prepared.dataset.test.labels),
        key=jax.random.key(0),
        augment=Augmentation(flip=True),
        seeds=2 if quick else 5,
        steps=(5, 10) if quick else (300, 1000),
        show_progress=True,
    )
    return {
        f"{cells['trained on']}, {'with' if cells['augmented'] == 'yes' else 'without'} flips": {
            "mean": round(100 * cells["test accuracy"].mean, 2),
            "std": round(100 * cells["test accuracy"].std, 2),
            "held out": round(100 * float(cells["held out"]), 2),
            "learning rate": cells["learning rate"],
            "steps": cells["steps"],
        }
        for cells in result.tables["networks"]
    }


@contextlib.contextmanager
def counted(path: Path) -> Iterator[None]:
    """Write how many seconds a block took, with those before an interruption."""
    before = float(json.loads(path.read_text())) if path.exists() else 0.0
    started = time.monotonic()
    try:
        yield
    finally:
        with atomic_write(path, "w") as file:
            file.write(json.dumps(before + time.monotonic() - started) + "\n")


def measure(name: str, row: Row, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Distil a row, or go on with it, and judge it; a finished one is read back."""
    config = {"row": dataclasses.asdict(row), "seed": seed}
    path = options.runs / f"{name}-seed{seed}"
    run = Run.resume(path, config) if path.exists() else Run.create(path, config)
    finished = path / "row.json"
    if finished.exists():
        return dict(json.loads(finished.read_text()))
    prepared = prepare(DataOptions(row.dataset, options.data_dir, preprocess=row.preprocess))
    seconds = path / "seconds.json"
    with counted(seconds):
        made = distill.distill(
            row.chosen,
            prepared.train_images,
            prepared.dataset.train.labels,
            per_class=row.per_class,
            steps=row.steps,
            key=jax.random.key(seed),
            support=distill.Support(learn=("images", "labels", "temperature")),
            targets=distill.Targets(
                batch=row.targets,
                loss="cross_entropy",
                augment=Augmentation(flip=True) if row.flip else None,
            ),
            optimizer=adabelief(row.learning_rate, decay_over=row.steps),
            session=Session(run=run, log_every=max(1, row.steps // 100), show_progress=True),
        )
        made.save(path / "distilled.npz")
    started = time.monotonic()
    result = {
        "row": name,
        "seed": seed,
        "steps": row.steps,
        "seconds": round(json.loads(seconds.read_text())),
        "test_accuracy": judged(row, made, prepared, options.quick),
        "seconds_of_judging": round(time.monotonic() - started),
        "peak_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    with atomic_write(finished, "w") as file:
        file.write(json.dumps(result) + "\n")
    return result


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the time of a step of RFAD with that of KIP with the exact kernel: 10 support images, 256 targets."""
    row = QUICK["digits-1"] if options.quick else ROWS["cifar10_jpeg-1"]
    prepared = prepare(DataOptions(row.dataset, options.data_dir, preprocess=row.preprocess))
    learners = {
        "rfad": (row.chosen, 20),
        "kip": (distill.KIP(ntkit.nngp(row.architecture), ridge=row.ridge), 1),
    }
    seconds = {}
    for name, (learner, count) in learners.items():

        def run(steps: int, learner: distill.Learner = learner) -> float:
            started = time.monotonic()
            distill.distill(
                learner,
                prepared.train_images[:2000],
                prepared.dataset.train.labels[:2000],
                per_class=1,
                steps=steps,
                key=jax.random.key(0),
                targets=distill.Targets(batch=row.targets),
                session=Session(log_every=1),
            )
            return time.monotonic() - started

        run(1)  # compiles
        seconds[name] = (run(2 * count) - run(count)) / count
    return {"row": "step", "seconds_per_step": seconds, "times": round(seconds["kip"] / seconds["rfad"], 1)}


def main() -> None:
    """Run the rows asked for, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="TFDS data directory")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "step"], default=[*ROWS, "step"], help="(default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of everything random (default 0)")
    parser.add_argument("--runs", type=Path, default=Path("runs/distill_table"), help="where the run directories go")
    parser.add_argument("--published", type=Path, help="JSON with the published numbers")
    parser.add_argument("--quick", action="store_true", help="digits, a few steps: to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file to write; rows that it has of other runs stay")
    options = parser.parse_args()
    rows = QUICK if options.quick else {name: ROWS[name] for name in options.rows if name != "step"}
    known = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    for name, row in rows.items():
        for seed in options.seeds:
            found = measure(name, row, seed, options) | {"published": published(options.published, row)}
            print(json.dumps(found), flush=True)
            known = write(options, known, found)
    if options.quick or "step" in options.rows:
        found = step(options)
        print(json.dumps(found), flush=True)
        write(options, known, found)


def write(options: argparse.Namespace, known: list[dict[str, Any]], found: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a row to the file, in the place of an older one."""
    where = (found["row"], found.get("seed"))
    rows = [row for row in known if (row["row"], row.get("seed")) != where] + [found]
    if options.out:
        result = {
            "what": "sets judged by regression with the exact kernels of convnet(3), or by networks; accuracy in %",
            "settings": {name: dataclasses.asdict(row) for name, row in ROWS.items()},
            "rows": rows,
            "versions": versions(),
            "device": {**device(), "cores": os.cpu_count()},
        }
        with atomic_write(options.out, "w") as file:
            file.write(json.dumps(result, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
