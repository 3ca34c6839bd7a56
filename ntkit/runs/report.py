"""`report.html`: what a run gave, in one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, SupportsFloat, TypeGuard

from ntkit._checks import check_file, check_instance, check_named, check_text, wrong
from ntkit.runs.files import atomic_write
from ntkit.runs.result import Result, Row, text

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667085; --line: #e4e7ec; --page: #f7f8fa;
  --card: #ffffff; --accent: #2f6fdb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2c323d; --page: #12151b;
  --card: #1a1e26; --accent: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.015em; }
h2 { font-size: 1.05rem; margin: 2.4rem 0 .7rem; }
p.summary { color: var(--soft); margin: 0 0 .6rem; max-width: 44rem; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.4rem 0; }
dl.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .7rem .9rem; }
dl.tiles dt { color: var(--soft); font-size: .82rem; }
dl.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 650; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .7rem; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { padding: .5rem .9rem; text-align: left; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child > * { border-top: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .82rem; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: .7rem; padding: .8rem;
  overflow-x: auto; text-align: center; }
figure img { max-width: 100%; height: auto; }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; margin-bottom: .6rem; }
details td { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85rem;
  overflow-wrap: anywhere; }
details th { width: 38%; color: var(--soft); overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .82rem; margin-top: 2.5rem; }
"""


def write_report(
    path: str | os.PathLike[str],
    result: Result,
    *,
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
    device: Mapping[str, Any] | None = None,
    footer: str = "",
) -> None:
    """Write a result as one self-contained HTML page: style and pictures are inside, everything else is escaped.

    **Arguments:**

    - `path`: the file to write, atomically.
    - `result`: its title is the heading, its summary is shown large. A column that a row lacks is empty.
    - `config`: the configuration, shown folded together with `versions` and `device`.
    - `versions`: package versions.
    - `device`: the device.
    - `footer`: a last line.

    **Raises:**

    - `ValueError`: a figure is no PNG, or none of the three.
    - `OSError`: a picture cannot be read or the report not written.
    """
    check_instance("result", result, Result, "an ntkit.runs.Result")
    check_text("footer", footer)
    for name, values in (("config", config), ("versions", versions), ("device", device)):
        if values is not None:
            check_named(name, values, "a mapping with strings as keys")
    body = [f"<header><h1>{escape(result.title)}</h1>", _summary(result.summary), "</header>"]
    for name, rows in result.tables.items():
        body += ["<section>", f"<h2>{escape(result.caption(name))}</h2>", _table(rows), "</section>"]
    for name, figure in result.figures.items():
        caption = result.caption(name)
        body += ["<section>", f"<h2>{escape(caption)}</h2>", _picture(name, caption, figure), "</section>"]
    for caption, values in (("Configuration", config), ("Versions", versions), ("Device", device)):
        if values:
            body += [f"<details><summary>{caption}</summary>", _pairs(values), "</details>"]
    if footer:
        body.append(f"<footer>{escape(footer)}</footer>")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(result.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )
    with atomic_write(path) as file:
        # What a path may have in it and UTF-8 has not is no reason to do without the page.
        file.write(page.encode(errors="backslashreplace"))


def _summary(summary: Row) -> str:
    tiles = [f"<div><dt>{escape(name)}</dt><dd>{escape(text(value))}</dd></div>" for name, value in summary.items()]
    return '<dl class="tiles">' + "".join(tiles) + "</dl>" if tiles else ""


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return '<p class="summary">No rows.</p>'
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name: all(_is_number(row[name]) for row in rows if row.get(name) is not None) for name in columns}

    def attribute(name: str) -> str:
        return ' class="number"' if numeric[name] else ""

    head = "".join(f"<th{attribute(name)}>{escape(name.replace('_', ' '))}</th>" for name in columns)
    lines = [
        "<tr>" + "".join(f"<td{attribute(name)}>{escape(text(row.get(name)))}</td>" for name in columns) + "</tr>"
        for row in rows
    ]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _pairs(values: Mapping[str, Any]) -> str:
    lines = [f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in _flatten(values)]
    return f'<div class="scroll"><table><tbody>{"".join(lines)}</tbody></table></div>'


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _picture(name: str, caption: str, figure: object) -> str:
    data = png(name, figure)
    # A PNG begins with its signature and a header chunk that has the size in pixels.
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"figures[{name!r}]: got something else, expected a PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    source = base64.b64encode(data).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{source}" width="{width}" height="{height}" '
        f'alt="{escape(caption)}"></figure>'
    )


def png(name: str, figure: object) -> bytes:
    """Give the bytes of a figure, without date or version: the same data give the same bytes.

    **Arguments:** `figure`: a matplotlib `Figure`, the bytes of a PNG, or the path of one.
    """
    if isinstance(figure, bytes):
        return figure
    if isinstance(figure, str | os.PathLike):
        return check_file(f"figures[{name!r}]", figure, "a PNG").read_bytes()
    draw = getattr(figure, "savefig", None)
    if isinstance(figure, type) or not callable(draw):
        raise wrong(f"figures[{name!r}]", figure, "a matplotlib Figure, the bytes of a PNG or the path of one")
    buffer = io.BytesIO()
    draw(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _is_number(value: object) -> TypeGuard[SupportsFloat]:
    # numpy's and JAX's scalars have __float__ too; strings have not.
    return hasattr(value, "__float__")
