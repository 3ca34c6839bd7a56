"""`metrics.jsonl`: one JSON object per line, appended while a run goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntkit._checks import check_file, check_real, wrong
from ntkit.runs.files import atomic_write


def append(path: Path, record: Mapping[str, object]) -> None:
    """Append one line in a single write, so that a kill can tear no line but the last."""
    line = json.dumps({name: _plain(name, value) for name, value in record.items()}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """All records, oldest first. A torn last line is left out; a broken one before it is a `ValueError`."""
    records = []
    lines = _lines(path)
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise ValueError(f"{str(path)!r}, line {number}: expected a JSON object with a step, got {line[:80]!r}")
    return records


def keep_until(path: Path, step: int | None) -> None:
    """Drop the records after `step` (all of them for None) and what cannot be read, by writing the file anew."""
    lines = _lines(path)
    kept = []
    for line in lines:
        record = _parse(line)
        if step is not None and record is not None and record["step"] <= step:
            kept.append(line)
    if kept != lines:
        with atomic_write(path) as file:
            file.writelines(kept)


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


def _parse(line: bytes) -> dict[str, Any] | None:
    # Without its end a line may be torn in the middle of a number and still parse.
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
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
