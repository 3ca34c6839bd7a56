"""The tables that commands end with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ntkit import regression
from ntkit.cli.options import Prepared, RegressionOptions, make_architectures, make_kernels
from ntkit.data import Split, one_hot
from ntkit.distill import Distilled
from ntkit.distill.support import initial_support
from ntkit.kernels import Kernel

# Random draws of real images that the distilled ones are compared with.
DRAWS = 10


def accuracy_table(
    options: RegressionOptions,
    prepared: Prepared,
    distilled: Distilled,
    per_class: int,
    full_set_limit: int,
    what: str = "distilled",
) -> list[dict[str, Any]]:
    """Compare real images, as many as the distilled ones, with these and with the whole training set.

    **Returns:** rows of `images` (what was fitted) and `accuracy` (on the test set, from 0 to 1); where it is a mean
    over random draws, `std` and `draws` too.
    """
    rows: list[dict[str, Any]] = []
    kernels = distilled.kernel if isinstance(distilled.kernel, tuple) else (distilled.kernel,)
    names = [architecture.name for architecture in make_architectures(options)]
    for name, given, kernel in zip(names, make_kernels(options), kernels, strict=True):
        suffix = f", {name}" if len(names) > 1 else ""
        draws = [_real(given, options.ridge, prepared, per_class, draw) for draw in range(DRAWS)]
        count = len(distilled.images)
        rows.append({"images": f"{count} real{suffix}", **mean_and_std(draws), "draws": DRAWS})
        accuracy = _test_accuracy(kernel or given, options.ridge, prepared, distilled.images, distilled.labels)
        rows.append({"images": f"{count} {what}{suffix}", "accuracy": accuracy})
        rows.append(_whole(given, options.ridge, prepared, full_set_limit, suffix))
    return rows


def mean_and_std(accuracies: list[float]) -> dict[str, float]:
    """Give the entries of a row that are a mean."""
    return {"accuracy": float(np.mean(accuracies)), "std": float(np.std(accuracies))}


def in_words(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Write a table's numbers as people read them: percent, and ± with what was repeated."""
    written = []
    for row in rows:
        spread = ""
        for repeated in ("draws", "seeds"):
            if row.get(repeated, 1) > 1:
                spread = f"± {100 * row['std']:.1f} over {row[repeated]} {repeated}"
        name = next(iter(row))
        written.append({name: row[name], "test accuracy": f"{100 * row['accuracy']:.1f} %", "spread": spread})
    return written


def print_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, since in a string rich would read brackets, as a path may have them, as markup.
    table = Table(title=Text(title), title_justify="left")
    for number, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    Console().print(table)


def _real(kernel: Kernel, ridge: float, prepared: Prepared, per_class: int, draw: int) -> float:
    support = initial_support(
        "real",
        prepared.train_images,
        prepared.dataset.train.labels,
        prepared.num_classes,
        per_class,
        jax.random.key(draw),
    )
    return _test_accuracy(kernel, ridge, prepared, support.images, support.targets)


def _whole(kernel: Kernel, ridge: float, prepared: Prepared, limit: int, suffix: str) -> dict[str, Any]:
    whole = Split(prepared.train_images, prepared.dataset.train.labels)
    chosen = whole.choice(limit, jax.random.key(0))
    what = f"{len(whole):,} real (all)" if len(chosen) == len(whole) else f"{limit:,} real of {len(whole):,}"
    targets = np.asarray(one_hot(chosen.labels, prepared.num_classes))
    return {"images": f"{what}{suffix}", "accuracy": _test_accuracy(kernel, ridge, prepared, chosen.images, targets)}


def _test_accuracy(kernel: Kernel, ridge: float, prepared: Prepared, images: np.ndarray, targets: np.ndarray) -> float:
    model = regression.fit(kernel, images, targets, ridge)
    return regression.accuracy(model, prepared.test_images, prepared.dataset.test.labels)
