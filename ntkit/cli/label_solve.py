"""`ntkit label-solve`: the best labels for real images."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Annotated

import tyro

from ntkit import distill
from ntkit.cli.distill import compared, finish_set
from ntkit.cli.distributed import DISTRIBUTED, DistributedOptions
from ntkit.cli.options import (
    DataOptions,
    RegressionOptions,
    RunOptions,
    config_of,
    make_kernels,
    make_key,
    new_run,
    prepare,
    vacant_run,
)
from ntkit.cli.ranges import Count
from ntkit.cli.refusals import check_gram
from ntkit.distill.support import initial_support


@dataclasses.dataclass(frozen=True)
class LabelSolve(RunOptions, DataOptions, RegressionOptions, DistributedOptions):
    """Keep random real images and find their best labels in closed form (Label Solve)."""

    per_class: Annotated[Count, tyro.conf.arg(aliases=["-n"])] = 1
    """Images of each class."""

    full_set_limit: Count = 5000
    """Training images, at most, of the last row of the table."""

    def run(self) -> None:
        """Solve, and write the run directory."""
        started = time.monotonic()
        kernels = make_kernels(self)
        if len(kernels) != 1:
            raise ValueError(f"depth: got {self.depth}, expected one: labels are solved for one kernel")
        key = make_key(self.seed)
        with contextlib.ExitStack() as stack:
            group = stack.enter_context(self.working())
            with group.together():
                prepared = prepare(self)
                check_gram("full_set_limit", self.full_set_limit, min(self.full_set_limit, len(prepared.train_images)))
                images, labels = prepared.train_images, prepared.dataset.train.labels
                support = initial_support("real", images, labels, prepared.num_classes, self.per_class, key)
            with group.together():
                run = None
                if group.leads:
                    out = self.out or vacant_run(self.dataset, "label-solve", self.architecture, self.per_class)
                    run = stack.enter_context(new_run(out, config_of(self, ("out", "full_set_limit", *DISTRIBUTED))))
            solved = distill.label_solve(
                kernels[0],
                support.images,
                images,
                labels,
                ridge=self.ridge,
                mesh=self.mesh(),
            )
            # In all processes, though one writes it: none may wait for long when the others have ended.
            result = compared(self, prepared, kernels, solved, self.full_set_limit, "real, labels solved")
            if run is None:
                return
            solved = dataclasses.replace(solved, metadata={"config": run.config, "versions": run.versions})
            run.log(0, **{name: float(column[0]) for name, column in solved.history.items() if name != "step"})
            finish_set(run, prepared, solved, result, started)
