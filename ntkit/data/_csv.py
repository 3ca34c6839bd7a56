"""Your own table, as a CSV."""

from __future__ import annotations

import array
import contextlib
import csv
import os

import jax
import numpy as np

from ntkit._checks import check_file
from ntkit.data._splits import made
from ntkit.data.dataset import Dataset

TARGET = "target"
_MOST = float(np.finfo(np.float32).max)


def load_csv(
    name: str | os.PathLike[str], target: str | None, test_fraction: float | None, key: jax.Array | None
) -> Dataset:
    """Read a table of numbers with a column of classes; see `ntkit.data.load`."""
    path, given = check_file("name", name, "a CSV with a target column"), os.fspath(name)
    target = TARGET if target is None else target
    values, classes = array.array("d"), []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, skipinitialspace=True, strict=True)
            columns = [column.strip() for column in next(rows, [])]
            _check_columns(given, columns, target)
            place = columns.index(target)
            # Rows are counted as spreadsheets do, the header among them.
            for number, row in enumerate(rows, 2):
                if not row:
                    continue
                if len(row) != len(columns):
                    raise ValueError(
                        f"name: got {given!r} with {len(row)} cells in row {number}, expected {len(columns)} as in its "
                        "header"
                    )
                cells = [_class(cell) if i == place else _number(cell) for i, cell in enumerate(row)]
                if None in cells:
                    wrong = cells.index(None)
                    expected = "a class: a string or an integer" if wrong == place else "a finite number"
                    raise ValueError(
                        f"name: got {given!r} with {row[wrong][:100]!r} in row {number}, column {columns[wrong]!r}, "
                        f"expected {expected}"
                    )
                classes.append(cells.pop(place))
                values.extend(cell for cell in cells if isinstance(cell, float))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"name: got {given!r}, expected a CSV in UTF-8: {error}") from error
    if not classes:
        raise ValueError(f"name: got {given!r} without rows, expected some below its header")
    features = np.asarray(values, np.float32).reshape(len(classes), -1)
    return made(name, (features, np.asarray(classes)), None, test_fraction, key)


def _check_columns(name: str, columns: list[str], target: str) -> None:
    if target not in columns:
        shown = ", ".join(map(repr, columns[:20])) + (", …" if len(columns) > 20 else "")
        raise ValueError(f"target: got {target!r}, expected a column of {name!r}: {shown or 'it is empty'}")
    if len({*columns}) < len(columns):
        doubled = next(column for column in columns if columns.count(column) > 1)
        raise ValueError(f"name: got {name!r} with two columns {doubled!r}, expected a name for each")
    if len(columns) < 2:
        raise ValueError(f"name: got {name!r} with the column {target!r} alone, expected features beside it")


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(cell.strip().lower())
    return number if abs(number) <= _MOST else None


def _class(cell: str) -> str | None:
    """A string or an integer; a number that is none is a target of regression, or missing."""
    try:
        int(cell)
    except ValueError:
        with contextlib.suppress(ValueError):
            float(cell)
            return None
    return cell.strip() or None
