"""`ntkit score`: rank networks without training them, and say how well that went."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Annotated

import ntkit
from ntkit import networks
from ntkit._checks import check_integer
from ntkit.architectures import check_image_shape
from ntkit.cli.options import CNNS, DataOptions, RunOptions, config_of, make_key, new_run, prepare, vacant_run
from ntkit.cli.ranges import Count, Integers, Rate
from ntkit.cli.refusals import check_gram, check_network
from ntkit.cli.tables import finish
from ntkit.data import Split
from ntkit.networks.training import Module

CANDIDATE = re.compile(
    r"(fc|convnet|conv|myrtle)(\d+)(?:x(\d+))?|(simple_cnn|standard_convnet|alexnet|vgg11|resnet18)(?:x(\d+))?"
)
BUILD = {"fc": ntkit.fc, "conv": ntkit.conv, "convnet": ntkit.convnet, "myrtle": ntkit.myrtle}
WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Score(RunOptions, DataOptions):
    """Score networks by their tangent kernels before training, and compare that with their trained accuracy."""

    candidates: tuple[str, ...] = (
        *("fc1x16", "fc1x256", "fc3x16", "fc3x256", "fc6x64"),
        *("conv1x4", "conv1x32", "conv3x16", "convnet1x8", "convnet1x64", "convnet2x16", "simple_cnnx8"),
    )
    """Networks: fc, conv, convnet or myrtle with a depth, such as fc2, or a CNN, such as simple_cnn; behind an x the
    width, such as fc2x128 (default: 64, or as published)."""

    images: Count = 200
    """Training images, at most, of the kernels."""

    train_limit: Count = 1000
    """Training images, at most, of the trained networks and of the NNGP."""

    epochs: Count = 3
    """Epochs of training after which label-gradient alignment is taken again."""

    steps: Annotated[int, Integers(1, 10**8)] = 400
    """Steps of Adam after which the accuracy counts."""

    learning_rate: Rate = 0.003
    """Learning rate of Adam, constant."""

    seeds: Count = 2
    """Initializations of each network: of scores and accuracies the mean counts."""

    def run(self) -> None:
        """Score, train, compare, and write the run directory."""
        started = time.monotonic()
        key = make_key(self.seed)
        if len({*self.candidates}) < 2:
            raise ValueError(f"candidates: got {self.candidates}, expected two or more to rank")
        prepared = prepare(self)
        shape = prepared.train_images.shape[1:]
        modules = {name: _module(name, prepared.num_classes, shape) for name in dict.fromkeys(self.candidates)}
        for name, module in modules.items():
            check_network("candidates", name, module, shape)
        train = Split(prepared.train_images, prepared.dataset.train.labels).choice(self.train_limit, key)
        check_gram("train_limit", self.train_limit, len(train))
        out = self.out or vacant_run(self.dataset, "score")
        with new_run(out, config_of(self, ("out",))) as run:
            result = networks.rank_networks(
                modules,
                train.images,
                train.labels,
                prepared.test_images,
                prepared.dataset.test.labels,
                key=key,
                scored=self.images,
                epochs=self.epochs,
                steps=self.steps,
                learning_rate=self.learning_rate,
                seeds=self.seeds,
                show_progress=True,
            )
            finish(run, dataclasses.replace(result, title=f"{self.dataset}, {result.title}"), started)


def _module(name: str, outputs: int, shape: tuple[int, ...]) -> Module:
    match = CANDIDATE.fullmatch(name)
    if match is None:
        raise ValueError(f"candidates: got {name!r}, expected one such as fc2, conv3x16, convnet2x64 or simple_cnn")
    kind, depth, width, cnn, cnn_width = match.groups()
    try:
        check_integer("depth", int(depth or 1), 0, 1000)
        check_integer("width", int(width or cnn_width or 1))
        if cnn is not None:
            return CNNS[cnn](outputs) if cnn_width is None else CNNS[cnn](outputs, width=int(cnn_width))
        architecture = BUILD[kind](int(depth))
        check_image_shape(architecture, shape)
        return architecture.flax(outputs, WIDTH if width is None else int(width))
    except ValueError as error:
        raise ValueError(f"candidates: got {name!r}: {error}") from error
