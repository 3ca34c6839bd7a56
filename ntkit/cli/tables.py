"""The tables that commands end with."""

from __future__ import annotations

import time

from ntkit.runs import Result, Run
from ntkit.runs.result import text


def finish(run: Run, result: Result, started: float, *others: str) -> None:
    """Write a command's result, print its tables, and say where it is.

    **Arguments:** `started`: by `time.monotonic`. `others`: files that the command wrote itself.
    """
    names = [*run.write(result), *others]
    print_tables(result)
    print(f"{run.path}: {', '.join(names)} ({time.monotonic() - started:.0f} s)")


def print_tables(result: Result) -> None:
    """Print a result's tables on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for name, rows in result.tables.items():
        title = result.title if name == next(iter(result.tables)) else result.caption(name)
        # Text, since in a string rich would read brackets, as a path may have them, as markup.
        table = Table(title=Text(title), title_justify="left")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        for number, column in enumerate(columns):
            table.add_column(Text(column.replace("_", " ")), justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*(Text(text(row.get(column))) for column in columns))
        Console().print(table)
