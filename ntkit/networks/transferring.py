"""How far adversarial examples that were crafted on one model fool networks that nobody looked at (transfer)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_array, check_integers, check_key, check_named, check_sequence, check_text, wrong
from ntkit.attacks import Attack, Ball
from ntkit.attacks.attack import check_attacks
from ntkit.attacks.balls import check_ball
from ntkit.data import accuracy, check_images
from ntkit.networks.snapshots import checkpoints
from ntkit.networks.training import Module
from ntkit.runs import Result, Share


def random_noise(x: Float[ArrayLike, "n ..."], ball: Ball, *, key: Array) -> Float[Array, "n ..."]:
    """Give images with noise of a ball's full size: the control of an attack.

    Random signs times the radius for `Linf`, a uniformly random direction of that length for `L2`; then brought into
    the bounds, which leaves less of it at pixels near them, as of a perturbation that is crafted.

    **Arguments:** `x`: images (n, height, width, channels) or (n, d), within the bounds. `ball`: an
    [`ntkit.attacks.Linf`][] or [`L2`][ntkit.attacks.L2].

    **Returns:** images as `x`, each inside its ball and the bounds.
    """
    x = check_images("x", x)
    check_ball("ball", ball)
    check_key("key", key)
    x = jnp.asarray(ball.check_pixels("x", jnp.asarray(x)))
    direction = ball.steepest(jax.random.normal(key, x.shape, x.dtype))
    return ball.project(x, x + ball.radius * direction)


def transfer(
    module: Module,
    images: Float[ArrayLike, "m ..."],
    targets: Float[ArrayLike, "m outputs"],
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    examples: Mapping[str, Float[ArrayLike, "n ..."]],
    adversaries: Mapping[str, Attack],
    steps: Sequence[int],
    key: Array,
    **training: Any,
) -> dict[int, dict[str, float]]:
    """Train a network, and at several times give its accuracy on examples crafted elsewhere and on itself.

    The experiment of Tsilivis & Kempe 2022 (arXiv:2210.05577): examples crafted on the infinitely wide network, in
    closed form, are shown to finite ones.

    **Arguments:**

    - `module`: a flax module; one of pixels, of [`ntkit.data.of_pixels`][], where `x` are pixels and it sees others.
    - `images`, `targets`: what it is trained on, (m, height, width, channels) or (m, d), and (m, outputs).
    - `x`, `labels`: test images like those, and their classes: from 0, or −1 and +1 for one output.
    - `examples`: by name, images in the place of `x`, such as crafted on a kernel predictor, or [`random_noise`][].
    - `adversaries`: by name, attacks on the trained network itself (white box).
    - `steps`: the numbers of gradient steps at which it is looked at, all of one training with a constant learning
      rate.
    - `key`: of the training, and of the attacks.
    - `training`: other arguments of [`ntkit.networks.train`][], such as `centred` and `optimizer`.

    **Returns:** for each number of steps, accuracies in [0, 1] under `"clean"` and the names given.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the training diverged.
    """
    images = check_images("images", images)
    x = check_images("x", x)
    x = jnp.asarray(x)
    check_integers("steps", steps)
    check_key("key", key)
    check_attacks("adversaries", adversaries)
    check_named("examples", examples, "images by their names")
    named = [*examples, *adversaries]
    if len({*named, "clean"}) <= len(named):
        raise ValueError(f"examples: got the names {', '.join(named)}, expected each once, and no 'clean'")
    for name, others in examples.items():
        if check_array("examples", others).shape != x.shape:
            raise ValueError(f"examples: got {name} of shape {np.shape(others)}, expected {x.shape} as x")
    key_train, key_attack = jax.random.split(key)
    found = {}
    for step, network in checkpoints(module, images, targets, at=steps, key=key_train, **training).items():
        shown = {"clean": x, **examples}
        shown |= {name: adversary(network, x, labels, key=key_attack) for name, adversary in adversaries.items()}
        found[step] = {name: accuracy(network, np.asarray(these), labels) for name, these in shown.items()}
    return found


class Row(TypedDict):
    """Models of one kind after as many steps, or none: under each name of images, one accuracy for each model."""

    network: str
    steps: int | None
    accuracy: dict[str, list[float]]


def transfer_rows(network: str, found: Sequence[Mapping[int, Mapping[str, float]]]) -> list[Row]:
    """Give what [`transfer`][] found for several networks of one kind as a table, a row for each number of steps.

    **Arguments:** `network`: what the kind is called. `found`: one or more results for the same steps and names.
    """
    check_text("network", network)
    expected = "results of ntkit.networks.transfer, one or more, of the same steps and names"
    check_sequence("found", found, expected)
    if not found or not all(isinstance(each, Mapping) and each.keys() == found[0].keys() for each in found):
        raise wrong("found", found, expected)
    return [
        Row(
            network=network,
            steps=step,
            accuracy={name: [each[step][name] for each in found] for name in found[0][step]},
        )
        for step in found[0]
    ]


def transfer_result(
    rows: Sequence[Row], *, names: Mapping[str, str] | None = None, title: str = "Transfer of adversarial examples"
) -> Result:
    """Put models side by side, a row for each, with what each kind of images leaves of their accuracy.

    **Arguments:** `rows`: of [`transfer_rows`][], and of the model that the examples were crafted on, one or more.
    `names`: what the kinds of images are called, in the order of the columns; by default their names, as they come.

    **Returns:** a `Result`: the table `accuracy`, and the last row as the summary.

    **Raises:** `ValueError` that names the argument.
    """
    expected = "one row or more of ntkit.networks.transfer_rows"
    for row in check_sequence("rows", rows, expected):
        if not (isinstance(row, Mapping) and {"network", "steps", "accuracy"} <= row.keys()):
            raise wrong("rows", rows, expected)
    if not rows:
        raise wrong("rows", rows, expected)
    check_text("title", title)
    kinds = dict.fromkeys(kind for row in rows for kind in row["accuracy"])
    names = {kind: kind for kind in kinds} if names is None else check_named("names", names, "names by kinds of images")
    cells = [{name: Share(*row["accuracy"][of]) for of, name in names.items() if of in row["accuracy"]} for row in rows]
    return Result(
        title,
        summary={f"{rows[-1]['network']}, {name}": share for name, share in cells[-1].items()},
        tables={
            "accuracy": [
                {"model": row["network"], "steps": row["steps"], **shares}
                for row, shares in zip(rows, cells, strict=True)
            ]
        },
    )
