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
import sys
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
    """A command, what it measures, and the seconds that it may take.

    **Fields:** `waits`: whether it calls [`wait`][] when it is ready, and may so be begun while another one measures.
    """

    what: str
    command: Sequence[str]
    limit: float
    waits: bool = False


def wait() -> None:
    """Wait, in a part's own process, until it is its turn."""
    sys.stdin.readline()


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
    names: list[str] = list(parts)
    begun: _Begun | None = None
    try:
        for name, following in zip(names, [*names[1:], None], strict=True):
            print(f"\n{name}: {parts[name].what}", flush=True)
            left = deadline - time.monotonic()
            if left < least:
                found[name] = {"numbers": {}, "seconds": 0.0, "why_not_all": "left out: no time was left"}
            else:
                with begun or _Begun(parts[name], environment or {}) as one:
                    begun = None
                    if following is not None and parts[following].waits:
                        begun = _Begun(parts[following], environment or {})
                    found[name] = one.measured(min(parts[name].limit, left))
            if "why_not_all" in found[name]:
                print(f"  {found[name]['why_not_all']}", flush=True)
            done(found)
    finally:
        if begun is not None:
            with begun:
                pass
    return found


class _Begun:
    """The process of a part, which is ended with all of its children when it is left."""

    def __init__(self, part: Part, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._result = Path(self._folder.name) / "result.json"
        self._errors = (Path(self._folder.name) / "errors").open("w+")
        self._process = subprocess.Popen(
            part.command,
            stderr=self._errors,
            stdin=subprocess.PIPE if part.waits else subprocess.DEVNULL,
            env={**os.environ, **environment, RESULT: str(self._result)},
            start_new_session=True,
        )

    def __enter__(self) -> _Begun:
        return self

    def __exit__(self, *_: object) -> None:
        # Its children too, also where it ended well, or this process is told to end; once, since another process may
        # have its number later.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()
        self._folder.cleanup()

    def measured(self, limit: float) -> Row:
        """Let it measure, and give what it found."""
        started = time.monotonic()
        if self._process.stdin is not None:
            # It may have failed before its turn.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            status: int | None = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        numbers = json.loads(self._result.read_text()) if self._result.exists() else {}
        row: Row = {"numbers": numbers, "seconds": time.monotonic() - started}
        why = why_not_all(status, limit, self._errors)
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
