"""How kernels move in standard and in adversarial training, over networks and seeds.

    python benchmarks/dynamics.py [--quick] [--data-dir DIR] [--only NAME] [--seeds 0 1 2] [--out FILE]

Tsilivis & Kempe 2022 (arXiv:2210.05577, section 5) find that adversarial training turns the kernel more, concentrates
it more at the top, and becomes lazy earlier. Here: the distance between the first and the last kernel; the step at
which half of the way ‖Θt − Θ0‖ is gone; the velocity between the last two kernels, over its largest one before; the
effective rank; and the accuracies of the network, clean and under PGD-20. Both trainings of a seed start from the same
network and see the same batches. Settings are in ROWS and in the result. Digits, and with --data-dir
mnist_t10k, which is not the standard release of MNIST.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ntkit
from ntkit import attacks, data, networks
from ntkit.attacks import PGD, Linf
from ntkit.data import Dataset, Standardize, load, one_hot
from ntkit.networks import Dynamics
from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions


class Row(NamedTuple):
    """Data, network, its training, and the radius of the l∞ ball."""

    data: str
    module: Any
    radius: float
    optimizer: str = "sgd"
    learning_rate: float = 1.0


ROWS = {
    "digits, fc(2) of width 256": Row("digits", ntkit.fc(2).flax(10, 256), 0.15),
    "digits, fc(2) of width 32": Row("digits", ntkit.fc(2).flax(10, 32), 0.15),
    # By SGD it does not learn from attacked images.
    "digits, simple_cnn of width 16": Row("digits", networks.simple_cnn(10, width=16), 0.1, "adam", 0.001),
    "mnist_t10k, fc(2) of width 256": Row("mnist_t10k", ntkit.fc(2).flax(10, 256), 0.1),
}
AT = (0, 10, 30, 100, 300, 1000)
SAMPLE, TRAIN, TEST = 200, 2000, 300


def half_way(dynamics: Dynamics) -> float:
    """Give the step at which half of the way from Θ0 to Θf is gone, between the steps by a straight line."""
    return float(np.interp(0.5, np.maximum.accumulate(dynamics.rotation().radius), dynamics.steps))


def measured(dynamics: Dynamics, dataset: Dataset, ball: Linf) -> dict[str, float]:
    """Give the numbers of one training."""
    test = dataset.test.choice(TEST, jax.random.key(1))
    model = dynamics.networks[-1]
    found = attacks.evaluate(model, test.images, test.labels, {"pgd": PGD(ball, steps=20)})
    return {
        "distance": float(dynamics.distances[0, -1]),
        "half_way": half_way(dynamics),
        "last_velocity": float(dynamics.velocity[-1] / dynamics.velocity[:-1].max()),
        "effective_rank_before": float(dynamics.effective_rank[0]),
        "effective_rank": float(dynamics.effective_rank[-1]),
        "top_10": float(dynamics.concentration(10)[-1]),
        "clean": found.clean,
        "pgd": found.robust["pgd"],
    }


def both(row: Row, seed: int, data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """Train with and without an adversary, and measure both."""
    dataset = load(row.data, data_dir)
    train = dataset.train.choice(40 if quick else TRAIN, jax.random.key(0))
    module, ball = data.of_pixels(row.module, Standardize.fit(train.images)), Linf(row.radius)
    adversary = PGD(ball, steps=2 if quick else 10, stop_early=False)
    found = {}
    for kind, attacked_by in (("standard", None), ("adversarial", adversary)):
        dynamics = networks.kernel_dynamics(
            module,
            train.images,
            np.asarray(one_hot(train.labels, 10)),
            sample=train.images[: 20 if quick else SAMPLE],
            at=(0, 2, 4, 6) if quick else AT,
            key=jax.random.key(seed),
            adversary=attacked_by,
            loss="cross_entropy",
            optimizer={"sgd": networks.sgd, "adam": networks.adam}[row.optimizer](row.learning_rate),
            batch_size=20 if quick else 128,
        )
        found[kind] = measured(dynamics, dataset, ball)
    return found


def main() -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first row, few steps: to see that it runs")
    parser.add_argument("--data-dir", type=Path, help="where TFDS has mnist_t10k")
    parser.add_argument("--only", help="rows whose name has this in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of initialization and batches")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    chosen = {
        name: row
        for name, row in ROWS.items()
        if (options.only is None or options.only in name) and (row.data == "digits" or options.data_dir is not None)
    }
    seeds = options.seeds[:1] if options.quick else options.seeds
    rows = []
    for name, row in list(chosen.items())[: 1 if options.quick else None]:
        started = time.monotonic()
        of_seeds = [both(row, seed, options.data_dir, options.quick) for seed in seeds]
        summary: dict[str, Any] = {}
        print(f"{name}, {len(seeds)} seeds, {time.monotonic() - started:.0f} s")
        for kind in of_seeds[0]:
            summary[kind] = {}
            for number in of_seeds[0][kind]:
                values = [one[kind][number] for one in of_seeds]
                summary[kind][number] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
            print(f"  {kind}", flush=True)
            for number, value in summary[kind].items():
                print(f"    {number:22s} {value['mean']:10.4g} ± {value['std']:.2g}")
        settings = {"optimizer": row.optimizer, "learning_rate": row.learning_rate, "radius": row.radius}
        rows.append({"name": name, **settings, "summary": summary, "seeds": of_seeds})
    if options.out is not None:
        sizes = {"at": AT, "sample": SAMPLE, "train": TRAIN, "test": TEST, "batch_size": 128, "seeds": seeds}
        result = {"rows": rows, **sizes, "device": device(), "versions": versions()}
        with atomic_write(options.out, "w") as file:
            file.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
