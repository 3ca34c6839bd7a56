"""How a long computation is run: where it is kept, how often it is looked at, and what is shown meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ntkit._checks import check_callable, check_flag, check_instance, check_integer, check_seconds
from ntkit.runs.directory import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """How a long computation is run. What it computes does not depend on it, but for how often it is looked at.

        session = ntkit.runs.Session(run=ntkit.runs.Run.create("runs/one", {}), show_progress=True)
        ntkit.distill.distill(…, session=session)

    **Fields:**

    - `run`: a run directory to log and checkpoint to. If it has a checkpoint, the computation goes on from there.
    - `log_every`: steps between two records of the history, each of which has means over these steps (default: that of
      the method).
    - `checkpoint_every`: seconds between checkpoints.
    - `show_progress`: whether to show a progress bar on stderr.
    - `evaluate`: called with the current model at each record; the numbers that it returns by their names are added to
      the record. It may keep the model.

    **Raises:** `ValueError` that names the field.
    """

    run: Run | None = None
    log_every: int | None = None
    checkpoint_every: float = 60.0
    show_progress: bool = False
    evaluate: Callable[[Any], Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        if self.run is not None:
            check_instance("run", self.run, Run, "an ntkit.runs.Run, of Run.create or Run.resume, or None")
        if self.log_every is not None:
            check_integer("log_every", self.log_every)
        check_seconds("checkpoint_every", self.checkpoint_every)
        check_flag("show_progress", self.show_progress)
        if self.evaluate is not None:
            check_callable("evaluate", self.evaluate, "a function, or None")


def check_session(session: object) -> Session:
    """Give a session, or raise `ValueError` that names the argument."""
    return check_instance("session", session, Session, "an ntkit.runs.Session")
