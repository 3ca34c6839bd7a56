"""`metrics.jsonl`: one JSON object per line, appended while a run goes on."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntkit._checks import check_file, check_real, wrong
from ntkit.runs.files import atomic_write, cannot_write


def append(path: Path, record: Mapping[str, object]) -> None:
    """Append one line in a single write, so that a kill can tear no line but the last."""
    line = (json.dumps({name: _plain(name, value) for name, value in record.items()}) + "\n").encode()
    try:
        with open(path, "ab", buffering=0) as file:
            before = file.tell()
            if file.write(line) < len(line):
                file.truncate(before)  # or the next record would continue it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise cannot_write(path, error) from None


def read(path: Path) -> list[dict[str, Any]]:
    """All records, oldest first. A torn last line is left out; a broken one before it is a `ValueError`."""
    records = []
    lines = _lines(path)
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise ValueError(f"{str(path)!r}, line {number}: got {line[:80]!r}, expected a JSON object with a step")
    return records


def text(path: Path) -> str:
    """The file as it is, for a checkpoint to hold."""
    return b"".join(_lines(path)).decode(errors="replace")


def go_back(path: Path, text: str, step: int) -> bool:
    """Drop the records after `step`, and what cannot be read; give whether the file had lost any of those in `text`.

    These are then all that is kept.
    """
    lines = _lines(path)
    kept, saved = _until(step, lines), _until(step, text.encode().splitlines(keepends=True))
    lost = kept[: len(saved)] != saved
    if lost:
        kept = saved
    if kept != lines:
        with atomic_write(path) as file:
            file.writelines(kept)
    return lost


def mend(path: Path) -> None:
    """Cut off a torn last line, so that the next record does not continue it."""
    lines = _lines(path)
    if lines and _parse(lines[-1]) is None:
        with atomic_write(path) as file:
            file.writelines(lines[:-1])


def _lines(path: Path) -> list[bytes]:
    try:
        return check_file("path", path, "a run's records").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _until(step: int, lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if (record := _parse(line)) is not None and record["step"] <= step]


def _parse(line: bytes) -> dict[str, Any] | None:
    # Without its end a line may be torn in the middle of a number and still parse.
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _plain(name: str, value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(check_real(name, value)).tolist()
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    raise wrong(name, value, "a number, a string, or an array or list of them")
