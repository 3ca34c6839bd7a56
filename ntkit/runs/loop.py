"""The part of a long compiled loop that runs on the host: dispatch, records, checkpoints, interruption."""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from ntkit._checks import (
    calling,
    check_callable,
    check_flag,
    check_instance,
    check_integer,
    check_seconds,
    check_sequence,
    told,
    wrong,
)
from ntkit.runs.checkpoints import Mismatch
from ntkit.runs.directory import Run
from ntkit.runs.interruption import Interrupted, Interruption, uninterrupted
from ntkit.runs.processes import ALONE, Group, of_leader, rows_of_all
from ntkit.runs.progress import progress

State = TypeVar("State")
Record = dict[str, Any]

# Seconds that one dispatch should take: long enough to hide its cost, short enough for Ctrl-C and the progress bar.
DISPATCH_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Loop(Generic[State]):
    """Steps in dispatches of about a second, with a record every so often, checkpoints, and an end on Ctrl-C.

    **Fields:**

    - `advance`: `advance(state, count) -> state`, `count` steps, compiled.
    - `record`: `record(step, state) -> (record, state)`, with numbers to keep and what the next record starts from.
      Called every `log_every` steps, and after the last one; a fixed step, whatever the speed, so that records are
      deterministic too.
    - `steps`, `log_every`: numbers of steps.
    - `what`: what the progress bar calls the work. `hidden`: names in a record that it does not show.
    - `run`: where records and checkpoints go, and come from if there are any. `checkpoint_every`: seconds.
    - `from_argument`: what the user knows fields of the state as, where that is not their name.
    - `one_by_one`: whether `advance` takes but one step.
    - `group`: the processes that run this loop. `place`, `on_host`: of the state, to the devices of all and back.
    """

    advance: Callable[[State, int], State]
    record: Callable[[int, State], tuple[Record, State]]
    steps: int
    log_every: int
    what: str
    hidden: Sequence[str] = ()
    run: Run | None = None
    checkpoint_every: float = 60.0
    from_argument: Mapping[str, str] = dataclasses.field(default_factory=dict)
    show_progress: bool = False
    one_by_one: bool = False
    group: Group = ALONE
    place: Callable[[State], State] = lambda state: state
    on_host: Callable[[State], State] = lambda state: state

    def __post_init__(self) -> None:
        check_callable("advance", self.advance, "a function of a state and a number of steps")
        check_callable("record", self.record, "a function of a step and a state")
        check_integer("steps", self.steps, 0)
        check_session(self.log_every, self.run, self.checkpoint_every, self.show_progress)

    def __call__(self, state: State) -> tuple[State, list[Record]]:
        """Take the steps that are left from a state, or from the run's checkpoint; give the last state and all records.

        **Raises:** `Interrupted` on Ctrl-C or SIGTERM, after the step was finished and, with a run, saved; `ValueError`
        if the run's checkpoint is not one of this state.
        """
        group = self.group
        run = self.run if group.leads else None
        step, state, records = self._start(run, state)
        saved_at = time.monotonic()
        dispatch = 1
        shown = self.show_progress and group.leads
        with Interruption() as interruption, progress(self.steps, self.what, step, enabled=shown) as bar:
            while step < self.steps:
                record_at = min(self.steps, (step // self.log_every + 1) * self.log_every)
                count = min(dispatch, record_at - step)
                started = time.monotonic()
                state = jax.block_until_ready(self.advance(state, count))
                seconds = time.monotonic() - started
                if count == dispatch and not self.one_by_one:
                    dispatch = max(1, min(2 * dispatch, int(count * DISPATCH_SECONDS / max(seconds, 1e-6))))
                step += count
                if step == record_at:
                    with group.together():
                        record, state = self.record(step, state)
                        records.append(record)
                        if run is not None:
                            run.log(**record)
                    bar.update(step, **{name: record[name] for name in record if name not in ("step", *self.hidden)})
                else:
                    bar.update(step)
                due = time.monotonic() - saved_at >= self.checkpoint_every
                dispatch, due, stop = _agreed(group, dispatch, due, interruption.signal)
                if due or stop is not None or step == self.steps:
                    with group.together():
                        if run is not None:
                            kept = self.on_host(state)
                            with uninterrupted():
                                run.save(step, kept)
                    saved_at = time.monotonic()
                if stop is not None and step < self.steps:
                    where = "" if run is None else f", saved in {run.path}"
                    raise Interrupted(f"stopped after {step} of {self.steps} steps{where}", stop)
        return state, records

    def _start(self, run: Run | None, state: State) -> tuple[int, State, list[Record]]:
        """Give the step, state and records to go on from: those of the run, if it has any, in all processes."""
        step, records = 0, []
        with self.group.together():
            if run is not None and (restored := self._restored(run, state)) is not None:
                step, state = restored
                records = run.metrics()
        state, (step, records) = of_leader(self.group, state, (step, records))
        return step, self.place(state), records

    def _restored(self, run: Run, state: State) -> tuple[int, State] | None:
        if (run.step or 0) > self.steps:
            where = f"the step of the checkpoint in {str(run.path)!r}"
            raise ValueError(f"steps: got {self.steps}, expected at least {run.step}, {where}")
        try:
            return run.restore(state)
        except Mismatch as error:
            fields = dict.fromkeys(re.findall(r"\w+", path)[0] for path in error.paths)
            names = " and ".join(f"another {self.from_argument.get(field, field)}" for field in fields)
            raise ValueError(
                f"run: got {str(run.path)!r}, which was begun with {names}, expected the arguments of its beginning"
            ) from error


def check_session(log_every: object, run: object, checkpoint_every: object, show_progress: object) -> None:
    """Check what every long computation is given about its records, its checkpoints and its progress."""
    check_integer("log_every", log_every)
    if run is not None:
        check_instance("run", run, Run, "an ntkit.runs.Run, of Run.create or Run.resume, or None")
    check_seconds("checkpoint_every", checkpoint_every)
    check_flag("show_progress", show_progress)


def check_record(name: str, evaluate: Callable[[Any], Any], model: Any) -> dict[str, float]:
    """Call a user's `evaluate`, and give the numbers that it returns by their names."""
    with calling(name):
        found = evaluate(model)
    if not isinstance(found, Mapping):
        raise ValueError(f"{name}: got one that returns {told(found)}, expected numbers by their names")
    try:
        return {str(key): float(value) for key, value in found.items()}
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got one that returns {told(found)}, expected numbers by their names") from None


def columns(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Give the numbers in records as one array for each name; where one of them has none, it is NaN."""
    expected = "records, mappings of names to numbers"
    if not all(isinstance(record, Mapping) for record in check_sequence("records", records, expected)):
        raise wrong("records", records, expected)
    columns = {}
    for name in dict.fromkeys(name for record in records for name in record):
        # A run may hold records of others too, of anything that JSON can hold.
        values = [record.get(name) for record in records]
        if any(isinstance(value, int | float) for value in values):
            columns[name] = np.asarray([value if isinstance(value, int | float) else np.nan for value in values])
    return {name: column for name, column in columns.items() if column.dtype.kind in "if"}


def _agreed(
    group: Group, dispatch: int, due: bool, stop: signal.Signals | None
) -> tuple[int, bool, signal.Signals | None]:
    """Decide for all processes: the leading one on speed and checkpoints, and any of them that it is time to stop."""
    if not group.several:
        return dispatch, due, stop
    rows = rows_of_all(group, dispatch, due, stop or 0)
    number = int(rows[:, 2].max())
    return int(rows[0, 0]), bool(rows[0, 1]), signal.Signals(number) if number else None
