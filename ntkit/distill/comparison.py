"""A distilled set beside as many real images, and beside all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ntkit import data, regression
from ntkit._checks import check_instance, check_integer, check_named, check_number, check_text
from ntkit.data import Split, one_hot
from ntkit.distill.distilled import Distilled
from ntkit.distill.support import initial_support
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.runs import Result, Share


def compare_with_real(
    distilled: Distilled,
    kernels: Mapping[str, Kernel],
    train: Split,
    test: Split,
    *,
    ridge: float = 1e-6,
    draws: int = 10,
    limit: int = 5000,
    name: str = "distilled",
) -> Result:
    """Compare kernel regression on a distilled set, on as many real images, and on the whole training set.

    **Arguments:**

    - `distilled`: the set, with its learned kernels if it has any.
    - `kernels`: the kernel, or those of a family, by their names.
    - `train`, `test`: the data, as the kernel sees them.
    - `ridge`: as in [`ntkit.regression.fit`][].
    - `draws`: random draws of real images, as many of each class.
    - `limit`: images of the whole set, at most.
    - `name`: of the set in the table.

    **Returns:** a `Result` with the table `regression`: test accuracies.

    **Raises:** `ValueError` that names the argument.
    """
    check_instance("distilled", distilled, Distilled, "an ntkit.distill.Distilled")
    for kernel in check_named("kernels", kernels, "kernels by their names").values():
        check_kernel("kernels", kernel)
    for argument, split in (("train", train), ("test", test)):
        check_instance(argument, split, Split, "an ntkit.data.Split")
    check_text("name", name)
    check_number("ridge", ridge, least=0)
    draws, limit = check_integer("draws", draws), check_integer("limit", limit)
    count, classes = len(distilled.images), distilled.labels.shape[1]

    def accuracy(kernel: Kernel, images: Any, targets: Any) -> float:
        return data.accuracy(regression.fit(kernel, images, targets, ridge), test.images, test.labels)

    def drawn(kernel: Kernel, draw: int) -> float:
        key = jax.random.key(draw)
        support = initial_support("real", train.images, train.labels, classes, count // classes, key)
        return accuracy(kernel, support.images, support.targets)

    chosen = train.choice(limit, jax.random.key(0))
    whole = f"{len(train):,} real (all)" if len(chosen) == len(train) else f"{limit:,} real of {len(train):,}"
    learned = distilled.kernel if isinstance(distilled.kernel, tuple) else (distilled.kernel,) * len(kernels)
    if len(learned) != len(kernels) or not kernels:
        raise ValueError(f"kernels: got {len(kernels)}, expected those of the set's family, {len(learned) or 'one'}")
    rows: list[dict[str, Any]] = []
    for (of, kernel), own in zip(kernels.items(), learned, strict=True):
        suffix = f", {of}" if len(kernels) > 1 else ""
        real = Share(*(drawn(kernel, draw) for draw in range(draws)))
        rows.append({"images": f"{count} real{suffix}", "test accuracy": real, "draws": draws})
        found = Share(accuracy(own or kernel, distilled.images, distilled.labels))
        rows.append({"images": f"{count} {name}{suffix}", "test accuracy": found})
        targets = np.asarray(one_hot(chosen.labels, classes))
        rows.append({"images": whole + suffix, "test accuracy": Share(accuracy(kernel, chosen.images, targets))})
    return Result(
        f"kernel regression on {count} images",
        summary={str(row["images"]): row["test accuracy"] for row in rows},
        tables={"regression": rows},
        captions={"regression": "Kernel regression"},
    )
