"""A fair judgement of distilled sets: networks trained on them, beside as many real images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import networks
from ntkit._checks import (
    calling,
    check_callable,
    check_flag,
    check_instance,
    check_integer,
    check_integers,
    check_key,
    check_named,
    check_outputs,
    check_positive,
    check_sequence,
    wrong,
)
from ntkit.attacks.pipeline import Augment
from ntkit.data import Split, accuracy, one_hot
from ntkit.distill.attacked import UnderAttack
from ntkit.distill.distilled import Distilled
from ntkit.distill.support import check_data_set
from ntkit.networks.training import Module, check_module
from ntkit.runs import Result, Share, progress

# What a network may be trained with; the better one on held-out images is taken.
LEARNING_RATES = (1e-3, 3e-3)
STEPS = (300, 1000)


def judge(
    sets: Mapping[str, Distilled],
    modules: Mapping[str, Module],
    train: Split,
    test: Split,
    *,
    key: Array,
    augment: Augment | None = None,
    centred: Sequence[str] = (),
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: Sequence[int] = STEPS,
    held_out: int = 1000,
    seeds: int = 5,
    attacked: UnderAttack | None = None,
    show_progress: bool = False,
) -> Result:
    """Train networks on distilled sets as they are, and test them.

    Nothing is chosen by the test set: for each set and network, and for training with and without augmentation, the
    learning rate and the number of steps are those with which one more network is best on held-out training images.
    Labels are used as they are, with the squared error, and all images are in each step of Adam, whose learning rate
    falls to 0 along a cosine.

    **Arguments:**

    - `sets`: by their names; others than distilled ones too, such as of [`herded`][ntkit.distill.herded] images.
    - `modules`: networks by their names, such as [`ntkit.networks.standard_convnet`][]`(10)`. For images of pixels
      where they have a preprocessing ([`ntkit.data.of_pixels`][]), else as the sets are.
    - `train`, `test`: the data, as the networks see them. Of `train` only the held-out images are looked at.
    - `key`: of all that is random.
    - `augment`: `augment(key, images) -> images` of the rows with augmentation; `None`: no such rows.
    - `centred`: names of networks that are trained `centred`: those in the NTK parameterization, whose outputs before
      training would be most of those after it on as few images.
    - `learning_rates`, `steps`: to choose from.
    - `held_out`: training images, at most, that the choice is made by.
    - `seeds`: networks for each row, each from its own initialization.
    - `attacked`: an [`UnderAttack`][ntkit.distill.UnderAttack], for what attacks leave of those networks; `None`: they
      are not attacked.

    **Returns:** a `Result` with the table `networks`: test accuracies, what was chosen, and, if they are attacked, the
    accuracies on those images as they are and under PGD and AutoAttack.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if a training diverges.
    """
    for one in _some("sets", sets, "distilled sets by their names, one or more").values():
        check_instance("sets", one, Distilled, "distilled sets by their names, one or more")
    for module in _some("modules", modules, "networks by their names, one or more").values():
        check_module(module, "modules")
    for argument, split in (("train", train), ("test", test)):
        check_instance(argument, split, Split, "an ntkit.data.Split")
    check_key("key", key)
    if attacked is not None:
        check_instance("attacked", attacked, UnderAttack, "an ntkit.distill.UnderAttack, or None")
    if augment is not None:
        check_callable("augment", augment, "a function, or None")
    expected = f"names of networks, of {', '.join(modules)}"
    if not all(isinstance(name, str) and name in modules for name in check_sequence("centred", centred, expected)):
        raise wrong("centred", centred, expected)
    rates = [check_positive("learning_rates", rate) for rate in _several("learning_rates", learning_rates)]
    counts = check_integers("steps", steps)
    held_out, seeds = check_integer("held_out", held_out), check_integer("seeds", seeds)
    key_choice, key_networks = jax.random.split(key)
    chosen_by = train.choice(held_out, key_choice)
    rows: list[dict[str, Any]] = []
    ways = (None,) if augment is None else (None, augment)
    cases = list(itertools.product(modules.items(), sets.items(), ways))
    with progress(len(cases), "judge", enabled=check_flag("show_progress", show_progress)) as bar:
        for (name, module), (label, one), way in cases:
            fresh = functools.partial(_trained, module, one, way, name in centred, key_networks)
            # Another initialization than those that are tested.
            choose = functools.partial(_held_out_accuracy, functools.partial(fresh, seeds), chosen_by)
            pairs = list(itertools.product(rates, counts))
            # Where there is nothing to choose, nothing is trained for it.
            scores = {pair: choose(*pair) for pair in pairs} if len(pairs) > 1 else {}
            rate, count = max(pairs, key=lambda pair: scores.get(pair, 0.0))
            tested = [fresh(seed, rate, count) for seed in range(seeds)]
            found = [accuracy(network, test.images, test.labels) for network in tested]
            row: dict[str, Any] = {"network": name, "trained on": f"{len(one.images)} {label}"}
            row |= {"augmented": "no" if way is None else "yes", "test accuracy": Share(*found)}
            row |= {"held out": Share(scores[rate, count]) if scores else None, "learning rate": rate, "steps": count}
            rows.append(row if attacked is None else row | attacked.cells(tested))
            bar.update(len(rows))
    return Result(
        f"networks trained on {len(sets)} sets, {seeds} seeds",
        tables={"networks": rows},
        captions={
            "networks": "Networks trained on the sets; learning rate and steps chosen on held-out training images"
        },
    )


def _trained(
    module: Module,
    one: Distilled,
    augment: Augment | None,
    centred: bool,
    key: Array,
    seed: int,
    rate: float,
    steps: int,
) -> networks.TrainedNetwork:
    return networks.train(
        module,
        one.images,
        one.labels,
        key=jax.random.fold_in(key, seed),
        steps=steps,
        optimizer=networks.adam(rate, decay_over=steps),
        centred=centred,
        augment=augment,
    )


def _held_out_accuracy(
    fresh: Callable[[float, int], networks.TrainedNetwork], chosen_by: Split, rate: float, steps: int
) -> float:
    """Give −1 where a training diverges: any other is better."""
    try:
        return accuracy(fresh(rate, steps), chosen_by.images, chosen_by.labels)
    except FloatingPointError:
        return -1.0


def herded(
    images: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    per_class: int,
    features: Any = None,
) -> Distilled:
    """Give the real images of each class whose mean is nearest to that of the class: herding.

    One after the other, the image is taken that brings the mean of those taken nearest to that of the class (Welling
    2009; Rebuffi et al. 2017, arXiv:1611.07725, algorithm 4).

    **Arguments:** `images`, `labels`: the data, classes from 0. `per_class`: images of each class. `features`: a
    function from images to (n, m), in whose values means are compared, for example `kernel.features`; `None`: the
    images.

    **Returns:** the images, sorted by class, with centred one-hot labels.

    **Raises:** `ValueError` that names the argument.
    """
    images, labels, num_classes = check_data_set(images, labels)
    per_class = check_integer("per_class", per_class)
    if features is not None:
        check_callable("features", features, "a function, or None")
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise ValueError(f"per_class: got {per_class}, expected at most {len(members)}, those of class {label}")
        values: Any = images[members]
        if features is not None:
            with calling("features"):
                values = features(jnp.asarray(values))
            check_outputs("features", values, len(members))
        values = np.asarray(values, np.float64).reshape(len(members), -1)
        mean, total, free = values.mean(axis=0), np.zeros(values.shape[1]), np.ones(len(members), bool)
        for count in range(1, per_class + 1):
            distances = np.sum((mean - (total + values) / count) ** 2, axis=1)
            best = int(np.argmin(np.where(free, distances, np.inf)))
            free[best], total = False, total + values[best]
            chosen.append(members[best])
    targets = one_hot(np.repeat(np.arange(num_classes), per_class), num_classes)
    return Distilled(images[np.asarray(chosen)], np.asarray(targets))


def _some(name: str, values: Any, expected: str) -> Mapping[str, Any]:
    if not check_named(name, values, expected):
        raise wrong(name, values, expected)
    return values


def _several(name: str, values: Any) -> Sequence[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise wrong(name, values, "one or more numbers above 0")
    return values
