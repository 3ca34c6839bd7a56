"""What is left of a robust distilled set's accuracy under attacks that it was not made with."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ntkit import attacks, networks, regression
from ntkit.attacks import Adversary, MaskedGradientsWarning, Preprocessed
from ntkit.cli.memory import check_network
from ntkit.cli.options import (
    CNNS,
    NetworkName,
    Prepared,
    make_network,
)
from ntkit.cli.ranges import Count, Rate, TrainingSteps
from ntkit.data import one_hot
from ntkit.distill import Distilled
from ntkit.kernels import Kernel
from ntkit.networks.training import Module
from ntkit.runs import progress

# Croce & Hein 2020 evaluate with PGD of as many steps before they show what AutoAttack leaves of it.
PGD_STEPS = 20
# Of the attack in adversarial training.
TRAINING_STEPS = 7
BATCH = 128


@dataclasses.dataclass(frozen=True)
class RobustnessOptions:
    """How a robust set is looked at, beside kernel regression."""

    attacked_images: Count = 500
    """Test images, at most, that the table under attack is about: the first ones."""

    network_architectures: tuple[NetworkName, ...] = ()
    """Networks that are trained on the sets, and adversarially on the data, for the table under attack; by default the
    kernel's architecture."""

    network_width: Count | None = None
    """Units or channels of the networks (of simple_cnn, alexnet and vgg11: of the first layer); by default 512, or as
    published."""

    network_steps: TrainingSteps = 500
    """Steps of Adam that each network is trained for; 0: no networks."""

    network_learning_rate: Rate | None = None
    """Learning rate of the networks, at the beginning; it falls to 0 along a cosine. By default 0.01, and 0.001 for
    simple_cnn, alexnet and vgg11, which are not in the NTK parameterization."""

    network_seeds: Count = 1
    """Networks of each kind, each from its own initialization."""


# Options that say how a result is looked at, and not what it is.
ROBUSTNESS = tuple(field.name for field in dataclasses.fields(RobustnessOptions))


def robustness_networks(options: Any, prepared: Prepared) -> dict[str, Module]:
    """Give the networks of the table, by their names in it.

    **Raises:** `ValueError` that names an option.
    """
    if options.network_steps == 0:
        return {}
    names = dict.fromkeys(options.network_architectures or (options.architecture,))
    shape = prepared.train_images.shape[1:]
    networks = dict(make_network(options, name, prepared.num_classes, options.network_width, shape) for name in names)
    for module in networks.values():
        check_network("network_width", options.network_width, module, shape)
    return networks


def robustness_table(
    options: Any,
    prepared: Prepared,
    sets: Mapping[str, Distilled],
    kernels: Sequence[Kernel],
    modules: Mapping[str, Module],
    adversary: Adversary,
    full_set_limit: int,
) -> list[dict[str, Any]]:
    """Attack kernel regression and networks trained on some distilled sets, and adversarially trained networks.

    **Arguments:** `options`: of the command: kernel, ridge and those of [`RobustnessOptions`][]. `sets`: by name, as
    fed to the kernel. `kernels`: of which the first one's regression is attacked. `modules`: networks, as
    `robustness_networks` gives them. `adversary`: whose ball the attacks have, and adversarial training.
    `full_set_limit`: images of adversarial training, at most.

    **Returns:** rows of `model`, `trained_on`, the accuracies from 0 to 1 `clean`, `pgd` and `autoattack` (means over
    `seeds` networks, with `…_std`), and `masked`: whether an evaluation showed signs of masked gradients.
    """
    count = min(options.attacked_images, len(prepared.dataset.test.images))
    x, labels = prepared.dataset.test.images[:count], prepared.dataset.test.labels[:count]
    against = {
        "pgd": Adversary("pgd", adversary.ball, bounds=adversary.bounds, steps=PGD_STEPS),
        "autoattack": Adversary("autoattack", adversary.ball, bounds=adversary.bounds),
    }

    def row(name: str, trained_on: str, models: Sequence[Any]) -> dict[str, Any]:
        found = []
        for model in models:
            with warnings.catch_warnings():
                # The table says it.
                warnings.simplefilter("ignore", MaskedGradientsWarning)
                found.append(attacks.evaluate(Preprocessed(model, prepared.preprocessing), x, labels, against))
        accuracies = {"clean": [one.clean for one in found]}
        accuracies |= {attack: [one.robust[attack] for one in found] for attack in against}
        entries: dict[str, Any] = {"model": name, "trained_on": trained_on}
        for attack, values in accuracies.items():
            entries |= {attack: float(np.mean(values)), f"{attack}_std": float(np.std(values))}
        return entries | {"seeds": len(models), "images": count, "masked": any(one.signs for one in found)}

    def trained(name: str, module: Any, images: Any, targets: Any, **training: Any) -> list[Any]:
        rate = options.network_learning_rate
        if rate is None:
            rate = 0.001 if name in CNNS else 0.01
        training |= {"steps": options.network_steps, "learning_rate": rate, "centred": name not in CNNS}
        return [
            networks.train(module, images, targets, key=jax.random.key(seed), **training)
            for seed in range(options.network_seeds)
        ]

    real = prepared.dataset.train.choice(full_set_limit, jax.random.key(0))
    targets = np.asarray(one_hot(real.labels, prepared.num_classes))
    ordinary: dict[str, Any] = {"loss": "cross_entropy", "batch_size": BATCH, "preprocessing": prepared.preprocessing}
    training = Adversary("pgd", adversary.ball, bounds=adversary.bounds, steps=TRAINING_STEPS, stop_early=False)

    rows: list[dict[str, Any]] = []
    total = len(sets) + len(modules) * (len(sets) + 2)
    with progress(total, "attack", enabled=jax.process_index() == 0) as bar:
        for label, one in sets.items():
            learned = one.kernel if isinstance(one.kernel, Kernel) else (one.kernel or kernels)[0]
            model = regression.fit(learned, one.images, one.labels, options.ridge)
            rows.append(row("kernel regression", f"{len(one.images)} images of {label}", [model]))
            bar.update(len(rows))
        for name, module in modules.items():
            for label, one in sets.items():
                models = trained(name, module, one.images, one.labels)
                rows.append(row(name, f"{len(one.images)} images of {label}", models))
                bar.update(len(rows))
            for label, attacked_by in (("real", None), ("real, adversarial training", training)):
                models = trained(name, module, real.images, targets, adversary=attacked_by, **ordinary)
                rows.append(row(name, f"{len(real):,} {label}", models))
                bar.update(len(rows))
    return rows


def robustness_title(options: Any, prepared: Prepared, adversary: Adversary) -> str:
    """Say what the table under attack is about."""
    norm = {"Linf": "l∞", "L2": "l2"}[type(adversary.ball).__name__]
    count = min(options.attacked_images, len(prepared.dataset.test.images))
    return f"{count} test images under attack, {norm} {adversary.ball.radius:g}"


def robustness_in_words(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Write the table's numbers as people read them."""

    def percent(row: Mapping[str, Any], name: str) -> str:
        spread = f" ± {100 * row[f'{name}_std']:.1f}" if row["seeds"] > 1 else ""
        return f"{100 * row[name]:.1f}{spread} %"

    return [
        {
            "model": row["model"],
            "trained on": row["trained_on"],
            "clean": percent(row, "clean"),
            f"PGD-{PGD_STEPS}": percent(row, "pgd"),
            "AutoAttack": percent(row, "autoattack"),
            "masked gradients": "signs of them" if row["masked"] else "",
        }
        for row in rows
    ]
