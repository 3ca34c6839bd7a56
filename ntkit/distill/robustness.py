"""What is left of distilled sets' accuracies under attacks that they were not made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ntkit import networks, regression
from ntkit._checks import check_flag, check_instance, check_integer, check_named, check_number, wrong
from ntkit.attacks import PGD, Attack
from ntkit.attacks.attack import check_attack
from ntkit.data import Preprocessing, Split, of_pixels, one_hot
from ntkit.data.preprocess import check_preprocessing
from ntkit.distill.attacked import UnderAttack
from ntkit.distill.distilled import Distilled
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.networks.training import Module
from ntkit.runs import Result, progress

# Of the attack in adversarial training.
TRAINING_STEPS = 7
BATCH = 128


def robustness_of_sets(
    sets: Mapping[str, Distilled],
    kernel: Kernel,
    modules: Mapping[str, Module],
    train: Split,
    test: Split,
    preprocessing: Preprocessing,
    adversary: Attack,
    *,
    ridge: float = 1e-6,
    training: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: int = 1,
    show_progress: bool = False,
) -> Result:
    """Attack kernel regression and networks trained on distilled sets, and adversarially trained networks.

    **Arguments:**

    - `sets`: distilled sets by their names, as fed to the kernel.
    - `kernel`: whose regression on the sets is attacked; a set's own, if it has learned one.
    - `modules`: networks by their names.
    - `train`: images of pixels, for adversarial training. `test`: those that are attacked.
    - `preprocessing`: from pixels to what the kernel and the networks see, and the sets are.
    - `adversary`: whose ball the attacks have, and adversarial training.
    - `ridge`: as in [`ntkit.regression.fit`][].
    - `training`: of each network, what [`ntkit.networks.train`][] is given: `steps`, `optimizer`, `centred`.
    - `seeds`: networks of each kind, each from its own initialization.

    **Returns:** a `Result` with the table `robustness`: accuracies, and whether there were signs of masked gradients.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if a training diverges.
    """
    expected = "distilled sets by their names, one or more"
    if not check_named("sets", sets, expected):
        raise wrong("sets", sets, expected)
    for one in sets.values():
        check_instance("sets", one, Distilled, expected)
    check_kernel("kernel", kernel)
    check_named("modules", modules, "networks by their names")
    for argument, split in (("train", train), ("test", test)):
        check_instance(argument, split, Split, "an ntkit.data.Split")
    check_preprocessing("preprocessing", preprocessing, test.images.shape[1:])
    expected = "options of ntkit.networks.train by the names of networks"
    for options in check_named("training", {} if training is None else training, expected).values():
        check_named("training", options, expected)
    seeds, show_progress = check_integer("seeds", seeds), check_flag("show_progress", show_progress)
    check_attack("adversary", adversary)
    check_number("ridge", ridge, least=0)
    attacked = UnderAttack(adversary.ball, test)
    inner = PGD(adversary.ball, steps=TRAINING_STEPS, stop_early=False)
    real: dict[str, Any] = {"loss": "cross_entropy", "batch_size": BATCH}
    targets = np.asarray(one_hot(train.labels, next(iter(sets.values())).labels.shape[1]))
    rows: list[dict[str, Any]] = []
    with progress(len(sets) + len(modules) * (len(sets) + 2), "attack", enabled=show_progress) as bar:

        def add(name: str, trained_on: str, models: Sequence[Any]) -> None:
            rows.append({"model": name, "trained on": trained_on, **attacked.cells(models)})
            bar.update(len(rows))

        def trained(name: str, module: Module, images: Any, targets: Any, **options: Any) -> list[Any]:
            options |= (training or {}).get(name, {})
            keys = map(jax.random.key, range(seeds))
            return [networks.train(module, images, targets, key=key, **options) for key in keys]

        for label, one in sets.items():
            own = one.kernel[0] if isinstance(one.kernel, tuple) else one.kernel
            model = regression.fit(own or kernel, one.images, one.labels, ridge)
            add("kernel regression", f"{len(one.images)} images of {label}", [of_pixels(model, preprocessing)])
        for name, module in modules.items():
            for label, one in sets.items():
                models = trained(name, module, one.images, one.labels)
                add(name, f"{len(one.images)} images of {label}", [of_pixels(each, preprocessing) for each in models])
            for label, attacked_by in (("real", None), ("real, adversarial training", inner)):
                pixels = of_pixels(module, preprocessing)
                models = trained(name, pixels, train.images, targets, adversary=attacked_by, **real)
                add(name, f"{len(train):,} {label}", models)
    ball = adversary.ball
    return Result(
        f"{len(test)} test images under attack, {ball.norm} {ball.radius:g}",
        tables={"robustness": rows},
        captions={"robustness": "What is left under attack"},
    )
