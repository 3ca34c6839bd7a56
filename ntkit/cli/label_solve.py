"""`ntkit label-solve`: the best labels for real images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import jax
import tyro

from ntkit import distill
from ntkit.cli.distill import write_results
from ntkit.cli.options import DataOptions, KernelOptions, config_of, make_kernels, prepare, vacant_run
from ntkit.cli.tables import accuracy_table, print_table
from ntkit.distill.support import initial_support
from ntkit.runs import Run


@dataclasses.dataclass(frozen=True)
class LabelSolve(DataOptions, KernelOptions):
    """Keep random real images and find their best labels in closed form (Label Solve)."""

    per_class: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Images of each class."""

    seed: int = 0
    """Seed of the choice of images."""

    out: Path | None = None
    """Run directory to make; by default a new one under runs/."""

    full_set_limit: int = 5000
    """Training images, at most, of the last row of the table."""

    FLAGS: ClassVar[dict[str, str]] = {"path": "--out"}

    def run(self) -> None:
        """Solve, and write the run directory."""
        kernels = make_kernels(self)
        if len(kernels) != 1:
            raise ValueError(f"depth: got {self.depth}, expected one: labels are solved for one kernel")
        if self.per_class < 1:
            raise ValueError(f"per_class: got {self.per_class}, expected an integer of at least 1")
        prepared = prepare(self)
        labels = prepared.dataset.train.labels
        support = initial_support(
            "real", prepared.train_images, labels, prepared.num_classes, self.per_class, jax.random.key(self.seed)
        )
        solved = distill.label_solve(
            kernels[0],
            support.images,
            prepared.train_images,
            labels,
            num_classes=prepared.num_classes,
            ridge=self.ridge,
        )
        out = self.out or vacant_run(self.dataset, "label-solve", self.architecture, self.per_class)
        run = Run.create(out, config_of(self, ("out", "full_set_limit")))
        solved = dataclasses.replace(solved, metadata={"config": run.config, "versions": run.versions})
        run.log(0, **{name: float(column[0]) for name, column in solved.history.items() if name != "step"})
        rows = accuracy_table(self, prepared, solved, self.per_class, self.full_set_limit)
        write_results(run, prepared, solved, rows, f"{self.per_class} per class, labels solved")
        print_table(f"{self.dataset}: test accuracy of kernel regression", rows)
        print(f"{run.path}: report.html, distilled.npz, distilled.png")
