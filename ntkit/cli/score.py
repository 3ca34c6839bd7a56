"""`ntkit score`: rank networks without training them, and say how well that went."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np

import ntkit
from ntkit import features, networks, regression
from ntkit._checks import check_integer
from ntkit.architectures import check_image_shape
from ntkit.cli.memory import check_gram, check_network
from ntkit.cli.options import CNNS, DataOptions, RunOptions, config_of, make_key, new_run, prepare, vacant_run
from ntkit.cli.ranges import Count, Integers, Rate
from ntkit.cli.tables import print_table
from ntkit.data import Split, one_hot
from ntkit.features.scores import HIGHER_IS_BETTER
from ntkit.networks.training import Module
from ntkit.runs import atomic_write, progress

CANDIDATE = re.compile(r"(fc|convnet|conv|myrtle)(\d+)(?:x(\d+))?|(simple_cnn|alexnet|vgg11)(?:x(\d+))?")
BUILD = {"fc": ntkit.fc, "conv": ntkit.conv, "convnet": ntkit.convnet, "myrtle": ntkit.myrtle}
WIDTH = 64
BATCH = 64
# What the scores are called in tables, in the order of their columns.
NAMES = {
    "condition_number": "condition number",
    "norm": "norm",
    "mean": "mean",
    "label_alignment": "LGA",
    "label_alignment_later": "LGA, later",
    "nngp_accuracy": "NNGP accuracy",
}
TAUS = "Rank of a score against rank of the accuracy"
BETTER = {**HIGHER_IS_BETTER, "label_alignment_later": True, "nngp_accuracy": True}


@dataclasses.dataclass(frozen=True)
class Score(RunOptions, DataOptions):
    """Score networks by their tangent kernels before training, and compare that with their trained accuracy."""

    candidates: tuple[str, ...] = (
        *("fc1x16", "fc1x256", "fc3x16", "fc3x256", "fc6x64"),
        *("conv1x4", "conv1x32", "conv3x16", "convnet1x8", "convnet1x64", "convnet2x16", "simple_cnnx8"),
    )
    """Networks: fc, conv, convnet or myrtle with a depth, such as fc2, or simple_cnn, alexnet or vgg11; behind an x
    the width, such as fc2x128 (default: 64, or as published)."""

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
        data = _Data(
            train.images,
            train.labels,
            prepared.test_images,
            prepared.dataset.test.labels,
            prepared.num_classes,
        )
        out = self.out or vacant_run(self.dataset, "score")
        with new_run(out, config_of(self, ("out",))) as run:
            rows: list[dict[str, Any]] = []
            with progress(len(modules), "score") as bar:
                for name, module in modules.items():
                    keys = (jax.random.fold_in(key, seed) for seed in range(self.seeds))
                    found = [self._measured(module, data, each) for each in keys]
                    means = {of: float(np.mean([one[of] for one in found])) for of in found[0]}
                    spread = float(np.std([one["accuracy"] for one in found]))
                    rows.append({"network": name, **means, "accuracy_std": spread})
                    bar.update(len(rows))
            taus = kendall(rows)
            with atomic_write(run.path / "results.json", "w") as file:
                file.write(json.dumps({"networks": rows, "kendall": taus}, indent=2) + "\n")
            title = f"{self.dataset}, {len(rows)} networks by what their kernels say of them"
            tables = {"Scores and trained accuracy": _in_words(rows), TAUS: _taus_in_words(taus)}
            run.report(
                title=title,
                summary={"networks": str(len(rows)), "seeds": str(self.seeds)},
                tables=tables,
                figures={},
            )
            print_table(title, _in_words(rows))
            print_table(TAUS, _taus_in_words(taus))
            print(f"{run.path}: report.html, results.json ({time.monotonic() - started:.0f} s)")

    def _measured(self, module: Module, data: _Data, key: jax.Array) -> dict[str, float]:
        """Give all scores of one initialization, and the accuracy after training."""
        key_init, key_nngp = jax.random.split(key)
        x, labels = data.x[: self.images], data.labels[: self.images]
        targets = np.asarray(one_hot(data.labels, data.num_classes))
        training: dict[str, Any] = {"loss": "cross_entropy", "learning_rate": self.learning_rate, "batch_size": BATCH}
        training |= {"schedule": "constant", "key": key_init}

        def alignment(network: networks.TrainedNetwork) -> features.Scores:
            kernel = ntkit.empirical_ntk(network.module.apply, network.variables)
            gram = np.asarray(kernel(x))
            if not np.isfinite(gram).all():
                raise ValueError(f"learning_rate: got {self.learning_rate:g}, expected less: the networks diverge")
            return features.scores(gram, labels)

        first = alignment(networks.initialize(module, data.x, key=key_init))
        some = self.epochs * math.ceil(len(data.x) / BATCH)
        later = alignment(networks.train(module, data.x, targets, steps=some, **training))
        trained = networks.train(module, data.x, targets, steps=self.steps, **training)
        nngp = features.nngp_accuracy(
            lambda key, x: module.apply(module.init(key, x), x),
            data.x,
            data.labels,
            data.new,
            data.truth,
            key=key_nngp,
            num_classes=data.num_classes,
        )
        return {
            **first._asdict(),
            "label_alignment_later": later.label_alignment,
            "nngp_accuracy": nngp,
            "accuracy": regression.accuracy(trained, data.new, data.truth),
        }


@dataclasses.dataclass(frozen=True)
class _Data:
    """Images as the networks see them, to train on and to measure on."""

    x: np.ndarray
    labels: np.ndarray
    new: np.ndarray
    truth: np.ndarray
    num_classes: int


def kendall(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Give, for each score, Kendall's τ between its ranks and those of the accuracies, and the p-value."""
    from scipy.stats import kendalltau

    found = {}
    for of in NAMES:
        sign = 1 if BETTER[of] else -1
        result = kendalltau([sign * row[of] for row in rows], [row["accuracy"] for row in rows])
        # A score that is the same for all ranks nothing.
        tau, p = (0.0, 1.0) if math.isnan(result.statistic) else (float(result.statistic), float(result.pvalue))
        found[of] = {"tau": tau, "p": p}
    return found


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


def _in_words(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    def number(of: str, value: float) -> str:
        return f"{100 * value:.1f} %" if of == "nngp_accuracy" else f"{value:.3g}"

    table = []
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        cells = {title: number(of, row[of]) for of, title in NAMES.items()}
        accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_std']:.1f} %"
        table.append({"network": row["network"], "accuracy": accuracy, **cells})
    return table


def _taus_in_words(taus: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    return [
        {"score": title, "Kendall's τ": f"{taus[of]['tau']:+.2f}", "p": f"{taus[of]['p']:.3f}"}
        for of, title in NAMES.items()
    ]
