"""`ntkit features`: which features of a kernel are useful, and which robust."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ntkit import features, plot
from ntkit._checks import check_integer
from ntkit.attacks import Adversary, Ball
from ntkit.cli.memory import check_gram
from ntkit.cli.options import (
    BallOptions,
    DataOptions,
    KernelOptions,
    Prepared,
    RunOptions,
    config_of,
    make_architectures,
    make_kernels,
    make_key,
    new_run,
    prepare,
    vacant_run,
)
from ntkit.cli.ranges import Count
from ntkit.cli.tables import print_table
from ntkit.data import Split, one_hot
from ntkit.kernels import of_pixels
from ntkit.runs import Run, atomic_write

# Where the spectrum is cut for the table.
EDGES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
# Of the attack on sums of features.
STEPS = 20
# Images and features in the picture of gradients.
SHOWN_IMAGES = 6
SHOWN_FEATURES = (0, 1, 3, 10, 30, 100)


@dataclasses.dataclass(frozen=True)
class Features(RunOptions, DataOptions, KernelOptions, BallOptions):
    """Decompose a kernel into the features of its eigenvectors; tell how useful and how robust each of them is."""

    images: Count = 1000
    """Training images, at most, of the Gram matrix: a random choice."""

    top: Count | None = None
    """Features, of the largest eigenvalues; by default all, one for each image."""

    test_limit: Count = 200
    """Test images, at most, to measure on: a random choice."""

    def run(self) -> None:
        """Decompose, measure, and write the run directory."""
        started = time.monotonic()
        kernels = make_kernels(self)
        if len(kernels) != 1:
            raise ValueError(f"depth: got {self.depth}, expected one: features are of one kernel")
        ball = self.ball
        Adversary("fgsm", ball)  # whose checks are those of the sweep, before anything is computed
        key_train, key_test = jax.random.split(make_key(self.seed))
        prepared = prepare(self)
        train = prepared.dataset.train.choice(self.images, key_train)
        test = prepared.dataset.test.choice(self.test_limit, key_test)
        check_gram("images", self.images, len(train))
        check_integer("top", self.top or 1, 1, len(train))
        kernel = of_pixels(kernels[0], prepared.preprocessing)
        targets = np.asarray(one_hot(train.labels, prepared.num_classes))
        out = self.out or vacant_run(self.dataset, "features", self.architecture)
        with new_run(out, config_of(self, ("out",))) as run:
            found = features.eigenfeatures(kernel, train.images, targets, top=self.top)
            swept = features.sweep(found, test.images, test.labels, ball, show_progress=True)
            rows = _rows(found, swept, test, ball)
            spectrum = {
                "features": len(found),
                "effective_rank": features.effective_rank(found.eigenvalues),
                "condition_number": features.condition_number(found.eigenvalues),
                "label_share_of_the_top_10": float(features.label_shares(found.vectors, targets)[:10].sum()),
            }
            content = {
                "spectrum": spectrum,
                "parts": rows,
                "features": {field: np.asarray(getattr(swept, field)).tolist() for field in swept.__dataclass_fields__},
            }
            with atomic_write(run.path / "results.json", "w") as file:
                file.write(json.dumps(content, indent=2) + "\n")
            title = f"{self.dataset}, {len(found)} features of the {self.kernel} of {make_architectures(self)[0].name}"
            _write_report(run, f"{title}, {ball.norm} of {ball.radius:g}", prepared, found, swept, test, rows, spectrum)
            print_table(f"{title}, {ball.norm} of {ball.radius:g}", _in_words(rows))
            files = "report.html, results.json, features.png, gradients.png"
            print(f"{run.path}: {files} ({time.monotonic() - started:.0f} s)")


def _rows(found: features.EigenFeatures, swept: features.Sweep, test: Split, ball: Ball) -> list[dict[str, Any]]:
    """Measure each part of the spectrum: its features alone, on average, and their sum."""
    adversary = Adversary("pgd", ball, steps=STEPS, loss="margin")
    edges = [0, *(edge for edge in EDGES if edge < len(found)), len(found)]
    parts = [*itertools.pairwise(edges), (0, len(found))]
    rows = []
    for i, j in parts:
        together = found[i:j]
        rows.append(
            {
                "first": i,
                "last": j - 1,
                "eigenvalues": float(np.sum(swept.eigenvalues[i:j])),
                "accuracy": float(np.mean(swept.accuracy[i:j])),
                "fgsm": float(np.mean(swept.robust_accuracy[i:j])),
                "together": features.usefulness(together, test.images, test.labels).accuracy,
                "together_pgd": features.robustness(together, test.images, test.labels, adversary).accuracy,
            }
        )
    return rows


def _in_words(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    total = rows[-1]["eigenvalues"]
    return [
        {
            "features": f"{row['first']} to {row['last']}" if row["first"] < row["last"] else str(row["first"]),
            "share of Σλ": f"{100 * row['eigenvalues'] / total:.1f} %",
            "each: accuracy": f"{100 * row['accuracy']:.1f} %",
            "each: FGSM": f"{100 * row['fgsm']:.1f} %",
            "sum: accuracy": f"{100 * row['together']:.1f} %",
            f"sum: PGD-{STEPS}": f"{100 * row['together_pgd']:.1f} %",
        }
        for row in rows
    ]


def _write_report(
    run: Run,
    title: str,
    prepared: Prepared,
    found: features.EigenFeatures,
    swept: features.Sweep,
    test: Split,
    rows: Sequence[dict[str, Any]],
    spectrum: dict[str, float],
) -> None:
    plot.save(plot.features(swept), run.path / "features.png")
    images, labels = test.images[:SHOWN_IMAGES], test.labels[:SHOWN_IMAGES]
    shown = [i for i in SHOWN_FEATURES if i < len(found)]
    pictures = [images]
    for i in shown:
        gradient = np.asarray(features.gradient_images(found[i], images, labels))
        largest = np.abs(gradient).max(axis=(1, 2, 3), keepdims=True)
        pictures.append(0.5 + 0.5 * gradient / np.where(largest > 0, largest, 1))
    grid = plot.image_grid(
        np.concatenate(pictures),
        classes=np.repeat(np.arange(len(pictures)), len(images)),
        class_names=["image", *(f"feature {i}" for i in shown)],
        columns=len(images),
        scale=(0.0, 1.0),
    )
    plot.save(grid, run.path / "gradients.png")
    run.report(
        title=title,
        summary={name.replace("_", " "): f"{value:.4g}" for name, value in spectrum.items()},
        tables={"Parts of the spectrum": _in_words(rows)},
        figures={
            "Each feature": run.path / "features.png",
            "What features look at: their gradients by the pixels": run.path / "gradients.png",
        },
    )
