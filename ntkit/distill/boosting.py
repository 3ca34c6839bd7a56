"""Sets that are learned in stages, so that their first images are a good set by themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_integers, check_key
from ntkit.distill.distilled import Distilled
from ntkit.distill.learner import Learner
from ntkit.distill.learning import Support, distill
from ntkit.distill.support import check_data_set, initial_support


def boost(
    learner: Learner,
    images: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    stages: Sequence[int],
    steps: int,
    key: Array,
    **options: Any,
) -> list[Distilled]:
    """Distil in stages, each of which adds images and leaves those before as they are.

    Of a set that was learned at once, a part is a poor set; of a boosted one the first images are what the stage before
    gave (Feng, Vedantam, Kempe 2023, arXiv:2311.07025, who call it Boost-DD; here with nothing of the first images
    changed).

    **Arguments:**

    - `learner`, `images`, `labels`: as for [`distill`][ntkit.distill.distill].
    - `stages`: images of each class that each stage adds, such as `(1, 4, 5)`.
    - `steps`: of each stage.
    - `key`: of all of them.
    - `options`: other arguments of [`distill`][ntkit.distill.distill], but for a `session`, which belongs to one run.

    **Returns:** the set after each stage, sorted by class, and in a class by stage.

    **Raises:** `ValueError` that names the argument.
    """
    counts = check_integers("stages", stages)
    check_key("key", key)
    checked, classes, num_classes = check_data_set(images, labels)
    support = options.pop("support", None) or Support()
    found: list[Distilled] = []
    for stage, count in enumerate(counts):
        before = sum(counts[:stage])
        key_new, key_steps = jax.random.split(jax.random.fold_in(key, stage))
        new = initial_support("real", checked, classes, num_classes, count, key_new)
        start = Distilled(new.images, new.targets)
        if found:
            last = found[-1]
            start = Distilled(
                _beside(num_classes, last.images, start.images), _beside(num_classes, last.labels, start.labels)
            )
        found.append(
            distill(
                learner,
                checked,
                classes,
                per_class=before + count,
                steps=steps,
                key=key_steps,
                support=dataclasses.replace(support, init=start, fixed=before),
                **options,
            )
        )
    return found


def _beside(classes: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Put rows that are sorted by class together, class by class."""
    parts = [rows.reshape(classes, -1, *rows.shape[1:]) for rows in (first, second)]
    return np.concatenate(parts, axis=1).reshape(-1, *first.shape[1:])
