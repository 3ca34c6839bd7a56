"""What a computation gives to be looked at, in one form: it is written, printed and reported in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ntkit._checks import check_named, check_sequence, check_text, told, wrong


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of a whole, such as an accuracy, measured once or several times; written in percent.

    **Fields:** `values`: from 0 to 1, one for each repeat.
    """

    values: tuple[float, ...]

    def __init__(self, *values: float) -> None:
        object.__setattr__(self, "values", tuple(map(float, values)))
        if not values:
            raise ValueError("values: got none, expected at least one")

    @property
    def mean(self) -> float:
        """The mean over repeats."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """The standard deviation over repeats."""
        return float(np.std(self.values))

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        spread = f" ± {100 * self.std:.1f}" if len(self.values) > 1 else ""
        return f"{100 * self.mean:.1f}{spread} %"


Cell: TypeAlias = "str | int | float | Share | None"
Row: TypeAlias = "Mapping[str, Cell]"


@dataclasses.dataclass(frozen=True)
class Result:
    """Numbers, tables, pictures and arrays, for [`Run.write`][ntkit.runs.Run.write] and for whoever goes on with them.

    **Fields:**

    - `title`: one line.
    - `summary`: a few values by their names.
    - `tables`: rows by the name of a table; a row maps columns to text, numbers, [`Share`][]s, or `None` for nothing.
    - `figures`: matplotlib figures by name: those of the files that they are written to.
    - `arrays`: what is too long for a table.
    - `captions`: of tables and figures by their names, where the name says too little.

    **Raises:** `ValueError` that names the field.
    """

    title: str
    summary: Mapping[str, Cell] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("title", self.title)
        for name in ("summary", "figures", "arrays", "captions"):
            check_named(name, getattr(self, name), "a mapping with strings as keys")
        expected = "rows, mappings of columns to values, by the names of tables"
        for name, rows in check_named("tables", self.tables, expected).items():
            if not all(isinstance(row, Mapping) for row in check_sequence("tables", rows, expected)):
                raise wrong("tables", rows, expected)
            for row in rows:
                for column, cell in row.items():
                    if not (cell is None or isinstance(cell, str | int | float | np.number | Share)):
                        raise ValueError(
                            f"tables: got {told(cell)} as {column!r} of {name!r}, expected text, a number or a Share"
                        )

    def caption(self, name: str) -> str:
        """Give the caption of a table or a figure."""
        return self.captions.get(name, name.replace("_", " ").capitalize())

    def numbers(self) -> dict[str, Any]:
        """Give the summary and the tables in JSON's types: a [`Share`][] of one value as that, else as a mapping."""

        def plain(row: Row) -> dict[str, Any]:
            return {column: _plain(cell) for column, cell in row.items()}

        return {
            "title": self.title,
            "summary": plain(self.summary),
            **{name: [plain(row) for row in rows] for name, rows in self.tables.items()},
        }


def text(value: object) -> str:
    """Write a cell as people read it."""
    if value is None:
        return ""
    if isinstance(value, Share | str | bool) or not hasattr(value, "__float__"):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{float(value):.4g}"


def _plain(cell: Cell) -> Any:
    if isinstance(cell, Share):
        if len(cell.values) == 1:
            return cell.values[0]
        return {"mean": cell.mean, "std": cell.std, "values": list(cell.values)}
    return cell.item() if isinstance(cell, np.generic) else cell
