"""`ntkit attack`: adversarial examples crafted on a kernel, and how well they fool networks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ntkit import attacks, data, plot, regression
from ntkit.cli.options import (
    CNNS,
    OPTIMIZERS,
    AttackName,
    BallOptions,
    DataOptions,
    NetworkName,
    Prepared,
    RegressionOptions,
    RunOptions,
    config_of,
    make_architectures,
    make_attack,
    make_kernels,
    make_key,
    make_network,
    new_run,
    prepare,
    vacant_run,
)
from ntkit.cli.ranges import AttackSteps, Count, Integers, Rate, Time
from ntkit.cli.refusals import check_gram, check_network
from ntkit.cli.tables import finish
from ntkit.data import Preprocessing, Split, of_pixels, one_hot
from ntkit.kernels import Kernel
from ntkit.networks.training import Module
from ntkit.networks.transferring import Row, random_noise, transfer, transfer_result, transfer_rows
from ntkit.runs import Result, progress

LEARNING_RATES = {"sgd": 0.1, "adam": 0.001}
# What the kinds of images are called in tables and pictures.
NAMES = {"clean": "clean", "noise": "noise", "kernel": "kernel-crafted", "white_box": "white-box"}
CAPTIONS = {
    "accuracy": "Accuracy",
    "transfer": "Accuracy of the networks",
    "examples": "Examples crafted on the kernel",
}
# Images in the picture of clean and adversarial ones.
SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Attack(RunOptions, DataOptions, RegressionOptions, BallOptions):
    """Craft adversarial examples on a kernel predictor, without training, and show them to networks trained later."""

    attack: AttackName = "pgd"
    """Attack on the kernel predictor, and for comparison on each network itself."""

    steps: AttackSteps | None = None
    """Steps of each start of the attack; by default the attack's own number, 20 for pgd."""

    restarts: AttackSteps | None = None
    """Starts of the attack, of pgd, apgd and fab; by default 1."""

    time: Time | None = None
    """Time of gradient flow at which the infinitely wide network is attacked. By default it is trained to the end:
    kernel ridge regression. Networks trained by SGD are at time steps x learning rate x outputs."""

    classes: tuple[int, ...] = ()
    """Classes to keep, by their numbers; by default all. Of two, one output tells them apart, by its sign."""

    train_limit: Count = 2000
    """Training images, at most, of the kernel predictor and of the networks: a random choice."""

    test_limit: Count = 500
    """Test images, at most, to attack: a random choice."""

    network_architectures: tuple[NetworkName, ...] = ()
    """Networks that the examples are shown to; by default of the kernel's architecture. Others of any depth have their
    default one."""

    widths: tuple[Count, ...] = (64, 1024)
    """Units or channels of the hidden layers of fc, conv, convnet and myrtle; the others have their published ones."""

    network_steps: tuple[Annotated[int, Integers(1, 10**8)], ...] = (100, 1000)
    """Numbers of gradient steps after which the networks are looked at, all of one training."""

    network_seeds: Count = 3
    """Networks of each kind, each from its own initialization."""

    network_optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the networks; its learning rate is constant."""

    network_learning_rate: Rate | None = None
    """Learning rate of the networks; by default 0.1 for sgd and 0.001 for adam."""

    network_loss: Literal["mse", "cross_entropy"] = "mse"
    """Loss that the networks are trained on."""

    network_batch: Count | None = None
    """Images of each step of the networks' training; by default all."""

    centred: bool = True
    """Subtract each network's output at initialization, so that it starts from 0 as the kernel predictor does."""

    def run(self) -> None:
        """Craft, train, compare, and write the run directory."""
        started = time.monotonic()
        kernels = make_kernels(self)
        if len(kernels) != 1:
            raise ValueError(f"depth: got {self.depth}, expected one: examples are crafted on one kernel")
        self._check()
        adversary = self._adversary()
        key_task, key_craft, key_networks = jax.random.split(make_key(self.seed), 3)
        prepared = prepare(self)
        task = self._task(prepared, key_task)
        check_gram("train_limit", self.train_limit, len(task.train))
        modules = self._modules(task)
        out = self.out or vacant_run(self.dataset, "attack", self.attack, self.architecture)
        with new_run(out, config_of(self, ("out",))) as run:
            crafted = self._craft(kernels[0], adversary, task, key_craft)
            title = f"{self.dataset}, {self.attack} in {adversary.ball.norm} of {adversary.ball.radius:g}"
            run.write(_result(title, task, crafted, []))
            table: list[Row] = []
            for rows in self._shown(crafted, adversary, task, modules, key_networks):
                table += rows
                run.write(_result(title, task, crafted, table))
            finish(run, _result(title, task, crafted, table), started)

    @property
    def _learning_rate(self) -> float:
        given = self.network_learning_rate
        return LEARNING_RATES[self.network_optimizer] if given is None else given

    def _check(self) -> None:
        """Check what the library would see only after a while."""
        if self.time is not None and self.ridge != Attack.ridge:
            raise ValueError(f"ridge: got {self.ridge:g}, expected none beside --time")
        for name in ("widths", "network_steps"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got none, expected at least one")

    def _adversary(self) -> attacks.Attack:
        # What the kernel is just wrong about is too little to fool another model.
        stop_early = False if self.attack == "pgd" else None
        return make_attack(self.attack, self.ball, steps=self.steps, restarts=self.restarts, stop_early=stop_early)

    def _task(self, prepared: Prepared, key: jax.Array) -> _Task:
        dataset = prepared.dataset
        classes = self.classes or tuple(range(prepared.num_classes))
        if len({*classes}) < max(2, len(classes)) or not {*classes} <= {*range(prepared.num_classes)}:
            raise ValueError(
                f"classes: got {classes}, expected two or more different ones of 0 to {prepared.num_classes - 1}"
            )
        key_train, key_test = jax.random.split(key)
        train = _chosen(dataset.train, classes, self.train_limit, key_train)
        test = _chosen(dataset.test, classes, self.test_limit, key_test)
        names = [dataset.class_names[each] for each in classes]
        return _Task(classes, train, test, prepared.preprocessing, names, prepared.visible)

    def _modules(self, task: _Task) -> dict[str, Module]:
        """Give the networks, by their names in the table."""
        found: dict[str, Module] = {}
        shape = task.test.images.shape[1:]
        for kind in dict.fromkeys(self.network_architectures or (self.architecture,)):
            for width in (None,) if kind in CNNS else dict.fromkeys(self.widths):
                name, module = make_network(self, kind, task.outputs, width, shape)
                check_network("widths", width, module, shape)
                found[name if width is None else f"{name}, width {width}"] = module
        return found

    def _craft(self, kernel: Kernel, adversary: attacks.Attack, task: _Task, key: jax.Array) -> _Crafted:
        images = task.preprocessing.transform(task.train.images)
        name = f"{self.kernel} of {make_architectures(self)[0].name}"
        if self.time is None:
            name = f"{name}, ridge {self.ridge:g}"
            predictor = regression.fit(kernel, images, task.targets, self.ridge)
        else:
            name = f"{name}, time {self.time:g}"
            predictor = regression.flow(kernel, images, task.targets, self.time)
        model = of_pixels(predictor, task.preprocessing)
        x = jnp.asarray(task.test.images)
        key_attack, key_noise = jax.random.split(key)
        examples = {
            "noise": np.asarray(random_noise(x, adversary.ball, key=key_noise)),
            "kernel": np.asarray(adversary(model, x, task.labels, key=key_attack)),
        }
        shown = {"clean": task.test.images, **examples}
        accuracies = {of: data.accuracy(model, these, task.labels) for of, these in shown.items()}
        return _Crafted(name, examples, accuracies)

    def _shown(
        self,
        crafted: _Crafted,
        adversary: attacks.Attack,
        task: _Task,
        modules: Mapping[str, Module],
        key: jax.Array,
    ) -> Iterator[list[Row]]:
        """Train the networks of one kind after the other, and show them the examples."""
        done = 0
        with progress(len(modules) * self.network_seeds, "networks") as bar:
            for name, module in modules.items():
                found = []
                for seed in range(self.network_seeds):
                    found.append(
                        transfer(
                            of_pixels(module, task.preprocessing),
                            task.train.images,
                            task.targets,
                            task.test.images,
                            task.labels,
                            examples=crafted.examples,
                            adversaries={"white_box": adversary},
                            steps=self.network_steps,
                            key=jax.random.fold_in(key, seed),
                            optimizer=OPTIMIZERS[self.network_optimizer](self._learning_rate),
                            loss=self.network_loss,
                            batch_size=self.network_batch,
                            centred=self.centred,
                        )
                    )
                    done += 1
                    bar.update(done)
                yield transfer_rows(name, found)


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is to be told apart: images of pixels, with their places in `classes` as labels."""

    classes: tuple[int, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing
    class_names: Sequence[str]
    visible: bool

    @property
    def outputs(self) -> int:
        """One for two classes."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    @property
    def labels(self) -> np.ndarray:
        """Of the test images, for a model with as many outputs."""
        return 2 * self.test.labels - 1 if self.outputs == 1 else self.test.labels

    @property
    def targets(self) -> np.ndarray:
        """Of the training images: −1 and +1, or centred one-hot vectors."""
        if self.outputs == 1:
            return np.asarray(2 * self.train.labels[:, None] - 1, np.float32)
        return np.asarray(one_hot(self.train.labels, self.outputs))


@dataclasses.dataclass(frozen=True)
class _Crafted:
    """Examples made on a kernel predictor and noise of their size, and its accuracy on these and on clean images."""

    model: str
    examples: dict[str, np.ndarray]
    accuracy: dict[str, float]


def _chosen(split: Split, classes: Sequence[int], limit: int, key: jax.Array) -> Split:
    kept = np.isin(split.labels, classes)
    if not kept.any():
        raise ValueError(f"classes: got {tuple(classes)}, of which there is no image, expected others")
    places = {number: place for place, number in enumerate(classes)}
    labels = np.asarray([places[int(label)] for label in split.labels[kept]], np.int32)
    return Split(split.images[kept], labels).choice(limit, key)


def _result(title: str, task: _Task, crafted: _Crafted, found: Sequence[Row]) -> Result:
    """Put together what is known so far."""
    own = {of: [value] for of, value in crafted.accuracy.items()}
    result = transfer_result([Row(network=crafted.model, steps=None, accuracy=own), *found], names=NAMES, title=title)
    clean, adversarial = task.test.images, crafted.examples["kernel"]
    return dataclasses.replace(
        result,
        figures={"examples": _pictures(clean, adversarial)}
        | ({"transfer": plot.transfer(found, names=NAMES)} if found else {}),
        arrays={"clean": clean, "adversarial": adversarial, "labels": np.asarray(task.classes)[task.test.labels]},
        captions=CAPTIONS,
    )


def _pictures(clean: np.ndarray, adversarial: np.ndarray) -> Any:
    """Draw some images, how they were changed, and what came of them."""
    change = adversarial[:SHOWN] - clean[:SHOWN]
    # Within grey tones that differ from the page.
    factor = 0.4 / (float(np.max(np.abs(change))) or 0.4)
    pictures = np.concatenate([clean[:SHOWN], 0.5 + factor * change, adversarial[:SHOWN]])
    count = len(change)
    return plot.image_grid(
        pictures,
        classes=np.repeat(np.arange(3), count),
        class_names=["clean", f"perturbation × {factor:.2g}", "adversarial"],
        columns=count,
        scale=(0.0, 1.0),
    )
