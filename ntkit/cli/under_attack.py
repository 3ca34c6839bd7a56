"""What is left of a robust distilled set's accuracy under attacks that it was not made with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ntkit.attacks import Attack
from ntkit.cli.options import CNNS, NetworkName, Prepared, make_network
from ntkit.cli.ranges import Count, Rate, TrainingSteps
from ntkit.cli.refusals import check_network
from ntkit.data import Split
from ntkit.distill import Distilled, robustness_of_sets
from ntkit.kernels import Kernel
from ntkit.networks import adam
from ntkit.networks.training import Module
from ntkit.runs import Result


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


def robustness(
    options: Any,
    prepared: Prepared,
    sets: Mapping[str, Distilled],
    kernel: Kernel,
    modules: Mapping[str, Module],
    adversary: Attack,
    limit: int,
) -> Result:
    """Look at sets as the options say. `limit`: images of adversarial training, at most."""
    count = min(options.attacked_images, len(prepared.dataset.test))
    rate = options.network_learning_rate
    rates = {name: (0.001 if name in CNNS else 0.01) if rate is None else rate for name in modules}
    return robustness_of_sets(
        sets,
        kernel,
        modules,
        prepared.dataset.train.choice(limit, jax.random.key(0)),
        Split(prepared.dataset.test.images[:count], prepared.dataset.test.labels[:count]),
        prepared.preprocessing,
        adversary,
        ridge=options.ridge,
        training={
            name: {
                "steps": options.network_steps,
                "optimizer": adam(rates[name], decay_over=options.network_steps),
                "centred": name not in CNNS,
            }
            for name in modules
        },
        seeds=options.network_seeds,
        show_progress=jax.process_index() == 0,
    )
