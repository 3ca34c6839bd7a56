"""`ntkit dynamics`: how a network's tangent kernel moves in standard and in adversarial training."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ntkit import data, networks, plot
from ntkit.attacks import PGD, Attack
from ntkit.cli.options import (
    ADVERSARIES,
    CNNS,
    OPTIMIZERS,
    AdversaryName,
    AdversaryOptions,
    DataOptions,
    KernelOptions,
    NetworkName,
    Prepared,
    RunOptions,
    config_of,
    make_adversary,
    make_key,
    make_network,
    new_run,
    prepare,
    vacant_run,
)
from ntkit.cli.ranges import Count, Integers, Rate, TrainingSteps
from ntkit.cli.refusals import check_gram, check_network
from ntkit.cli.tables import finish
from ntkit.data import Split, of_pixels, one_hot
from ntkit.distill.attacked import PGD_STEPS
from ntkit.networks import Dynamics as KernelDynamics
from ntkit.networks import Linearization
from ntkit.networks.training import Module

LEARNING_RATES = {"sgd": 0.1, "adam": 0.001}
# Numbers of the largest eigenvalues whose share is given.
SHARES = (10, 20)


@dataclasses.dataclass(frozen=True)
class Dynamics(RunOptions, DataOptions, AdversaryOptions):
    """Train a network, standard and adversarially, and follow its tangent kernel."""

    adversary: AdversaryName = "pgd"
    """Attack of each batch through the current network in adversarial training."""

    architecture: NetworkName = "fc"
    """The network."""

    depth: Annotated[int, Integers(1, 1000)] | None = None
    """Hidden layers of fc, conv, convnet and myrtle; by default 1, 3, 3 and 5."""

    width: Count | None = None
    """Units or channels of the hidden layers; by default 256, and of simple_cnn, alexnet and vgg11 as published."""

    activation: str = "relu"
    """Nonlinearity of fc, conv, convnet and myrtle: relu, erf, gelu and others with a closed form."""

    at: tuple[TrainingSteps, ...] = (0, 10, 30, 100, 300, 1000)
    """Numbers of gradient steps at which the kernel is taken; 0 is the initialization, and training ends at the largest
    one."""

    sample: Annotated[int, Integers(2)] = 200
    """Training images that the kernel is taken on: a random choice."""

    top: Count = 20
    """Eigenvectors of the kernel's top part; the others are its bottom part."""

    train_limit: Count = 2000
    """Training images, at most: a random choice."""

    test_limit: Count = 500
    """Test images, at most, of the accuracies: a random choice."""

    loss: Literal["mse", "cross_entropy"] = "cross_entropy"
    """Loss that the network is trained on."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer; its learning rate is constant."""

    learning_rate: Rate | None = None
    """Learning rate; by default 0.1 for sgd and 0.001 for adam."""

    batch_size: Count | None = 128
    """Images of each step; None: all."""

    centred: bool = False
    """Subtract the network's output at initialization."""

    linearize: bool = False
    """Linearize the network at each of the steps, too, and train the linearization for the rest of them."""

    @property
    def flags(self) -> dict[str, str]:
        """What the library's argument names are on the command line, where that is not the option's own name."""
        return {"steps": "--adversary-steps"}

    def run(self) -> None:
        """Train twice, compare, and write the run directory."""
        started = time.monotonic()
        self._check()
        adversary = self._adversary()
        key_data, key_train, key_linearize = jax.random.split(make_key(self.seed), 3)
        prepared = prepare(self)
        task = self._task(prepared, key_data)
        name, module = self._module(prepared)
        out = self.out or vacant_run(self.dataset, "dynamics", name)
        found: dict[str, dict[str, Any]] = {}
        linearized: dict[str, list[Linearization]] = {}
        kernels: dict[str, KernelDynamics] = {}
        with new_run(out, config_of(self, ("out",))) as run:
            for kind, attacked_by in (("standard", None), ("adversarial", adversary)):
                training = {"adversary": attacked_by, **self._training()}
                kernels[kind] = networks.kernel_dynamics(
                    module, **task.training, sample=task.sample.images, at=self.at, key=key_train, **training
                )
                summary = kernels[kind].summary(task.targets(task.sample), top=self.top, shares=SHARES)
                found[kind] = summary | {"accuracy": self._accuracies(kernels[kind], task)}
                if self.linearize:
                    del training["centred"]
                    linearized[kind] = networks.linearized_from(
                        dict(zip(kernels[kind].steps, kernels[kind].networks, strict=True)),
                        **task.training,
                        x=task.test.images,
                        labels=task.test.labels,
                        key=key_linearize,
                        adversaries={"pgd": self._evaluation()},
                        **training,
                    )
                ball = adversary.ball
                title = f"{self.dataset}, {name}: {' and '.join(found)} training ({ball.norm} of {ball.radius:g})"
                result = networks.dynamics_result(found, linearized, title=title)
                result = dataclasses.replace(
                    result,
                    figures={"dynamics": plot.dynamics(found)},
                    arrays={
                        **{training: each.grams.astype(np.float32) for training, each in kernels.items()},
                        "steps": np.asarray(kernels[kind].steps),
                        "images": task.sample.images,
                        "labels": task.sample.labels,
                    },
                    captions={**result.captions, "dynamics": "The kernel on its way"},
                )
                # An interrupted run keeps its first training.
                run.write(result)
            finish(run, result, started)

    def _check(self) -> None:
        """Check what the library would see only after a while, or call by another name."""
        if len({*self.at}) < 2:
            raise ValueError(f"at: got {self.at}, expected two or more different numbers of steps")
        for name in ("depth", "activation") if self.architecture in CNNS else ():
            if (value := getattr(self, name)) != getattr(Dynamics, name):
                raise ValueError(f"{name}: got {value!r} for {self.architecture}, expected none: it has its own")

    def _adversary(self) -> Attack:
        adversary = make_adversary(self)
        if adversary is None:
            raise ValueError(f"adversary: got {self.adversary!r}, expected one of {', '.join(ADVERSARIES)}")
        return adversary

    def _training(self) -> dict[str, Any]:
        rate = LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate
        return {
            "loss": self.loss,
            "optimizer": OPTIMIZERS[self.optimizer](rate),
            "batch_size": self.batch_size,
            "centred": self.centred,
        }

    def _module(self, prepared: Prepared) -> tuple[str, Module]:
        options: dict[str, Any] = {"activation": self.activation}
        width = self.width
        if self.architecture not in CNNS:
            options |= {"architecture": self.architecture, "depth": () if self.depth is None else (self.depth,)}
            width = 256 if width is None else width
        shape = prepared.dataset.train.images.shape[1:]
        name, module = make_network(KernelOptions(**options), self.architecture, prepared.num_classes, width, shape)
        check_network("width", width, module, shape)
        return name if width is None else f"{name} of width {width}", of_pixels(module, prepared.preprocessing)

    def _task(self, prepared: Prepared, key: jax.Array) -> _Task:
        key_train, key_test, key_sample = jax.random.split(key, 3)
        train = prepared.dataset.train.choice(self.train_limit, key_train)
        test = prepared.dataset.test.choice(self.test_limit, key_test)
        task = _Task(prepared, train, test, train.choice(self.sample, key_sample))
        check_gram("sample", self.sample, len(task.sample))
        if self.top >= len(task.sample):
            raise ValueError(f"top: got {self.top}, expected less than the {len(task.sample)} images of the sample")
        return task

    def _evaluation(self) -> Attack:
        return PGD(self._adversary().ball, steps=PGD_STEPS)

    def _accuracies(self, kernels: KernelDynamics, task: _Task) -> dict[str, list[float]]:
        """Give the accuracies at each step, clean and under the attack that evaluates."""
        attack, key = self._evaluation(), make_key(self.seed)
        found: dict[str, list[float]] = {"clean": [], "pgd": []}
        for network in kernels.networks:
            crafted = attack(network, jnp.asarray(task.test.images), task.test.labels, key=key)
            for name, images in (("clean", task.test.images), ("pgd", np.asarray(crafted))):
                found[name].append(data.accuracy(network, images, task.test.labels))
        return found


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is to be learned, of pixels, and the training images that the kernel is taken on."""

    prepared: Prepared
    train: Split
    test: Split
    sample: Split

    @property
    def training(self) -> dict[str, Any]:
        """Images and targets."""
        return {"images": self.train.images, "targets": self.targets(self.train)}

    def targets(self, split: Split) -> np.ndarray:
        """Give centred one-hot vectors."""
        return np.asarray(one_hot(split.labels, self.prepared.num_classes))
