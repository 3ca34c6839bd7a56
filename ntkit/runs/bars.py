"""How far a loop is: a bar on a terminal, plain lines elsewhere."""

import contextlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ntkit._checks import check_flag, check_integer, check_text

_BAR_INTERVAL = 0.1
_LINE_INTERVAL = 5.0
_WINDOW = 30.0


class Progress(Protocol):
    """What `progress` yields."""

    def update(self, step: int, **metrics: Any) -> None:
        """Say that `step` steps are done in all. Metrics are scalars, read only when they are shown."""


@contextlib.contextmanager
def progress(total: int, description: str, start: int = 0, *, enabled: bool = True) -> Iterator[Progress]:
    """Show the progress of a loop on stderr, with its metrics, steps per second and time left.

    On a terminal it is a bar. Elsewhere it is a line at the first update, then at most one every 5 seconds, and one
    at the end. `update` costs about a microsecond between two refreshes and does not wait for JAX arrays then. Where
    stderr is closed nothing is shown, and a line that cannot be written is left out.

    **Arguments:**

    - `total`: the number of steps of the whole run.
    - `description`: what the loop does, in a word or two.
    - `start`: the step that the loop starts from, when it is resumed.
    - `enabled`: False shows nothing.

    **Raises:**

    - `ValueError`: `total` or `start` is negative.
    """
    total, start = check_integer("total", total, 0), check_integer("start", start, 0)
    check_text("description", description)
    if not check_flag("enabled", enabled) or sys.stderr is None or sys.stderr.closed:
        yield _Silent()
        return
    meter = _Meter(total, start)
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(meter, description) as display:
            yield display
    else:
        display = _Lines(meter, description)
        try:
            yield display
        finally:
            display.close()


class _Silent:
    def update(self, step: int, **metrics: Any) -> None:
        pass


class _Meter:
    """Speed over the last half minute, so that compilation in the first step is soon forgotten."""

    def __init__(self, total: int, start: int) -> None:
        self.total = total
        self.step = start
        self._samples = deque([(time.monotonic(), start)])
        self._compiled = False

    def record(self, step: int, now: float) -> None:
        self.step = step
        self._samples.append((now, step))
        if not self._compiled and len(self._samples) > 2:
            self._samples.popleft()
            self._compiled = True
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW:
            self._samples.popleft()

    def rate(self) -> float | None:
        (first, step_first), (last, step_last) = self._samples[0], self._samples[-1]
        if last <= first or step_last <= step_first:
            return None
        return (step_last - step_first) / (last - first)

    def speed(self) -> str:
        rate = self.rate()
        if rate is None:
            return ""
        return f"{rate:.3g} steps/s" if rate >= 0.5 else f"{1 / rate:.3g} s/step"

    def left(self) -> str:
        rate = self.rate()
        if rate is None:
            return ""
        seconds = math.ceil(max(self.total - self.step, 0) / rate)
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return (f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}") + " left"


class _Lines:
    def __init__(self, meter: _Meter, description: str) -> None:
        self._meter = meter
        self._description = description
        self._shown = -math.inf
        self._pending: tuple[int, dict[str, Any]] | None = None

    def update(self, step: int, **metrics: Any) -> None:
        now = time.monotonic()
        self._pending = (step, metrics)
        if now - self._shown >= _LINE_INTERVAL:
            self._show(now)

    def close(self) -> None:
        if self._pending is not None:
            self._show(time.monotonic())

    def _show(self, now: float) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        text = _text(metrics)
        self._meter.record(step, time.monotonic())
        self._shown = now
        total = self._meter.total
        percent = f"{100 * step // total if total else 100:3d}%"
        parts = [self._description, f"{step:{len(str(total))}d}/{total}", percent, text]
        parts += [self._meter.speed(), self._meter.left()]
        # ValueError: of a stream that was closed, or that cannot encode the description.
        with contextlib.suppress(OSError, ValueError):
            print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bar(meter: _Meter, description: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = [
        # markup=False: a description may contain brackets of its own.
        TextColumn("{task.description}", markup=False, style="bold"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}", markup=False),
        TextColumn("{task.fields[speed]}", markup=False, style="cyan"),
        TextColumn("{task.fields[left]}", markup=False, style="green"),
    ]
    with RichProgress(*columns, console=Console(stderr=True), refresh_per_second=8, expand=True) as bar:
        task = bar.add_task(description, total=meter.total, completed=meter.step, metrics="", speed="", left="")
        display = _Bar(meter, bar, task)
        try:
            yield display
        finally:
            display.close()


class _Bar:
    def __init__(self, meter: _Meter, bar: Any, task: Any) -> None:
        self._meter = meter
        self._bar = bar
        self._task = task
        self._shown = -math.inf
        self._pending: tuple[int, dict[str, Any]] | None = None

    def update(self, step: int, **metrics: Any) -> None:
        now = time.monotonic()
        self._pending = (step, metrics)
        if now - self._shown >= _BAR_INTERVAL:
            self._show()

    def close(self) -> None:
        self._show()

    def _show(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        text = _text(metrics)
        # After the metrics were read: that waits for the device.
        self._shown = time.monotonic()
        self._meter.record(step, self._shown)
        self._bar.update(self._task, completed=step, metrics=text, speed=self._meter.speed(), left=self._meter.left())


def _text(metrics: Mapping[str, Any]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {_value(name, value)}" for name, value in metrics.items())


def _value(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    number = float(value)
    if "accuracy" in name and math.isfinite(number):
        return f"{100 * number:.1f}%"
    return f"{number:.4g}"
