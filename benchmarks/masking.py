"""Why networks trained on adv-KIP's sets can seem to withstand PGD: what hides their gradients, and what is left.

    python benchmarks/masking.py [--rows NAME …] [--data-dir DIR] [--out FILE]
    python benchmarks/masking.py --quick

The published table (Tsilivis, Su, Kempe 2022, arXiv:2207.11727) has networks that were trained, without an adversary,
on sets of thousands of images learned by adv-KIP: 49 to 67 % on CIFAR-10 under PGD of 20 steps at 8/255. Its authors
say that other attacks fool them. Here sets of 1,000 and more images are learned with kernels of several depths and at
the radius of each data set, by adv-KIP and by KIP, and networks are trained on them and on as many real images. Beside
the accuracies stand what tells a robust network from one with hidden gradients:

- `textbook`: PGD of 20 steps along the gradient of the softmax cross-entropy as float32 computes it, and `PGD-20`, the
  same with ntkit's, which does not depend on the scale of the logits; `AutoAttack`; `transfer`: what fools the same
  network trained on real images, tried on this one, which needs no gradient of it.
- how far apart the logits of a test image are (median), at how many images the probability of the class rounds to 1,
  and at how many the textbook's gradient is exactly zero.
- the textbook's accuracy on the same network with its logits multiplied by 10, 100, and 1,000: the same classifier, as
  robust as it was.
- the surface: the loss, as log odds, along the way to what AutoAttack found, and at how many images it grows all along.

Test images are looked at to attack them, and nothing is chosen by them. Sets are run directories below --runs, and what
is in FILE is not measured again: an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import ntkit
from ntkit import attacks, data, distill, networks, regression
from ntkit.attacks.losses import cross_entropy, log_odds
from ntkit.cli.options import DataOptions, Prepared, prepare
from ntkit.data import of_pixels, one_hot
from ntkit.runs import Run, Session, atomic_write
from ntkit.runs.environment import device, versions

SCALES = (10, 100, 1000)
# Along the way to an adversarial image, from the image.
WAY = (0.0, 0.25, 0.5, 0.75, 1.0)
NETWORKS = {"simple_cnn": networks.simple_cnn, "alexnet": networks.alexnet}
BATCH = 128
# Of all attacks.
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Row:
    """A data set, how a set of it is learned, and what is trained on it.

    `network_steps`: of Adam, of each network; several: how far apart the logits are grows with them.
    """

    dataset: str
    radius: float
    depth: int
    per_class: int = 100
    support_batch: int | None = None
    steps: int = 300
    targets: int = 500
    attack_steps: int = 5
    learning_rate: float = 0.01
    architectures: tuple[str, ...] = ("simple_cnn",)
    width: int = 32
    network_steps: tuple[int, ...] = (500, 3000)
    network_rate: float = 1e-3
    attacked: int = 200


FASHION, CIFAR = Row("fashion_mnist", 0.1, 3), Row("cifar10_jpeg", 8 / 255, 3)
ROWS = {
    "fashion_mnist": FASHION,
    "fashion_mnist-fc1": dataclasses.replace(FASHION, depth=1),
    "fashion_mnist-fc7": dataclasses.replace(FASHION, depth=7),
    "fashion_mnist-5000": dataclasses.replace(FASHION, per_class=500, support_batch=1000, steps=600),
    "cifar10_jpeg": CIFAR,
    "cifar10_jpeg-alexnet": dataclasses.replace(CIFAR, architectures=("alexnet",), network_steps=(1000,)),
}
QUICK = {
    "digits": Row(
        "digits", 0.1, 1, per_class=2, steps=3, targets=100, attack_steps=2, width=4, network_steps=(5,), attacked=10
    )
}


def sets_of(name: str, row: Row, prepared: Prepared, options: argparse.Namespace) -> dict[str, distill.Distilled]:
    """Learn the sets of a row, or go on with them: adv-KIP's, KIP's and real images."""
    kernel, ball = ntkit.ntk(ntkit.fc(row.depth)), attacks.Linf(row.radius)
    train = prepared.dataset.train
    adversary = attacks.PGD(ball, steps=row.attack_steps, stop_early=False)
    sets = {}
    for which, steps, against in (("adv-KIP", row.steps, adversary), ("KIP", row.steps, None), ("real", 0, None)):
        path = options.runs / f"{name}-{which}-seed{options.seed}"
        config = {"row": dataclasses.asdict(row), "set": which, "seed": options.seed}
        run = Run.resume(path, config) if path.exists() else Run.create(path, config)
        finished = path / "distilled.npz"
        if not finished.exists():
            distill.distill(
                distill.KIP(kernel),
                train.images,
                train.labels,
                per_class=row.per_class,
                steps=steps,
                key=jax.random.key(options.seed),
                support=distill.Support(batch=row.support_batch),
                targets=distill.Targets(batch=row.targets, preprocessing=prepared.preprocessing),
                adversary=against,
                optimizer=networks.adam(row.learning_rate, decay_over=max(1, steps)),
                session=Session(run=run, show_progress=True),
            ).save(finished)
        sets[which] = distill.Distilled.load(finished)
    return sets


@ntkit.pytree_dataclass
class Scaled:
    """A model with its logits multiplied: the same classes for all images."""

    model: Any
    factor: float

    def __call__(self, x: Array) -> Array:
        return self.factor * self.model(x)


def accuracy_of(model: Any, images: Any, labels: np.ndarray) -> float:
    """Give the percentage of images that a model is right about."""
    return round(100 * data.accuracy(model, images, labels), 1)


def textbook(ball: attacks.Ball) -> attacks.Attack:
    """Give PGD of 20 steps along the gradient of the cross-entropy as float32 has it."""
    return attacks.PGD(ball, steps=20, loss=cross_entropy)


def looked_at(model: Any, ball: attacks.Ball, x: Array, labels: np.ndarray, transferred: Array) -> dict[str, Any]:
    """Give what attacks leave of a model of pixels, in percent, and what hides its gradients.

    `transferred`: adversarial images of another model, which are tried on this one.
    """
    classes = jnp.asarray(labels)
    found: dict[str, Any] = {"clean": accuracy_of(model, x, labels)}
    against = {"textbook": textbook(ball), "PGD-20": attacks.PGD(ball), "AutoAttack": attacks.AutoAttack(ball)}
    strongest = x
    for name, attack in against.items():
        strongest = attack(model, x, labels, key=KEY)
        found[name] = accuracy_of(model, strongest, labels)
    found["transfer"] = accuracy_of(model, transferred, labels)

    gradient, _, outputs = attacks.ascent(model, lambda outputs: cross_entropy(outputs, classes), x)
    right = np.asarray(jnp.argmax(outputs, axis=1) == classes)
    ordered = jnp.sort(outputs, axis=1)
    probabilities = jnp.max(jax.nn.softmax(outputs), axis=1)
    zero = jnp.all(gradient.reshape(len(x), -1) == 0, axis=1)
    found["logits apart"] = round(float(jnp.median(ordered[:, -1] - ordered[:, -2])), 2)
    found["probability rounds to 1"] = round(100 * float(np.mean(np.asarray(probabilities == 1)[right])), 1)
    found["zero gradient"] = round(100 * float(np.mean(np.asarray(zero)[right])), 1)
    found["textbook, logits scaled"] = {
        str(scale): accuracy_of(model, textbook(ball)(Scaled(model, float(scale)), x, labels, key=KEY), labels)
        for scale in SCALES
    }
    # Of images that were right, and are not any more.
    fell = right & np.asarray(jnp.argmax(model(strongest), axis=1) != classes)
    way = np.stack([np.asarray(log_odds(model(x + t * (strongest - x)), classes)) for t in WAY])[:, fell]
    if fell.any():
        found["log odds on the way"] = [round(float(value), 2) for value in way.mean(axis=1)]
        found["grow all along"] = round(100 * float(np.mean(np.all(np.diff(way, axis=0) > 0, axis=0))), 1)
    return found


def measure(name: str, row: Row, options: argparse.Namespace, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Give the entries of a row, one for each set and model, that are not known."""
    prepared = prepare(DataOptions(row.dataset, options.data_dir, preprocess="standardize"))
    ball, test = attacks.Linf(row.radius), prepared.dataset.test
    x, labels = jnp.asarray(test.images[: row.attacked]), test.labels[: row.attacked]
    sets, kernel = sets_of(name, row, prepared, options), ntkit.ntk(ntkit.fc(row.depth))
    train = prepared.dataset.train.choice(5000, jax.random.key(options.seed))
    everything = (prepared.preprocessing.transform(train.images), one_hot(train.labels, prepared.num_classes))

    def trained(architecture: str, images: Any, targets: Any, steps: int, seed: int) -> Any:
        network = networks.train(
            NETWORKS[architecture](prepared.num_classes, width=row.width),
            np.asarray(images),
            np.asarray(targets),
            key=jax.random.key(seed),
            steps=steps,
            loss="cross_entropy",
            batch_size=BATCH,
            optimizer=networks.adam(row.network_rate),
        )
        return of_pixels(network, prepared.preprocessing)

    for architecture in row.architectures:
        other = trained(architecture, *everything, min(1000, max(row.network_steps)), options.seed + 1)
        transferred = attacks.PGD(ball, stop_early=False)(other, x, labels, key=KEY)
        for which, made in sets.items():
            for steps in (0, *row.network_steps):
                said = {"row": name, "seed": options.seed, "set": f"{len(made.images)} of {which}"}
                said |= {"model": architecture if steps else "regression", "steps": steps}
                if any(said.items() <= one.items() for one in known):
                    continue
                started = time.monotonic()
                if steps:
                    model = trained(architecture, made.images, made.labels, steps, options.seed)
                else:
                    fitted = regression.fit(kernel, made.images, made.labels, 1e-6)
                    model = of_pixels(fitted, prepared.preprocessing)
                found = said | looked_at(model, ball, x, labels, transferred)
                yield found | {"seconds": round(time.monotonic() - started)}


def main() -> None:
    """Run the rows asked for, print them and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS], help="(default: all)")
    parser.add_argument("--data-dir", type=Path, help="TFDS data directory")
    parser.add_argument("--seed", type=int, default=0, help="of the sets and the networks (default 0)")
    parser.add_argument("--runs", type=Path, default=Path("runs/masking"), help="where the run directories go")
    parser.add_argument("--quick", action="store_true", help="digits, a few steps: to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file to write; other rows that it has stay")
    options = parser.parse_args()
    known = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    rows = QUICK if options.quick else {name: ROWS[name] for name in options.rows}
    for name, row in rows.items():
        for entry in measure(name, row, options, known):
            print(json.dumps(entry), flush=True)
            known.append(entry)
            write(options, known)


def write(options: argparse.Namespace, known: list[dict[str, Any]]) -> None:
    """Write what is known so far."""
    if options.out is None:
        return
    result = {
        "what": "networks trained on sets of adv-KIP, KIP and real images, under attack; accuracies in %",
        "settings": {name: dataclasses.asdict(row) for name, row in ROWS.items()},
        "rows": known,
        "versions": versions(),
        "device": {**device(), "cores": os.cpu_count()},
    }
    with atomic_write(options.out, "w") as file:
        file.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
