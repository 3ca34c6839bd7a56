"""The part of a long compiled loop that runs on the host: dispatch, records, checkpoints, interruption."""

from __future__ import annotations

import functools
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ntkit._checks import calling, check_integer, check_sequence, told, wrong
from ntkit._pytrees import pytree_dataclass
from ntkit.runs.bars import progress
from ntkit.runs.checkpoints import Mismatch
from ntkit.runs.directory import Run
from ntkit.runs.interruption import Interrupted, Interruption, uninterrupted
from ntkit.runs.method import Method
from ntkit.runs.processes import Group, is_key, of_leader, rows_of_all
from ntkit.runs.session import Session, check_session

State = TypeVar("State")
Record = dict[str, Any]

# Seconds that one dispatch should take: long enough to hide its cost, short enough for Ctrl-C and the progress bar.
DISPATCH_SECONDS = 1.0


def iterate(method: Method[State], steps: int, session: Session | None = None) -> tuple[State, dict[str, np.ndarray]]:
    """Take the steps of a method: from its beginning, or from the checkpoint of the session's run.

    Many steps run per dispatch, of about a second, and each gives the memory of the state before it away. The result
    depends on the method and the number of steps alone, however often the run was interrupted and resumed.

    **Arguments:** `method`: a [`Method`][ntkit.runs.Method]. `steps`: in all. `session`: records, checkpoints and
    progress, a [`Session`][ntkit.runs.Session] (default: none of these).

    **Returns:** the last state, and the history: `step`, the method's metrics and what `evaluate` gave, at every
    record, one array for each name.

    **Raises:** `ValueError` that names the argument, also if the run's checkpoint is one of another method or state;
    `FloatingPointError` if a metric is not finite; `Interrupted` (a `KeyboardInterrupt`) on Ctrl-C or SIGTERM, after
    the step was finished and, with a run, saved.
    """
    if not isinstance(method, Method):
        raise wrong("method", method, "an ntkit.runs.Method")
    steps = check_integer("steps", steps, 0)
    state, records = _run(method, steps, Session() if session is None else check_session(session))
    return state, columns(records)


@pytree_dataclass
class _Carry:
    """What a checkpoint holds: the state, and sums, or largest values, of metrics since the last record."""

    state: Any
    totals: dict[str, Array]
    count: Array

    @classmethod
    def beginning(cls, method: Method[Any], state: Any) -> _Carry:
        # An array of its own for each leaf: a dispatch gives the memory of every one away, and some states have the
        # same one twice. And none of a weak type, which only the first would have: the next would be compiled anew.
        return cls(jax.tree.map(_own, state), *_nothing(method))


def _nothing(method: Method[Any]) -> tuple[dict[str, Array], Array]:
    dtype = jnp.result_type(float)
    return {name: jnp.zeros((), dtype) for name in method.metrics}, jnp.zeros((), jnp.int32)


def _own(leaf: Any) -> Array:
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) and is_key(leaf) else jnp.array(leaf, jnp.result_type(leaf))


def _next(method: Method[Any], carry: _Carry) -> _Carry:
    state, metrics = method.step(carry.state)
    if set(metrics) != set(method.metrics):
        raise ValueError(
            f"method: got metrics {sorted(metrics)} from a step, expected {sorted(method.metrics)}, its `metrics`"
        )
    totals = {
        name: jnp.maximum(total, metrics[name]) if name in method.largest else total + metrics[name]
        for name, total in carry.totals.items()
    }
    totals = {name: total.astype(carry.totals[name].dtype) for name, total in totals.items()}
    return _Carry(state, totals, carry.count + 1)


@functools.partial(jax.jit, donate_argnums=1)
def _steps(method: Method[Any], carry: _Carry, count: Array) -> _Carry:
    """Take `count` steps. The count is traced: one compilation serves every length of dispatch."""

    def steps(method: Method[Any], carry: _Carry, count: Array) -> _Carry:
        return lax.fori_loop(0, count, lambda _, current: _next(method, current), carry)

    return method.devices.everywhere(steps)(method, carry, count)


@functools.partial(jax.jit, donate_argnums=1)
def _step(method: Method[Any], carry: _Carry) -> _Carry:
    """Take one step, outside of any loop."""
    return method.devices.everywhere(_next)(method, carry)


def _run(method: Method[Any], steps: int, session: Session) -> tuple[Any, list[Record]]:
    devices, group = method.devices, method.devices.group
    run = session.run if group.leads else None
    log_every = method.log_every if session.log_every is None else session.log_every
    placed = method if devices.mesh is None else devices.place(method)
    step, carry, records = _start(method, run, steps)
    saved_at = time.monotonic()
    dispatch = 1
    shown = session.show_progress and group.leads
    with Interruption() as interruption, progress(steps, method.what, step, enabled=shown) as bar:
        while step < steps:
            record_at = min(steps, (step // log_every + 1) * log_every)
            count = 1 if method.one_by_one else min(dispatch, record_at - step)
            started = time.monotonic()
            advanced = _step(placed, carry) if method.one_by_one else _steps(placed, carry, np.int32(count))
            carry = jax.block_until_ready(advanced)
            seconds = time.monotonic() - started
            if count == dispatch and not method.one_by_one:
                dispatch = max(1, min(2 * dispatch, int(count * DISPATCH_SECONDS / max(seconds, 1e-6))))
            step += count
            if step == record_at:
                with group.together():
                    record = _record(method, step, carry, session.evaluate)
                    records.append(record)
                    method.look(records)
                    if run is not None:
                        run.log(**record)
                carry = _Carry(carry.state, *devices.place(_nothing(method)))
                bar.update(step, **{name: record[name] for name in record if name not in ("step", *method.hidden)})
            else:
                bar.update(step)
            due = time.monotonic() - saved_at >= session.checkpoint_every
            dispatch, due, stop = _agreed(group, dispatch, due, interruption.signal)
            if due or stop is not None or step == steps:
                with group.together():
                    if run is not None:
                        kept = devices.on_host(carry)
                        with uninterrupted():
                            run.save(step, kept)
                saved_at = time.monotonic()
            if stop is not None and step < steps:
                where = "" if run is None else f", saved in {run.path}"
                raise Interrupted(f"stopped after {step} of {steps} steps{where}", stop)
    return devices.on_host(carry.state), records


def _record(
    method: Method[Any], step: int, carry: _Carry, evaluate: Callable[[Any], Mapping[str, float]] | None
) -> Record:
    count = int(carry.count)
    record: Record = {"step": step}
    for name in method.metrics:
        record[name] = float(carry.totals[name]) / (1 if name in method.largest else count)
    for name in method.metrics:
        if not np.isfinite(record[name]):
            raise FloatingPointError(f"{method.diverged}: the {name} is {record[name]} by step {step}; {method.advice}")
    if evaluate is not None:
        # A copy: the next dispatch gives this memory away, and who is shown a model may keep it.
        shown = jax.tree.map(jnp.copy, method.devices.on_host(carry.state))
        record |= check_record("evaluate", evaluate, method.model(shown))
    return record


def _start(method: Method[Any], run: Run | None, steps: int) -> tuple[int, _Carry, list[Record]]:
    """Give the step, state and records to go on from: those of the run, if it has any, in all processes."""
    devices, group = method.devices, method.devices.group
    carry = _Carry.beginning(method, method.init())
    step, records = 0, []
    with group.together():
        if run is not None and (restored := _restored(method, run, carry, steps)) is not None:
            step, carry = restored
            records = run.metrics()
    carry, (step, records) = of_leader(group, carry, (step, records))
    return step, devices.place(carry), records


def _restored(method: Method[Any], run: Run, carry: _Carry, steps: int) -> tuple[int, _Carry] | None:
    if (run.step or 0) > steps:
        where = f"the step of the checkpoint in {str(run.path)!r}"
        raise ValueError(f"steps: got {steps}, expected at least {run.step}, {where}")
    try:
        return run.restore(carry)
    except Mismatch as error:
        # Of a path as .state.learned['images'] what comes after the state.
        words = [re.findall(r"\w+", path) for path in error.paths]
        fields = dict.fromkeys(found[1] if len(found) > 1 else found[0] for found in words)
        names = " and ".join(f"another {method.from_argument.get(field, field)}" for field in fields)
        raise ValueError(
            f"run: got {str(run.path)!r}, which was begun with {names}, expected the arguments of its beginning"
        ) from error


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
