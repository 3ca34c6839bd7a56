"""`ntkit evaluate`: a distilled set under kernel regression and as the training set of finite networks."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from ntkit import data, regression
from ntkit.cli.options import (
    CNNS,
    BallOptions,
    DataOptions,
    KernelOptions,
    NetworkName,
    Prepared,
    RegressionOptions,
    make_architectures,
    make_augmentation,
    make_kernels,
    make_network,
    options_from,
    prepare,
    with_hyper_parameters,
)
from ntkit.cli.ranges import Count, Integers, Rate, TrainingSteps
from ntkit.cli.refusals import check_network
from ntkit.cli.tables import print_tables
from ntkit.data import Split
from ntkit.distill import Distilled, UnderAttack, herded, judge
from ntkit.distill.support import initial_support
from ntkit.networks.training import Module
from ntkit.runs import Result, Run, Share


@dataclasses.dataclass(frozen=True)
class Evaluate(DataOptions, RegressionOptions, BallOptions):
    """Evaluate a distilled set: kernel regression, and finite networks trained on it.

    Data set, preprocessing, kernel, ridge and the adversary's ball are those that the set was made with, if it says,
    unless given here.
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FILE")] = dataclasses.field(kw_only=True)
    """Run directory, or .npz file of images and labels (as fed to the kernel)."""

    network_architectures: tuple[NetworkName, ...] = ()
    """Networks that are trained; by default the kernel's architecture."""

    width: Count = 1024
    """Units or channels of each hidden layer of a network of an architecture."""

    network_steps: tuple[TrainingSteps, ...] = (500,)
    """Steps of Adam that a network is trained for; of several the best on held-out training images. 0: no networks."""

    network_learning_rate: tuple[Rate, ...] = (0.001,)
    """Learning rate of a network, at the beginning; it falls to 0 along a cosine. Of several the best on held-out
    training images."""

    network_seeds: Count = 3
    """Networks of each kind, each from its own initialization."""

    augment: Literal["none", "flip", "digits", "objects"] = "none"
    """Augmentation of the images that networks are trained on, in rows beside those without it."""

    beside_real: bool = False
    """Train networks on as many random real images, and on as many herded ones, too."""

    held_out: Count = 1000
    """Training images, at most, by which steps and learning rates are chosen."""

    attacked_images: Annotated[int, Integers(0)] = 0
    """Test images, at most, that every model is attacked at, the first ones: by PGD of 20 steps and by AutoAttack.
    0: no attacks."""

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
        stored: dict[str, Any] = {}
        for options in (DataOptions, RegressionOptions, BallOptions):
            stored |= options_from(options, config, self.path)
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
        modules = self._modules(prepared)
        augment = make_augmentation(self.augment)
        if "kernels" in distilled.metadata and self._kernel_is(config):
            kernels = with_hyper_parameters(kernels, distilled.metadata["kernels"])
        attacked = self._attacked(prepared)
        rows: list[dict[str, Any]] = []
        for architecture, kernel in zip(make_architectures(self), kernels, strict=True):
            model = regression.fit(kernel, distilled.images, distilled.labels, self.ridge)
            accuracy = data.accuracy(model, prepared.test_images, prepared.dataset.test.labels)
            name = f"{self.kernel} of {architecture.name}, ridge {self.ridge:g}"
            cells = {} if attacked is None else attacked.cells([model])
            rows.append({"model": name, "test accuracy": Share(accuracy), **cells})
        print_tables(Result(f"{self.path}: {len(distilled.images)} images, {self.dataset}", tables={"models": rows}))
        if not modules:
            return
        sets = {"distilled": distilled}
        per_class = len(distilled.images) // prepared.num_classes
        labels = prepared.dataset.train.labels
        if self.beside_real and per_class > 0:
            key = jax.random.key(0)
            real = initial_support("real", prepared.train_images, labels, prepared.num_classes, per_class, key)
            sets["random real"] = Distilled(real.images, real.targets)
            sets["herded"] = herded(prepared.train_images, labels, per_class=per_class)
        print_tables(
            judge(
                sets,
                modules,
                Split(prepared.train_images, labels),
                Split(prepared.test_images, prepared.dataset.test.labels),
                key=jax.random.key(0),
                augment=augment,
                centred=[name for name in modules if name not in CNNS],
                learning_rates=self.network_learning_rate,
                steps=self.network_steps,
                held_out=self.held_out,
                seeds=self.network_seeds,
                attacked=attacked,
                show_progress=True,
            )
        )

    def _attacked(self, prepared: Prepared) -> UnderAttack | None:
        ball, test = self.ball, prepared.dataset.test
        if self.attacked_images == 0:
            return None
        some = Split(test.images[: self.attacked_images], test.labels[: self.attacked_images])
        return UnderAttack(ball, some, prepared.preprocessing)

    def _modules(self, prepared: Prepared) -> dict[str, Module]:
        """Give the networks, by their names in the table."""
        if 0 in self.network_steps:
            if len(self.network_steps) > 1:
                raise ValueError(f"network_steps: got {self.network_steps}, expected 0 alone, or steps above 0")
            return {}
        for name in ("network_steps", "network_learning_rate"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got none, expected at least one")
        modules, shape = {}, prepared.train_images.shape[1:]
        for kind in dict.fromkeys(self.network_architectures or (self.architecture,)):
            depths = self.depth if kind == self.architecture else ()
            for depth in depths or (None,):
                options = dataclasses.replace(self, depth=() if depth is None else (depth,))
                width = None if kind in CNNS else self.width
                name, module = make_network(options, kind, prepared.num_classes, width, shape)
                check_network("width", self.width, module, shape)
                modules[name if width is None else f"{name} of width {width}"] = module
        return modules

    def _kernel_is(self, config: dict[str, Any]) -> bool:
        """Whether the kernel is the one that the set was distilled with, so that what was learned of it fits."""
        made_with = KernelOptions(**options_from(KernelOptions, config, self.path))
        return all(getattr(self, name) == value for name, value in dataclasses.asdict(made_with).items())


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
