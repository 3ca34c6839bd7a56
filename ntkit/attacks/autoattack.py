"""AutoAttack: the standard ensemble, each attack on the images that still stand."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import calling, check_key
from ntkit.attacks.apgd import apgd
from ntkit.attacks.balls import Ball
from ntkit.attacks.fab import fab
from ntkit.attacks.losses import fooled
from ntkit.attacks.problem import (
    BATCH_SIZE,
    Bounds,
    Model,
    all_outputs,
    check_options,
    problem,
)
from ntkit.attacks.square import square


def autoattack(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    ball: Ball,
    *,
    key: Array,
    bounds: Bounds = (0, 1),
    steps: int = 100,
    queries: int = 5000,
    targets: int = 9,
    record: Callable[[str, float], None] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Float[Array, "n ..."]:
    """Run APGD on cross-entropy, targeted APGD, targeted FAB and Square, in this order: AutoAttack, the standard one.

    Croce & Hein 2020 (arXiv:2003.01690), section 5. Each attack runs on the images on which the model is still right;
    those about which it is wrong from the beginning stay as they are. Not inside `jit`.

    **Arguments:**

    - `model`, `x`, `labels`, `ball`, `bounds`, `batch_size`: as in [`ntkit.attacks.pgd`][].
    - `key`: of all attacks.
    - `steps`: gradient steps, of APGD and FAB, for each target.
    - `queries`: of Square.
    - `targets`: classes that the targeted attacks aim at; no more than there are.
    - `record`: called with each attack's name and the share of all images still standing after it; first with
      `"clean"`.

    **Returns:** images as `x`, each inside its ball and the bounds: what fools the model, or the image as it was where
    nothing did.

    **Raises:** as [`ntkit.attacks.pgd`][].
    """
    steps, queries, targets, record = check_options(steps=steps, queries=queries, targets=targets, record=record)
    check_key("key", key)
    found = problem(model, x, labels, ball, bounds, batch_size=batch_size)
    if found.traced:
        raise ValueError("model: got one inside jit, grad or vmap, expected autoattack to be called outside of them")
    size = min(int(batch_size), len(found.x))
    standing = ~np.asarray(fooled(found.clean, found.classes))
    adversarial = np.array(found.x)
    labels = np.asarray(labels)

    def record_of(name: str) -> None:
        if record is not None:
            with calling("record"):
                record(name, float(np.mean(standing)))

    record_of("clean")
    stages: dict[str, Callable[..., Array]] = {
        "apgd-ce": functools.partial(apgd, steps=steps),
        "apgd-t": functools.partial(apgd, steps=steps, targets=targets, loss="targeted_dlr"),
        "fab-t": functools.partial(fab, steps=steps, targets=targets),
        "square": functools.partial(square, queries=queries),
    }
    for i, (name, attack) in enumerate(stages.items()):
        left = np.flatnonzero(standing)
        if len(left):
            # Whole batches, filled up with the first of them: every attack is compiled once, for one size.
            rows = np.resize(left, -(-len(left) // size) * size)
            own = jax.random.fold_in(key, i)
            attacked = attack(
                found.model, found.given[rows], labels[rows], ball, key=own, bounds=bounds, batch_size=size
            )
            wrong = np.asarray(fooled(all_outputs(found.model, attacked, size), found.classes[rows]))[: len(left)]
            adversarial[left[wrong]] = np.asarray(attacked)[: len(left)][wrong]
            standing[left[wrong]] = False
        record_of(name)
    return jnp.asarray(adversarial)
