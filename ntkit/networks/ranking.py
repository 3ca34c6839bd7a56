"""Networks ranked by what their kernels say of them before training, and how well that went."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import data
from ntkit._checks import MOST, check_array, check_flag, check_integer, check_key, check_named, check_positive
from ntkit.data import check_images, check_labels, one_hot
from ntkit.features.scoring import HIGHER_IS_BETTER, Scores, nngp_accuracy, scores
from ntkit.kernels import empirical_ntk
from ntkit.networks.optimizers import adam
from ntkit.networks.training import MAX_STEPS, Module, TrainedNetwork, initialize, train
from ntkit.runs import Result, Share, progress

BATCH = 64
BETTER = {**HIGHER_IS_BETTER, "label_alignment_later": True, "nngp_accuracy": True}
CAPTIONS = {
    "networks": "Scores and trained accuracy",
    "kendall": "Kendall's τ of the ranks by each score and by the accuracy",
}


def rank_networks(
    modules: Mapping[str, Module],
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    new: Float[ArrayLike, "m ..."],
    truth: Int[ArrayLike, " m"],
    *,
    key: Array,
    scored: int = 200,
    epochs: int = 3,
    steps: int = 400,
    learning_rate: float = 0.003,
    seeds: int = 2,
    show_progress: bool = False,
) -> Result:
    """Score networks by their tangent kernels before training, train them, and compare the ranks.

    **Arguments:**

    - `modules`: flax modules by their names, two or more.
    - `x`, `labels`: images as the networks see them, and classes from 0, to train on; `new`, `truth`: to measure on.
    - `key`: of everything random.
    - `scored`: images, at most, of the kernels.
    - `epochs`: of training, after which label-gradient alignment is taken again.
    - `steps`, `learning_rate`: of Adam, after which the accuracy counts; the rate is constant.
    - `seeds`: initializations of each network: of scores the mean counts.

    **Returns:** a `Result`: `networks`, with the most accurate first, and `kendall`, Kendall's τ between the ranks by
    each score and by the accuracy.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` where training diverges.
    """
    check_named("modules", modules, "networks by their names")
    if len(modules) < 2:
        raise ValueError(f"modules: got {len(modules)}, expected two or more to rank")
    x, new = np.asarray(check_images("x", x)), np.asarray(check_images("new", new))
    labels = np.asarray(check_array("labels", labels, "integer classes (n,)"))
    truth = np.asarray(check_array("truth", truth, "integer classes (m,)"))
    check_labels("labels", labels, len(x), MOST)
    check_labels("truth", truth, len(new), MOST)
    num_classes = int(max(labels.max(), truth.max())) + 1
    check_key("key", key)
    show_progress = check_flag("show_progress", show_progress)
    scored, seeds = check_integer("scored", scored), check_integer("seeds", seeds)
    batches = math.ceil(len(x) / BATCH)
    epochs, steps = (
        check_integer("epochs", epochs, 1, MAX_STEPS // batches),
        check_integer("steps", steps, 1, MAX_STEPS),
    )
    learning_rate = check_positive("learning_rate", learning_rate)
    rows: list[dict[str, Any]] = []
    with progress(len(modules), "score", enabled=show_progress) as bar:
        for name, module in modules.items():
            trained = functools.partial(
                train,
                module,
                x,
                np.asarray(one_hot(labels, num_classes)),
                loss="cross_entropy",
                optimizer=adam(learning_rate),
                batch_size=BATCH,
            )
            found = []
            for seed in range(seeds):
                key_init, key_nngp = jax.random.split(jax.random.fold_in(key, seed))
                before = initialize(module, x, key=key_init)
                later = trained(steps=epochs * batches, key=key_init)
                nngp = nngp_accuracy(
                    functools.partial(_untrained, module),
                    *(x, labels, new, truth),
                    key=key_nngp,
                    num_classes=num_classes,
                )
                some = x[:scored], labels[:scored], learning_rate
                found.append(
                    {
                        **_scores(before, *some)._asdict(),
                        "label_alignment_later": _scores(
                            later, x[:scored], labels[:scored], learning_rate
                        ).label_alignment,
                        "nngp_accuracy": nngp,
                        "accuracy": data.accuracy(trained(steps=steps, key=key_init), new, truth),
                    }
                )
            accuracy = Share(*(one.pop("accuracy") for one in found))
            means = {of: float(np.mean([one[of] for one in found])) for of in found[0]}
            rows.append({"network": name, "accuracy": accuracy, **means})
            bar.update(len(rows))
    ranked: list[dict[str, Any]] = sorted(rows, key=lambda row: -float(row["accuracy"]))
    return Result(
        f"{len(rows)} networks by what their kernels say of them",
        summary={"networks": len(rows), "seeds": seeds},
        tables={"networks": ranked, "kendall": kendall(rows)},
        captions=CAPTIONS,
    )


def kendall(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give, for each score, Kendall's τ between its ranks and those of the accuracies, and the p-value."""
    from scipy.stats import kendalltau

    found = []
    for of, higher in BETTER.items():
        sign = 1 if higher else -1
        result = kendalltau([sign * row[of] for row in rows], [float(row["accuracy"]) for row in rows])
        # A score that is the same for all ranks nothing.
        tau, p = (0.0, 1.0) if math.isnan(result.statistic) else (float(result.statistic), float(result.pvalue))
        found.append({"score": of, "tau": tau, "p": p})
    return found


def _untrained(module: Any, key: Array, x: Array) -> Array:
    """Give the outputs of a network as it is initialized."""
    return module.apply(module.init(key, x), x)


def _scores(network: TrainedNetwork, x: np.ndarray, labels: np.ndarray, learning_rate: float) -> Scores:
    gram = np.asarray(empirical_ntk(network.module.apply, network.variables)(x))
    if not np.isfinite(gram).all():
        raise ValueError(f"learning_rate: got {learning_rate:g}, expected less: the networks diverge")
    return scores(gram, labels)
