"""The parts of a kernel's spectrum: how useful and how robust their features are, alone and together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from ntkit._checks import check_instance, check_integers
from ntkit.attacks import PGD, Ball
from ntkit.features.eigen import EigenFeatures
from ntkit.features.measures import robustness, usefulness
from ntkit.features.spectra import condition_number, effective_rank, label_shares
from ntkit.features.sweeps import Sweep
from ntkit.runs import Result, Share

# Where the spectrum is cut.
EDGES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
# Of the attack on sums of features.
STEPS = 20


def spectrum_parts(
    features: EigenFeatures,
    sweep: Sweep,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    targets: Float[ArrayLike, "m outputs"],
    ball: Ball,
    *,
    edges: Sequence[int] = EDGES,
) -> Result:
    """Measure each part of the spectrum: its features alone, on average, and their sum.

    **Arguments:** `features`: of a kernel. `sweep`: what [`ntkit.features.sweep`][] found of them, at `x`, `labels` and
    in the `ball`. `targets`: of the training images. `edges`: where the spectrum is cut, by numbers of features.

    **Returns:** a `Result`: the table `parts`, of which the last one is the whole, and the sweep as arrays.

    **Raises:** `ValueError` that names the argument.
    """
    check_instance("features", features, EigenFeatures, "what ntkit.features.eigenfeatures gives")
    check_instance("sweep", sweep, Sweep, "what ntkit.features.sweep gives")
    count = len(features)
    attack = PGD(ball, steps=STEPS, loss="margin")
    cuts = [0, *(edge for edge in check_integers("edges", edges) if edge < count), count]
    total = float(np.sum(sweep.eigenvalues))
    rows: list[dict[str, Any]] = []
    for i, j in [*itertools.pairwise(cuts), (0, count)]:
        together = features[i:j]
        rows.append(
            {
                "features": f"{i} to {j - 1}" if i < j - 1 else str(i),
                "share of Σλ": Share(float(np.sum(sweep.eigenvalues[i:j])) / total),
                "each: accuracy": Share(np.mean(sweep.accuracy[i:j])),
                "each: FGSM": Share(np.mean(sweep.robust_accuracy[i:j])),
                "sum: accuracy": Share(usefulness(together, x, labels).accuracy),
                f"sum: PGD-{STEPS}": Share(robustness(together, x, labels, attack).accuracy),
            }
        )
    return Result(
        f"{count} features, {ball.norm} of {ball.radius:g}",
        summary={
            "features": count,
            "effective rank": effective_rank(features.eigenvalues),
            "condition number": condition_number(features.eigenvalues),
            "label share of the top 10": Share(label_shares(features.vectors, targets)[:10].sum()),
        },
        tables={"parts": rows},
        arrays={field: np.asarray(getattr(sweep, field)) for field in sweep.__dataclass_fields__},
        captions={"parts": "Parts of the spectrum"},
    )
