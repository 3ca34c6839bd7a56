"""A network at several steps of one training: its tangent kernels there, and its linearization from there on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import attacks
from ntkit._checks import check_integers, check_key, wrong
from ntkit.attacks.attack import check_attacks
from ntkit.attacks.pipeline import Adversary
from ntkit.data import accuracy, check_images
from ntkit.kernels import empirical_ntk
from ntkit.networks.dynamics import Dynamics
from ntkit.networks.linearized import linearize
from ntkit.networks.optimizers import adam
from ntkit.networks.training import MAX_STEPS, Module, TrainedNetwork, check_network, initialize, train
from ntkit.runs import Session


def checkpoints(
    module: Module,
    images: Float[ArrayLike, "m ..."],
    targets: Float[ArrayLike, "m outputs"],
    *,
    at: Sequence[int],
    key: Array,
    centred: bool = False,
    **training: Any,
) -> dict[int, TrainedNetwork]:
    """Train a network, and give it as it is at several steps of the one training, with a constant learning rate.

    **Arguments:**

    - `module`, `images`, `targets`, `key`, `centred`: as for [`ntkit.networks.train`][], which gives the same network.
    - `at`: the numbers of gradient steps; 0 is the network at initialization, and the largest is where training ends.
      The greatest common divisor of all is the number of steps per dispatch, at most: round numbers train faster.
    - `training`: other arguments of [`ntkit.networks.train`][], such as `adversary` and `optimizer` (default: Adam with
      a learning rate of 0.001).

    **Returns:** the networks by their steps, in rising order.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the training diverged.
    """
    steps = steps_of("at", at, 1)
    every = math.gcd(*steps)
    seen: list[TrainedNetwork | None] = []

    def look(network: TrainedNetwork) -> dict[str, float]:
        seen.append(network if (len(seen) + 1) * every in steps else None)
        return {}

    network = train(
        module,
        images,
        targets,
        key=key,
        steps=steps[-1],
        centred=centred,
        session=Session(log_every=every, evaluate=look),
        **{"optimizer": adam()} | training,
    )
    found = {(i + 1) * every: network for i, network in enumerate(seen) if network is not None}
    if steps[0] == 0:
        found[0] = initialize(module, images, key=key, centred=centred)
    found[steps[-1]] = network
    return dict(sorted(found.items()))


def kernel_dynamics(
    module: Module,
    images: Float[ArrayLike, "m ..."],
    targets: Float[ArrayLike, "m outputs"],
    *,
    sample: Float[ArrayLike, "n ..."],
    key: Array,
    at: Sequence[int] = (0, 10, 100, 1000),
    adversary: Adversary | None = None,
    **training: Any,
) -> Dynamics:
    """Train a network, and take its empirical tangent kernel on a fixed sample at several steps.

    The experiment of Fort et al. 2020 (arXiv:2010.15110), and of Tsilivis & Kempe 2022 (arXiv:2210.05577, section 5)
    with an `adversary`: once without and once with one, from the same key, are the two that their figures compare. Both
    start from the same network and see the same batches.

    **Arguments:**

    - `module`: a flax module.
    - `images`, `targets`: what it is trained on.
    - `sample`: images like those, on which the kernel is taken: the mean over outputs of Θ[c, c].
    - `key`: of the training.
    - `at`: two or more numbers of gradient steps, 0 for the initialization; the largest is where training ends.
    - `adversary`: adversarial training, as for [`ntkit.networks.train`][].
    - `training`: other arguments of [`ntkit.networks.train`][], such as `optimizer` and `batch_size`.

    **Returns:** a [`Dynamics`][], with the networks.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the training diverged.
    """
    steps_of("at", at, 2)
    images = check_images("images", images)
    sample = check_images("sample", sample)
    if np.shape(sample)[1:] != np.shape(images)[1:]:
        raise ValueError(
            f"sample: got shape {np.shape(sample)}, expected (n, {_sizes(np.shape(images)[1:])}) as images"
        )
    networks = checkpoints(module, images, targets, at=at, key=key, adversary=adversary, **training)
    shown = jnp.asarray(sample)
    grams = [empirical_ntk(network.module.apply, network.variables)(shown) for network in networks.values()]
    return Dynamics(tuple(networks), np.asarray(grams, np.float64), tuple(networks.values()))


class Linearization(TypedDict):
    """Accuracies, by the kind of images: of the network at a step, of its linearization trained from there, and of the
    network trained itself, both to the end."""

    step: int
    start: dict[str, float]
    linearized: dict[str, float]
    network: dict[str, float]


def linearized_from(
    networks: Mapping[int, TrainedNetwork],
    images: Float[ArrayLike, "m ..."],
    targets: Float[ArrayLike, "m outputs"],
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    key: Array,
    adversaries: Mapping[str, attacks.Attack] | None = None,
    **training: Any,
) -> list[Linearization]:
    """Linearize a network where it is at several steps, and train the linearization for the rest of the steps.

    What that does worse than the network is what the kernel still has to learn (Fort et al. 2020, arXiv:2010.15110).
    A linearization starts where the network is, with a new optimizer: under momentum and the like, its first steps
    differ. Batches are drawn anew, and differ too unless they are all images.

    **Arguments:**

    - `networks`: by their steps, as [`checkpoints`][] gives them; `dict(zip(d.steps, d.networks))` of a [`Dynamics`][].
      The last is what the others are compared with.
    - `images`, `targets`, `training`: as that training had them, its `adversary` included; `centred`
      is as the networks are.
    - `x`, `labels`: test images like `images`, and their classes: from 0, or −1 and +1 for one output.
    - `key`: of the trainings and attacks.
    - `adversaries`: by name, attacks whose accuracy is given beside the `"clean"` one.

    **Returns:** a [`Linearization`][] for each step but the last.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if a training diverged.
    """
    if not isinstance(networks, Mapping) or len(networks) < 2:
        raise wrong("networks", networks, "two networks or more by their steps")
    for network in networks.values():
        check_network("networks", network)
    steps = steps_of("networks", tuple(networks), 2)
    adversaries = {} if adversaries is None else adversaries
    check_attacks("adversaries", adversaries)
    x = check_images("x", x)
    check_key("key", key)
    if "clean" in adversaries:
        raise ValueError("adversaries: got one with the name 'clean', expected another name")
    x = jnp.asarray(x)
    key_train, key_attack = jax.random.split(key)

    def accuracies(network: TrainedNetwork) -> dict[str, float]:
        shown = {name: attack(network, x, labels, key=key_attack) for name, attack in adversaries.items()}
        return {name: accuracy(network, np.asarray(these), labels) for name, these in ({"clean": x} | shown).items()}

    end = accuracies(networks[steps[-1]])
    found = []
    for step in steps[:-1]:
        trained = train(
            linearize(networks[step]),
            images,
            targets,
            key=jax.random.fold_in(key_train, step),
            steps=steps[-1] - step,
            **training,
        )
        found.append(
            Linearization(step=step, start=accuracies(networks[step]), linearized=accuracies(trained), network=end)
        )
    return found


def steps_of(name: str, at: Sequence[int], least: int) -> list[int]:
    """Give numbers of steps in rising order, each once; `ValueError` that names the argument for anything else."""
    try:
        steps = sorted(set(check_integers(name, at, 0, MAX_STEPS)))
    except ValueError:
        steps = []
    if len(steps) < least or steps[-1] == 0:
        different = "" if least == 1 else "two or more different "
        raise wrong(name, at, f"{different}numbers of steps of at least 0, not 0 alone")
    return steps


def _sizes(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
