"""`ntkit distill`: KIP from the command line, into a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ntkit import distill, plot
from ntkit.attacks import Attack
from ntkit.cli.distributed import DISTRIBUTED, DistributedOptions
from ntkit.cli.options import (
    AdversaryOptions,
    DataOptions,
    Prepared,
    RegressionOptions,
    RunOptions,
    config_of,
    hyper_parameters,
    made_run,
    make_adversary,
    make_architectures,
    make_augmentation,
    make_kernels,
    make_key,
    options_from,
    prepare,
    vacant_run,
)
from ntkit.cli.ranges import Count, Integers, Rate, Time
from ntkit.cli.refusals import check_gram
from ntkit.cli.tables import finish
from ntkit.cli.under_attack import (
    ROBUSTNESS,
    RobustnessOptions,
    robustness,
    robustness_networks,
)
from ntkit.data import Split
from ntkit.distill import Distilled, compare_with_real
from ntkit.kernels import Kernel
from ntkit.runs import Interrupted, Result, Run, Session
from ntkit.runs.interruption import interrupt_in

# What says where a run is or how it is watched, not what it computes.
_NOT_CONFIG = ("out", "resume", "checkpoint_every", "full_set_limit", *ROBUSTNESS, *DISTRIBUTED)

# The directory, within that of a robust set, of the same distillation without an adversary.
_CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class Distill(RunOptions, DataOptions, RegressionOptions, AdversaryOptions, RobustnessOptions, DistributedOptions):
    """Distil a data set with KIP, RFAD or FRePo: learn a few images on which a regression predicts the whole set.

    With --adversary pgd it is adv-KIP, which learns from attacked images; the same distillation without an adversary
    follows, and a table of what is left of the accuracies of both under attack.
    """

    per_class: Annotated[Count, tyro.conf.arg(aliases=["-n"])] = 1
    """Distilled images of each class."""

    learner: Literal["kip", "rfad", "frepo", "rcig", "rat_bptt"] = "kip"
    """What is fitted on the set: "kip": the kernel; "rfad": random features of it, for which a ridge of 0.005 is
    usual; "frepo" and "rcig": features of networks of its architecture that train on the set; "rat_bptt": such
    networks themselves."""

    learner_width: Count = 128
    """Units or channels of the networks of learners other than "kip"."""

    steps: Annotated[int, Integers(0)] = 1000
    """Gradient steps."""

    learning_rate: Rate = 0.01
    """Learning rate of Adam, in units of the preprocessed pixels and of the labels per step."""

    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run: constant, or falling to 0 along a cosine."""

    target_batch: Count = 5000
    """Images of each step's random, class-balanced target batch; at least the training set's size: all of it."""

    support_batch: Count | None = None
    """Images of each step's random, class-balanced subset of the support set; by default all."""

    init: Literal["real", "noise"] = "real"
    """What the distilled images start from: random images of each class, or noise."""

    learn_labels: bool = True
    """Learn the labels too; otherwise they stay centred one-hot vectors."""

    learn_kernel: bool = False
    """Learn the kernel's W_std and b_std of each layer too; with "kip"."""

    learn_temperature: bool = False
    """Learn the temperature of the loss "cross_entropy" too."""

    loss: Literal["mse", "cross_entropy"] = "mse"
    """Loss on the target batch."""

    augment: Literal["none", "flip", "digits", "objects"] = "none"
    """Augmentation of target batches: "flip" left and right; "digits": 10 degrees, 1 pixel; "objects": 10 degrees, 3
    pixels, flips, brightness."""

    resume: Path | None = None
    """Run directory to go on with; its configuration is used, and options given beside it must agree."""

    log_every: Count = 10
    """Steps between two records in metrics.jsonl."""

    checkpoint_every: Time = 60.0
    """Seconds between checkpoints."""

    full_set_limit: Count = 5000
    """Training images, at most, of the last row of the table: kernel regression on all of a large set takes its
    number's cube in time and its square in memory."""

    @property
    def flags(self) -> dict[str, str]:
        """What the library's argument names are on the command line, where that is not the option's own name."""
        where = "--out" if self.resume is None else "--resume"
        return {"path": where, "config": "--resume", "width": "--network-width"}

    def completed(self, arguments: list[str]) -> Distill:
        """Take what was not given from the run to resume, and raise `ValueError` if what was given differs."""
        if self.resume is None:
            return self
        if self.out is not None:
            raise ValueError(f"out: got {str(self.out)!r}, expected none beside --resume")
        with self.group().together(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `run` opens it once more
            run = Run.resume(self.resume)
            stored = Distill(**options_from(Distill, run.config, run.path / "config.json"), resume=self.resume)
            given: Distill = tyro.cli(Distill, args=arguments, default=stored)
            Run.resume(self.resume, given.config())
        return given

    def config(self) -> dict[str, Any]:
        """Give everything needed to repeat the run."""
        return config_of(self, _NOT_CONFIG)

    def run(self) -> None:
        """Distil, and write the run directory."""
        kernels = make_kernels(self)
        key = make_key(self.seed)
        optimizer = _optimizer(self.learning_rate, self.schedule, self.steps)
        adversary = make_adversary(self)
        if adversary is None:
            self._check_no_adversary()
        with contextlib.ExitStack() as stack:
            group = stack.enter_context(self.working())
            resumption = stack.enter_context(_Resumption())
            with group.together():
                opened = None if self.resume is None else Run.resume(self.resume, self.config())
                prepared = prepare(self)
                self._check_memory(prepared)
            with group.together():
                run = opened if group.leads else None
                if group.leads and run is None:
                    out = self.out or vacant_run(self.dataset, self.architecture, self.per_class)
                    run = stack.enter_context(made_run(out, self.config()))
                resumption.run = run
            kip = functools.partial(self._kip, prepared, kernels, key, optimizer)
            self._distil(run, prepared, kernels, adversary, kip)

    def _check_no_adversary(self) -> None:
        """Check that nothing is asked for that only an adversary needs."""
        for kind in (AdversaryOptions, RobustnessOptions):
            for field in dataclasses.fields(kind):
                if (value := getattr(self, field.name)) != field.default:
                    raise ValueError(f"{field.name}: got {value!r}, expected --adversary beside it")

    def _check_memory(self, prepared: Prepared) -> None:
        images, every = self.per_class * prepared.num_classes, len(prepared.train_images)
        # Of real images there are no more, and the library says so.
        check_gram("per_class", self.per_class, min(images, every) if self.init == "real" else images)
        check_gram("full_set_limit", self.full_set_limit, min(self.full_set_limit, every))

    def _distil(
        self,
        run: Run | None,
        prepared: Prepared,
        kernels: list[Kernel],
        adversary: Attack | None,
        kip: Callable[[Run | None, Attack | None], Distilled],
    ) -> None:
        started = time.monotonic()
        modules = {} if adversary is None else robustness_networks(self, prepared)
        distilled = kip(run, adversary)
        # In all processes, though one writes it: none may wait for long when the others have ended.
        result = compared(self, prepared, kernels, distilled, self.full_set_limit)
        clean: Distilled | None = None
        if adversary is not None:
            with contextlib.ExitStack() as stack:
                with self.group().together():
                    clean_run = None if run is None else stack.enter_context(run_within(run, _CLEAN))
                clean = kip(clean_run, None)
            sets = {"adv-KIP": distilled, "KIP": clean}
            attacked = robustness(self, prepared, sets, kernels[0], modules, adversary, self.full_set_limit)
            captions = {**result.captions, "robustness": attacked.title}
            result = dataclasses.replace(result, tables={**result.tables, **attacked.tables}, captions=captions)
        if run is None:
            return
        metadata: dict[str, Any] = {"config": run.config, "versions": run.versions}
        if self.learn_kernel:
            metadata["kernels"] = hyper_parameters(distilled.kernel)
        if clean is not None:
            clean.save(run.path / _CLEAN / "distilled.npz")
        finish_set(run, prepared, dataclasses.replace(distilled, metadata=metadata), result, started)

    def _learner(self, kernels: list[Kernel], classes: int) -> distill.Learner:
        if self.learner == "kip":
            if self.learner_width != Distill.learner_width:
                raise ValueError(
                    f"learner_width: got {self.learner_width}, expected another learner than kip beside it"
                )
            return distill.KIP(kernels[0] if len(kernels) == 1 else kernels, ridge=self.ridge)
        if len(kernels) > 1:
            raise ValueError(f"depth: got {self.depth}, expected one with --learner {self.learner}")
        if self.learn_kernel:
            raise ValueError(f"learn_kernel: got True, expected --learner kip beside it, not {self.learner}")
        (architecture,) = make_architectures(self)
        if self.learner == "rfad":
            return distill.RFAD(architecture, width=self.learner_width, ridge=self.ridge, get=self.kernel)
        module = architecture.flax(classes, self.learner_width)
        if self.learner == "rat_bptt":
            if self.ridge != Distill.ridge:
                raise ValueError(f"ridge: got {self.ridge}, expected a learner with a ridge beside it, not rat_bptt")
            return distill.RaTBPTT(module)
        return {"frepo": distill.FRePo, "rcig": distill.RCIG}[self.learner](module, ridge=self.ridge)

    def _kip(
        self,
        prepared: Prepared,
        kernels: list[Kernel],
        key: jax.Array,
        optimizer: Any,
        run: Run | None,
        adversary: Attack | None,
    ) -> Distilled:
        # A ball is one of pixels; without an adversary the data set is preprocessed but once.
        pixels = adversary is not None
        return distill.distill(
            self._learner(kernels, prepared.num_classes),
            prepared.dataset.train.images if pixels else prepared.train_images,
            prepared.dataset.train.labels,
            per_class=self.per_class,
            steps=self.steps,
            key=key,
            support=distill.Support(
                init=self.init,
                learn=(
                    "images",
                    *("labels",) * self.learn_labels,
                    *("kernel",) * self.learn_kernel,
                    *("temperature",) * self.learn_temperature,
                ),
                batch=self.support_batch,
            ),
            targets=distill.Targets(
                batch=self.target_batch,
                augment=make_augmentation(self.augment),
                preprocessing=prepared.preprocessing if pixels else None,
                loss=self.loss,
            ),
            adversary=adversary,
            optimizer=optimizer,
            session=Session(
                run=run, log_every=self.log_every, checkpoint_every=self.checkpoint_every, show_progress=True
            ),
            mesh=self.mesh(),
        )


class _Resumption:
    """A block that, when it is stopped, says how to go on with its run, or that there is none."""

    run: Run | None = None

    def __enter__(self) -> _Resumption:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or (stopped := interrupt_in(error)) is None:
            return
        if self.run is None or not self.run.path.exists():
            what = "nothing is kept"
        else:
            go_on = "go on" if self.run.step is not None else "there is no checkpoint yet, begin again"
            what = f"{go_on} with: ntkit distill --resume {shlex.quote(str(self.run.path))}"
        raise Interrupted(f"{stopped}; {what}", stopped.signal) from None


@contextlib.contextmanager
def run_within(run: Run, name: str) -> Iterator[Run]:
    """Make, or go on with, a run inside of another one."""
    path = run.path / name
    # Killed between the two, the directory is there without it.
    if (path / "config.json").exists():
        yield Run.resume(path, run.config)
    else:
        with made_run(path, run.config) as made:
            yield made


def compared(
    options: Any,
    prepared: Prepared,
    kernels: Sequence[Kernel],
    distilled: Distilled,
    limit: int,
    name: str = "distilled",
) -> Result:
    """Compare a set with real images, under the names that the options give its kernels."""
    names = [architecture.name for architecture in make_architectures(options)]
    result = compare_with_real(
        distilled,
        dict(zip(names, kernels, strict=True)),
        Split(prepared.train_images, prepared.dataset.train.labels),
        Split(prepared.test_images, prepared.dataset.test.labels),
        ridge=options.ridge,
        limit=limit,
        name=name,
    )
    return dataclasses.replace(result, title=f"{prepared.dataset.name}: {result.title}")


def finish_set(run: Run, prepared: Prepared, distilled: Distilled, result: Result, started: float) -> None:
    """Write a distilled set, its pictures and the result into the run directory, and print the tables."""
    distilled.save(run.path / "distilled.npz")
    figures = {}
    if prepared.visible:
        figures["distilled"] = plot.image_grid(
            prepared.pictures(distilled.images),
            distilled.labels,
            classes=np.repeat(np.arange(prepared.num_classes), len(distilled.images) // prepared.num_classes),
            class_names=prepared.dataset.class_names,
        )
    if metrics := run.metrics():
        figures["history"] = plot.history(metrics)
    captions = {**result.captions, "distilled": "Distilled images and their labels"}
    finish(run, dataclasses.replace(result, figures=figures, captions=captions), started, "distilled.npz")


@functools.cache
def _optimizer(learning_rate: float, schedule: str, steps: int) -> Any:
    # Cached: in one process a new object would be a new compilation.
    import optax

    return optax.adam(
        optax.cosine_decay_schedule(learning_rate, max(steps, 1)) if schedule == "cosine" else learning_rate
    )
