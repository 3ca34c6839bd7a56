"""`ntkit features`: which features of a kernel are useful, and which robust."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from ntkit import features, plot
from ntkit._checks import check_integer
from ntkit.cli.options import (
    BallOptions,
    DataOptions,
    KernelOptions,
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
from ntkit.cli.refusals import check_gram
from ntkit.cli.tables import finish
from ntkit.data import Split, of_pixels, one_hot

CAPTIONS = {
    "features": "Each feature",
    "gradients": "What features look at: their gradients by the pixels",
}
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
            result = features.spectrum_parts(found, swept, test.images, test.labels, targets, ball)
            of = f"{self.kernel} of {make_architectures(self)[0].name}"
            figures = {"features": plot.features(swept)}
            if prepared.visible:
                figures["gradients"] = _gradients(found, test)
            result = dataclasses.replace(
                result,
                title=f"{self.dataset}, {of}: {result.title}",
                figures=figures,
                captions={**result.captions, **CAPTIONS},
            )
            finish(run, result, started)


def _gradients(found: features.EigenFeatures, test: Split) -> Any:
    """Draw a few images, and the gradients of features at them."""
    images, labels = test.images[:SHOWN_IMAGES], test.labels[:SHOWN_IMAGES]
    shown = [i for i in SHOWN_FEATURES if i < len(found)]
    pictures = [images]
    for i in shown:
        gradient = np.asarray(features.gradient_images(found[i], images, labels))
        largest = np.abs(gradient).max(axis=(1, 2, 3), keepdims=True)
        pictures.append(0.5 + 0.5 * gradient / np.where(largest > 0, largest, 1))
    return plot.image_grid(
        np.concatenate(pictures),
        classes=np.repeat(np.arange(len(pictures)), len(images)),
        class_names=["image", *(f"feature {i}" for i in shown)],
        columns=len(images),
        scale=(0.0, 1.0),
    )
