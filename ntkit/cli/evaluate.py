"""`ntkit evaluate`: a distilled set under kernel regression and as the training set of a finite network."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from ntkit import networks, regression
from ntkit.cli.memory import check_network
from ntkit.cli.options import (
    DataOptions,
    KernelOptions,
    Prepared,
    RegressionOptions,
    make_architectures,
    make_kernels,
    options_from,
    prepare,
    with_hyper_parameters,
)
from ntkit.cli.ranges import Count, Rate, TrainingSteps
from ntkit.cli.tables import in_words, mean_and_std, print_table
from ntkit.distill import Distilled
from ntkit.runs import Run


@dataclasses.dataclass(frozen=True)
class Evaluate(DataOptions, RegressionOptions):
    """Evaluate a distilled set: kernel regression, and a finite network trained on it.

    Data set, preprocessing, kernel and ridge are those that the set was made with, if it says, unless given here.
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FILE")] = dataclasses.field(kw_only=True)
    """Run directory, or .npz file of images and labels (as fed to the kernel)."""

    width: Count = 1024
    """Units or channels of each hidden layer of the finite network."""

    network_steps: TrainingSteps = 500
    """Steps of Adam that the finite network is trained for; 0: no finite network."""

    network_learning_rate: Rate = 0.001
    """Learning rate of the finite network, at the beginning; it falls to 0 along a cosine."""

    network_seeds: Count = 3
    """Networks to train, each from its own initialization."""

    @property
    def flags(self) -> dict[str, str]:
        """What the library's argument names are on the command line, where that is not the option's own name."""
        return {
            "path": "RUN|FILE",
            "config": "RUN|FILE",
            "kernels": "RUN|FILE",
            "learning_rate": "--network-learning-rate",
        }

    def completed(self, arguments: list[str]) -> Evaluate:
        """Take what was not given from what the set says of itself."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `run` opens it once more
            _, config = _open(self.path)
        stored = options_from(DataOptions, config, self.path) | options_from(RegressionOptions, config, self.path)
        return tyro.cli(Evaluate, args=arguments, default=dataclasses.replace(self, **stored))

    def run(self) -> None:
        """Evaluate and print the table."""
        kernels = make_kernels(self)
        distilled, config = _open(self.path)
        prepared = prepare(self)
        expected = prepared.train_images.shape[1:]
        if distilled.images.shape[1:] != expected or distilled.labels.shape[1] != prepared.num_classes:
            raise ValueError(
                f"path: got images of shape {distilled.images.shape[1:]} with {distilled.labels.shape[1]} classes, "
                f"expected {expected} with {prepared.num_classes} as in {self.dataset}"
            )
        if self.network_steps > 0:
            for architecture in make_architectures(self):
                check_network("width", self.width, architecture.flax(prepared.num_classes, self.width), expected)
        if "kernels" in distilled.metadata and self._kernel_is(config):
            kernels = with_hyper_parameters(kernels, distilled.metadata["kernels"])
        rows = []
        for architecture, kernel in zip(make_architectures(self), kernels, strict=True):
            model = regression.fit(kernel, distilled.images, distilled.labels, self.ridge)
            rows.append(self._row(f"{self.kernel} of {architecture.name}, ridge {self.ridge:g}", [model], prepared))
            if self.network_steps > 0:
                module = architecture.flax(prepared.num_classes, self.width)
                trained: list[Any] = [
                    networks.train(
                        module,
                        distilled.images,
                        distilled.labels,
                        key=jax.random.key(seed),
                        steps=self.network_steps,
                        learning_rate=self.network_learning_rate,
                        centred=True,
                    )
                    for seed in range(self.network_seeds)
                ]
                rows.append(self._row(f"{architecture.name} of width {self.width}, trained", trained, prepared))
        print_table(f"{self.path}: {len(distilled.images)} images, {self.dataset}", in_words(rows))

    def _kernel_is(self, config: dict[str, Any]) -> bool:
        """Whether the kernel is the one that the set was distilled with, so that what was learned of it fits."""
        made_with = KernelOptions(**options_from(KernelOptions, config, self.path))
        return all(getattr(self, name) == value for name, value in dataclasses.asdict(made_with).items())

    def _row(self, name: str, models: list[Any], prepared: Prepared) -> dict[str, Any]:
        images, labels = prepared.test_images, prepared.dataset.test.labels
        accuracies = [regression.accuracy(model, images, labels) for model in models]
        return {"model": name, **mean_and_std(accuracies), "seeds": len(models)}


def _open(path: Path) -> tuple[Distilled, dict[str, Any]]:
    """Give a distilled set and the configuration that it was made with, empty if it says nothing of it."""
    if path.is_dir():
        run = Run.resume(path)
        file = path / "distilled.npz"
        if not file.exists():
            raise FileNotFoundError(f"path: got {str(path)!r}, expected a finished run: it has no distilled.npz")
        distilled = Distilled.load(file)
        if distilled.metadata.get("config", run.config) != run.config:
            raise ValueError(
                f"path: got {str(path)!r}, whose config.json and distilled.npz differ, expected one and the same"
            )
        return distilled, run.config
    distilled = Distilled.load(path)
    config = distilled.metadata.get("config", {})
    return distilled, config if isinstance(config, dict) else {}
