"""Parts of a measurement in processes of their own: one that fails or hangs costs only itself.

A part is a command that writes its numbers, a JSON object, to the path in the variable `PART_RESULT`, as often as it
has new ones ([`report`][]). What it had written counts, however it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

RESULT = "PART_RESULT"
# A part with less time than this is not begun: its imports alone take as long.
LEAST_SECONDS = 15.0

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """A command, what it measures, and the seconds that it may take."""

    what: str
    command: Sequence[str]
    limit: float


def report(numbers: Mapping[str, Any]) -> None:
    """Write the numbers that a part has so far, in its own process."""
    path = Path(os.environ[RESULT])
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(numbers))
    temporary.replace(path)


def run(
    parts: Mapping[str, Part],
    deadline: float,
    done: Callable[[dict[str, Row]], None],
    environment: Mapping[str, str] | None = None,
    least: float = LEAST_SECONDS,
) -> dict[str, Row]:
    """Run parts one after the other, until `time.monotonic()` is `deadline`.

    **Arguments:** `done`: called after each part with what there is so far. `environment`: variables beside this
    process's own. `least`: seconds without which a part is left out.

    **Returns:** for each part its `"numbers"` and `"seconds"`, and `"why_not_all"` where it did not end well.
    """
    found: dict[str, Row] = {}
    for name, part in parts.items():
        print(f"\n{name}: {part.what}", flush=True)
        left = deadline - time.monotonic()
        found[name] = (
            {"numbers": {}, "seconds": 0.0, "why_not_all": "left out: no time was left"}
            if left < least
            else run_alone(part, min(part.limit, left), environment or {})
        )
        if "why_not_all" in found[name]:
            print(f"  {found[name]['why_not_all']}", flush=True)
        done(found)
    return found


def run_alone(part: Part, limit: float, environment: Mapping[str, str]) -> Row:
    """Run one part, and end whatever is left of it."""
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "errors").open("w+") as errors:
        result = Path(directory) / "result.json"
        started = time.monotonic()
        process = subprocess.Popen(
            part.command,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment, RESULT: str(result)},
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Its children too, also where it ended well, or this process is told to end.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - started
        numbers = json.loads(result.read_text()) if result.exists() else {}
        row: Row = {"numbers": numbers, "seconds": seconds}
        why = why_not_all(status, limit, errors)
        if why is None and not numbers:
            why = "ended well, and gave no numbers"
        return row if why is None else row | {"why_not_all": why}


def why_not_all(status: int | None, limit: float, errors: TextIO) -> str | None:
    """Say how a process ended that did not end well, with the last that it said."""
    if status == 0:
        return None
    errors.seek(0)
    said = [line.strip() for line in errors if line.strip()][-8:]
    print("".join(f"  | {line}\n" for line in said), end="")
    if status is None:
        return f"stopped after {limit:.0f} s"
    ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return ": ".join([ended, *said[-1:]])
