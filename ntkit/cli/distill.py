"""`ntkit distill`: KIP from the command line, into a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
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
from ntkit.attacks import Adversary
from ntkit.cli.distributed import DISTRIBUTED, DistributedOptions
from ntkit.cli.memory import check_gram
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
    make_augmentation,
    make_kernels,
    make_key,
    options_from,
    prepare,
    vacant_run,
)
from ntkit.cli.ranges import Count, Integers, Rate, Time
from ntkit.cli.robustness import (
    ROBUSTNESS,
    RobustnessOptions,
    robustness_in_words,
    robustness_networks,
    robustness_table,
    robustness_title,
)
from ntkit.cli.tables import accuracy_table, in_words, print_table
from ntkit.distill import Distilled
from ntkit.kernels import Kernel
from ntkit.runs import Interrupted, Run, atomic_write
from ntkit.runs.interruption import interrupt_in

# What says where a run is or how it is watched, not what it computes.
_NOT_CONFIG = ("out", "resume", "checkpoint_every", "full_set_limit", *ROBUSTNESS, *DISTRIBUTED)

# The directory, within that of a robust set, of the same distillation without an adversary.
_CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class Distill(RunOptions, DataOptions, RegressionOptions, AdversaryOptions, RobustnessOptions, DistributedOptions):
    """Distil a data set with KIP: learn a few images on which kernel regression predicts the whole set.

    With --adversary pgd it is adv-KIP, which learns from attacked images; the same distillation without an adversary
    follows, and a table of what is left of the accuracies of both under attack.
    """

    per_class: Annotated[Count, tyro.conf.arg(aliases=["-n"])] = 1
    """Distilled images of each class."""

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
    """Learn the kernel's W_std and b_std of each layer too."""

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
        adversary: Adversary | None,
        kip: Callable[[Run | None, Adversary | None], Distilled],
    ) -> None:
        started = time.monotonic()
        modules = {} if adversary is None else robustness_networks(self, prepared)
        distilled = kip(run, adversary)
        # In all processes, though one writes it: none may wait for long when the others have ended.
        rows = accuracy_table(self, prepared, distilled, self.per_class, self.full_set_limit)
        robust: list[dict[str, Any]] = []
        if adversary is not None:
            with contextlib.ExitStack() as stack:
                with self.group().together():
                    clean_run = None if run is None else stack.enter_context(run_within(run, _CLEAN))
                clean = kip(clean_run, None)
            sets = {"adv-KIP": distilled, "KIP": clean}
            robust = robustness_table(self, prepared, sets, kernels, modules, adversary, self.full_set_limit)
        if run is None:
            return
        metadata: dict[str, Any] = {"config": run.config, "versions": run.versions}
        if self.learn_kernel:
            metadata["kernels"] = hyper_parameters(distilled.kernel)
        distilled = dataclasses.replace(distilled, metadata=metadata)
        write_results(run, prepared, distilled, rows, f"{self.per_class} per class", robust)
        print_table(f"{self.dataset}: kernel regression", in_words(rows))
        if adversary is not None:
            clean.save(run.path / _CLEAN / "distilled.npz")
            print_table(f"{self.dataset}: {robustness_title(self, prepared, adversary)}", robustness_in_words(robust))
        print(f"{run.path}: report.html, distilled.npz, distilled.png ({time.monotonic() - started:.0f} s)")

    def _kip(
        self,
        prepared: Prepared,
        kernels: list[Kernel],
        key: jax.Array,
        optimizer: Any,
        run: Run | None,
        adversary: Adversary | None,
    ) -> Distilled:
        # A ball is one of pixels; without an adversary the data set is preprocessed but once.
        pixels = adversary is not None
        return distill.kip(
            kernels[0] if len(kernels) == 1 else kernels,
            prepared.dataset.train.images if pixels else prepared.train_images,
            prepared.dataset.train.labels,
            per_class=self.per_class,
            steps=self.steps,
            key=key,
            num_classes=prepared.num_classes,
            init=self.init,
            learn_labels=self.learn_labels,
            learn_kernel=self.learn_kernel,
            optimizer=optimizer,
            target_batch=self.target_batch,
            support_batch=self.support_batch,
            augment=make_augmentation(self.augment),
            adversary=adversary,
            preprocessing=prepared.preprocessing if pixels else None,
            loss=self.loss,
            ridge=self.ridge,
            log_every=self.log_every,
            run=run,
            checkpoint_every=self.checkpoint_every,
            show_progress=True,
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


def write_results(
    run: Run,
    prepared: Prepared,
    distilled: Distilled,
    rows: list[dict[str, Any]],
    title: str,
    robust: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the distilled set, its pictures and the report into the run directory."""
    distilled.save(run.path / "distilled.npz")
    classes = np.repeat(np.arange(prepared.num_classes), len(distilled.images) // prepared.num_classes)
    grid = plot.image_grid(
        prepared.pictures(distilled.images),
        distilled.labels,
        classes=classes,
        class_names=prepared.dataset.class_names,
    )
    plot.save(grid, run.path / "distilled.png")
    figures: dict[str, Any] = {"Distilled images and their labels": run.path / "distilled.png"}
    metrics = run.metrics()
    if metrics:
        plot.save(plot.history(metrics), run.path / "history.png")
        figures["History"] = run.path / "history.png"
    with atomic_write(run.path / "results.json", "w") as file:
        file.write(json.dumps(rows, indent=2) + "\n")
    written = in_words(rows)
    tables = {"Kernel regression": written}
    if robust:
        with atomic_write(run.path / "robustness.json", "w") as file:
            file.write(json.dumps(robust, indent=2) + "\n")
        tables["What is left under attack"] = robustness_in_words(robust)
    run.report(
        title=f"{prepared.dataset.name}, {title}",
        summary={row["images"]: row["test accuracy"] for row in written},
        tables=tables,
        figures=figures,
    )


@functools.cache
def _optimizer(learning_rate: float, schedule: str, steps: int) -> Any:
    # Cached: in one process a new object would be a new compilation.
    import optax

    return optax.adam(
        optax.cosine_decay_schedule(learning_rate, max(steps, 1)) if schedule == "cosine" else learning_rate
    )
