"""Pictures: images and labels, a run's history, transfer, a kernel's features and dynamics, a network's convergence."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ntkit._checks import (
    check_instance,
    check_integer,
    check_named,
    check_number,
    check_path,
    check_real,
    check_sequence,
    check_text,
    wrong,
)
from ntkit.runs.files import atomic_write
from ntkit.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ntkit.features import Sweep
    from ntkit.networks import Convergence

_INK = "#1d2129"
_SOFT = "#667085"
_FAINT = "#e4e7ec"
_OWN = "#2f6fdb"
_OTHER = "#e8590c"
_BAR = "#b6bfcc"
_LINES = ("#2f6fdb", "#e8590c", "#0f9d76", "#9747c9", "#c99a06", "#d6336c")
# Twice the screen's usual density: text stays sharp on a fine one.
_DPI = 200
# Of a name in a figure: longer ones would make it as wide.
_LONGEST = 100


def image_grid(
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    classes: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    columns: int | None = None,
    scale: Literal["image", "grid"] | tuple[float, float] = "image",
    title: str | None = None,
) -> "Figure":
    """Draw images in a grid, each with a small chart of its label, sorted into one band of rows per class.

    Every image pixel is a square of whole screen pixels when the figure is saved at its own resolution. Under an
    image whose label is soft stands a bar per class, on a common scale: blue for the class of its band, orange for
    the greatest value where that is another class. With more classes than fit it says the greatest value and its class.

    **Arguments:**

    - `images`: `(n, height, width, channels)` with 1 or 3 channels, of any real range.
    - `labels`: soft labels `(n, C)`, or classes `(n,)` of integers. By default none.
    - `classes`: `(n,)` integers, the band of every image, such as the class that it started from. By default the
      greatest entry of its label.
    - `class_names`: the names of classes 0, 1, …; by default their numbers.
    - `columns`: images per row; by default chosen so that the picture is a little wider than high.
    - `scale`: "image" stretches each image from its least to its greatest value, "grid" does so for all together, and
      `(low, high)` shows that range, clipped.
    - `title`: a heading.

    **Raises:**

    - `ValueError`: an argument has the wrong shape or value.
    """
    from matplotlib.figure import Figure

    pictures = _checked_images(images)
    n, height, width, _ = pictures.shape
    soft, bands = _checked_labels(labels, n)
    if classes is not None:
        bands = _checked_classes(classes, n)
    pixels = _to_bytes(pictures, scale)
    columns = None if columns is None else check_integer("columns", columns)
    if class_names is not None:
        check_sequence("class_names", class_names, "names of classes 0, 1, …")
    if title is not None:
        check_text("title", title)

    def name(index: int) -> str:
        return _shown(class_names[index] if class_names is not None and 0 <= index < len(class_names) else index)

    zoom = max(1, round(_target_size(n) / max(height, width)))
    cell_width, cell_height = zoom * width, zoom * height
    gap = max(6, round(0.08 * max(cell_width, cell_height)))
    # A band of one image needs no row of its own: its class is written above it.
    named_above = bands is not None and len(np.unique(bands)) == n
    named_left = bands is not None and not named_above
    groups = _groups(bands if named_left else None, np.arange(n) if bands is None else np.argsort(bands, kind="stable"))
    charted = soft is not None and 1 < soft.shape[1] <= cell_width // 4
    above = 34 if named_above else 0
    below = 0 if soft is None else 6 + (max(28, round(0.32 * cell_height)) if charted else 30)
    row_height = above + cell_height + below + (gap if soft is None else max(gap, 12))
    if columns is None:
        columns = _columns([len(group) for _, group in groups], cell_width + gap, row_height)

    margin, band_gap = 28, 12
    left = margin + (round(14.6 * max(len(name(band)) for band, _ in groups)) + 20 if named_left else 0)
    top = margin + (60 if title else 0)
    rows = [-(-len(group) // columns) for _, group in groups]
    total_width = left + min(columns, max(len(group) for _, group in groups)) * (cell_width + gap) - gap + margin
    if title:
        total_width = max(total_width, left + 21 * len(_shown(title)) + margin)
    total_height = top + sum(rows) * row_height + band_gap * (len(groups) - 1) - gap + margin

    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI, facecolor="white")
    # One axes in units of screen pixels, downwards: hundreds of axes would take half a minute to draw.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    if title:
        axes.text(left, margin + 16, _shown(title), fontsize=12, weight="bold", color=_INK, va="center")
    y = top
    for (band, group), group_rows in zip(groups, rows, strict=True):
        if named_left:
            middle = y + cell_height / 2
            axes.text(left - 20, middle, name(band), fontsize=9.5, color=_INK, ha="right", va="center")
        for position, index in enumerate(group):
            x0 = left + position % columns * (cell_width + gap)
            y0 = y + position // columns * row_height + above
            y1 = y0 + cell_height
            canvas[y0:y1, x0 : x0 + cell_width] = np.repeat(np.repeat(pixels[index], zoom, axis=0), zoom, axis=1)
            centre = x0 + cell_width / 2
            own = None if bands is None else int(bands[index])
            if named_above and own is not None:
                axes.text(centre, y0 - 10, name(own), fontsize=9, color=_INK, ha="center")
            if soft is None:
                continue
            if charted:
                _paint_chart(canvas[y1 + 6 : y1 + below, x0 : x0 + cell_width], soft[index], own, soft)
            else:
                text, colour = _label_text(soft[index], own, name)
                size = 7.5 if cell_width < 100 else 8.5
                axes.text(centre, y1 + 20, text, fontsize=size, color=colour, ha="center", va="center")
        y += group_rows * row_height + band_gap
    # `extent` and the limits agree, so that the array lands on the screen pixel by pixel.
    axes.imshow(canvas, interpolation="none", extent=(0, total_width, total_height, 0), aspect="auto")
    axes.set_xlim(0, total_width)
    axes.set_ylim(total_height, 0)
    return figure


def history(metrics: Iterable[Mapping[str, Any]], *, title: str | None = None) -> "Figure":
    """Draw losses on a logarithmic axis and accuracies in percent, over the steps of a run.

    **Arguments:**

    - `metrics`: records with a "step", such as `Run.metrics()` gives. Values whose name contains "loss" go to the left
      panel, those with "accuracy" to the right one; others are left out.
    - `title`: a heading.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    series = _series(metrics)
    losses = {name: line for name, line in series.items() if "loss" in name}
    accuracies = {name: line for name, line in series.items() if "accuracy" in name}
    panels = [(kind, lines) for kind, lines in (("loss", losses), ("accuracy", accuracies)) if lines]
    figure = _figure((5.2 * max(len(panels), 1), 3.4), title)
    if not panels:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing logged yet", color=_SOFT, ha="center", va="center")
        return figure
    for number, (kind, lines) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for at, (name, (steps, values)) in enumerate(lines.items()):
            colour = _LINES[at % len(_LINES)]
            label = _shown(name.replace("_", " "))
            smooth = _smoothed(values, logarithmic=kind == "loss")
            if smooth is None:
                marker = "o" if len(values) <= 40 else None
                axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3, label=label)
            else:
                axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
                axes.plot(steps, smooth, color=colour, linewidth=1.6, label=label)
        if kind == "loss" and all(np.any(values > 0) for _, values in lines.values()):
            axes.set_yscale("log", nonpositive="mask")
        if kind == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
        axes.set_title(
            _shown(next(iter(lines)).replace("_", " ")) if len(lines) == 1 else kind, fontsize=10, loc="left"
        )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("step", fontsize=9, color=_SOFT)
        _style(axes)
        if len(lines) > 1:
            axes.legend(fontsize=8.5, frameon=False, labelcolor=_INK)
    return figure


def transfer(
    rows: Sequence[Mapping[str, Any]], *, names: Mapping[str, str] | None = None, title: str | None = None
) -> "Figure":
    """Draw the accuracy of networks over their training, a panel for each kind and a line for each kind of images.

    A line is the mean over networks, with a band of one standard deviation.

    **Arguments:**

    - `rows`: as `ntkit.networks.transfer_rows` gives them: each with a "network", its "steps", and an "accuracy" that
      maps the name of each kind of images to the accuracies of several networks; those without steps are left out.
    - `names`: what the kinds of images are called in the legend; by default their names.
    - `title`: a heading.

    **Raises:**

    - `ValueError`: there is no row.
    """
    from matplotlib.ticker import NullFormatter, PercentFormatter

    expected = "one row or more of ntkit.networks.transfer_rows"
    for row in check_sequence("rows", rows, expected):
        _check_keys("rows", row, ("network", "steps", "accuracy"), expected)
    # What the examples were crafted on has no steps.
    rows = [row for row in rows if row["steps"] is not None]
    if not rows:
        raise wrong("rows", rows, expected)
    if names is not None:
        check_named("names", names, "names by the kinds of images")
    panels = list(dict.fromkeys(row["network"] for row in rows))
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["accuracy"]))
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    size = (max(3.0 * columns, 5.0), 2.7 * lines + 0.5)
    figure = _figure(size, title)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, number)
        mine = sorted((row for row in rows if row["network"] == panel), key=lambda row: row["steps"])
        for at, kind in enumerate(kinds):
            found = [(row["steps"], row["accuracy"][kind]) for row in mine if kind in row["accuracy"]]
            steps = np.array([step for step, _ in found])
            mean, std = (np.array([take(values) for _, values in found]) for take in (np.mean, np.std))
            colour = _LINES[at % len(_LINES)]
            label = _shown(kind.replace("_", " ") if names is None else names.get(kind, kind))
            axes.plot(steps, mean, color=colour, linewidth=1.6, marker="o", markersize=4, label=label)
            axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        ticks = [row["steps"] for row in mine]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        # Room for a single time, too.
        axes.set_xlim(0.7 * ticks[0], ticks[-1] / 0.7)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
        axes.set_title(_shown(panel), fontsize=10, loc="left")
        axes.set_xlabel("training steps", fontsize=9, color=_SOFT)
        _style(axes)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(kinds),
        fontsize=8.5,
        frameon=False,
        labelcolor=_INK,
    )
    return figure


def features(swept: "Sweep", *, title: str | None = None) -> "Figure":
    """Draw how useful and how robust each feature of a kernel is: along the spectrum, and against each other.

    **Arguments:** `swept`: as `ntkit.features.sweep` gives it. `title`: a heading.
    """
    from matplotlib.ticker import PercentFormatter

    from ntkit.features import Sweep

    check_instance("swept", swept, Sweep, "what ntkit.features.sweep gives")
    figure = _figure((9.6, 3.6), title)
    along, across = figure.subplots(1, 2)
    place = np.arange(1, len(swept.eigenvalues) + 1)
    for values, colour, name in (
        (swept.accuracy, _OWN, "useful: accuracy"),
        (swept.robust_accuracy, _OTHER, "robust: accuracy under attack"),
    ):
        along.scatter(place, values, s=7, color=colour, alpha=0.6, linewidths=0, label=name)
    along.set_xscale("log")
    along.set_xlabel("feature, by its eigenvalue", fontsize=9, color=_SOFT)
    along.legend(fontsize=8.5, frameon=False, labelcolor=_INK)
    shown = across.scatter(
        swept.accuracy, swept.robust_accuracy, s=9, c=np.log10(place), cmap="viridis", linewidths=0, alpha=0.8
    )
    bar = figure.colorbar(shown, ax=across)
    bar.set_label("log₁₀ of the feature's number", fontsize=9, color=_SOFT)
    bar.ax.tick_params(labelsize=8.5, colors=_SOFT, length=0)
    bar.outline.set_visible(False)
    across.set_xlabel("usefulness", fontsize=9, color=_SOFT)
    across.set_ylabel("robustness", fontsize=9, color=_SOFT)
    across.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    for axes in (along, across):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
        _style(axes)
    return figure


def dynamics(found: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> "Figure":
    """Draw how kernels move in several trainings, such as standard and adversarial: distances, rotation and spectra.

    Above, the distance matrix of each training, all on one scale, and the way of each kernel in polar coordinates:
    whole, and its top and bottom parts. Below, over the steps, the kernels' velocity, the share of the largest
    eigenvalues in Σ λ², and the effective rank. The figures of Tsilivis & Kempe 2022 (arXiv:2210.05577, section 5).

    **Arguments:** `found`: by the name of each training, what `ntkit.networks.Dynamics.summary` gives. `title`: a
    heading.

    **Raises:**

    - `ValueError`: there is no training.
    """
    expected = "one result or more of ntkit.networks.Dynamics.summary, by the names of the trainings"
    for metrics in check_named("found", found, expected).values():
        _check_keys("found", metrics, ("steps", "distances", "rotation", "concentration", "velocity"), expected)
    if not found:
        raise wrong("found", found, expected)
    columns = max(3, len(found) + 1)
    figure = _figure((3.5 * columns, 6.8), title)
    grid = figure.add_gridspec(2, columns)
    highest = max(float(np.max(metrics["distances"])) for metrics in found.values()) or 1.0
    for number, (name, metrics) in enumerate(found.items()):
        axes = figure.add_subplot(grid[0, number])
        shown = axes.imshow(metrics["distances"], cmap="viridis", vmin=0, vmax=highest)
        ticks = [f"{step:,}" for step in metrics["steps"]]
        axes.set_xticks(range(len(ticks)), ticks, rotation=90)
        axes.set_yticks(range(len(ticks)), ticks)
        axes.set_title(f"distance of kernels, {_shown(name)}", fontsize=10, loc="left")
        _style(axes)
        axes.grid(visible=False)
        if number == len(found) - 1:
            bar = figure.colorbar(shown, ax=axes)
            bar.ax.tick_params(labelsize=8.5, colors=_SOFT, length=0)
            bar.outline.set_visible(False)
    polar: Any = figure.add_subplot(grid[0, len(found)], projection="polar")
    below = [figure.add_subplot(grid[1, column]) for column in range(3)]
    velocity, concentration, rank = below
    dashes = ("-", "--", ":", "-.")
    widest = 0.0
    for number, (name, metrics) in enumerate(found.items()):
        colour, steps = _LINES[number % len(_LINES)], metrics["steps"]
        for dash, (part, way) in zip(dashes, metrics["rotation"].items(), strict=False):
            label = f"{_shown(name)}, {part}"
            polar.plot(way["angle"], way["radius"], dash, color=colour, linewidth=1.6, marker="o", ms=3, label=label)
            widest = max(widest, *way["angle"])
        line: dict[str, Any] = {"color": colour, "linewidth": 1.6, "marker": "o", "markersize": 3}
        velocity.plot(steps[1:], metrics["velocity"], label=_shown(name), **line)
        for dash, (count, shares) in zip(dashes, metrics["concentration"].items(), strict=False):
            concentration.plot(steps, shares, linestyle=dash, label=f"{_shown(name)}, top {count}", **line)
        rank.plot(steps, metrics["effective_rank"], label=_shown(name), **line)
    polar.set_thetamin(0)
    # A sector of whole tens of degrees, so that a small rotation fills it, too.
    sector = min(180, 10 * (1 + int(np.degrees(widest) // 10)))
    polar.set_thetamax(sector)
    polar.set_thetagrids(range(0, sector + 1, 5 if sector <= 30 else 10 if sector <= 90 else 30))
    polar.set_title("rotation: angle and length of the way", fontsize=10, loc="left")
    polar.grid(color=_FAINT, linewidth=0.7)
    polar.tick_params(labelsize=8.5, colors=_SOFT)
    polar.spines["polar"].set_color(_FAINT)
    last = max(max(metrics["steps"]) for metrics in found.values())
    velocities = [value for metrics in found.values() for value in metrics["velocity"]]
    if velocities and min(velocities) > 0:
        velocity.set_yscale("log")
    for axes, name in (
        (velocity, "velocity: distance per step"),
        (concentration, "share of Σ λ²"),
        (rank, "effective rank"),
    ):
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xlim(-0.5, 1.5 * last)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("training steps", fontsize=9, color=_SOFT)
        _style(axes)
    for axes in (polar, velocity, concentration, rank):
        axes.legend(fontsize=7.5, frameon=False, labelcolor=_INK, handlelength=3.5)
    return figure


def convergence(found: Mapping[str, "Convergence"], *, components: int = 6, title: str | None = None) -> "Figure":
    """Draw how networks learn several sets of labels, such as true and random ones, and what their kernel predicted.

    From the left: what is left of some eigencomponents of the first labels; what is left of all of them; and how much
    of each set of labels lies along the first eigenvectors. Predictions are dashed. The figures 1 and 2 of Arora et al.
    2019 (arXiv:1901.08584).

    **Arguments:** `found`: by the name of the labels, what `ntkit.networks.convergence` gives. `components`: how many
    are drawn on the left, one from each part of the spectrum: the one that has most of the labels. `title`: a heading.

    **Raises:**

    - `ValueError`: there are no labels, or no components.
    """
    from matplotlib.ticker import PercentFormatter

    from ntkit.networks import Convergence

    expected = "one result or more of ntkit.networks.convergence, by the names of the labels"
    if not check_named("found", found, expected) or not all(isinstance(one, Convergence) for one in found.values()):
        raise wrong("found", found, expected)
    check_integer("components", components)
    figure = _figure((12.6, 3.8), title)
    each, whole, spread = figure.subplots(1, 3)
    name, first = next(iter(found.items()))
    edges = np.unique(np.geomspace(1, len(first.eigenvalues) + 1, components + 1).round().astype(int)) - 1
    # Of each part of the spectrum the component that has most of the labels: of one with none there is nothing left.
    numbers = [low + int(np.argmax(first.initial[low:high])) for low, high in itertools.pairwise(edges)]
    for place, number in enumerate(numbers):
        line: dict[str, Any] = {"color": _LINES[place % len(_LINES)], "linewidth": 1.6}
        size = first.initial[number]
        each.plot(first.steps, first.measured[:, number] / size, label=f"component {number}", **line)
        each.plot(first.steps, first.predicted[:, number] / size, "--", alpha=0.6, **line)
    for place, (labels, one) in enumerate(found.items()):
        line = {"color": _LINES[place % len(_LINES)], "linewidth": 1.6}
        whole.plot(one.steps, one.left(one.measured), label=_shown(labels), **line)
        whole.plot(one.steps, one.left(one.predicted), "--", alpha=0.6, label=f"{_shown(labels)}, predicted", **line)
        spread.plot(np.arange(1, len(one.shares) + 1), np.cumsum(one.shares), label=_shown(labels), **line)
    for axes, what, along in (
        (each, f"left of each component, {_shown(name)}", "steps"),
        (whole, "left of the labels, ‖y − f‖ / ‖y‖", "steps"),
        (spread, "labels along the first eigenvectors", "number of eigenvectors"),
    ):
        axes.set_title(what, fontsize=10, loc="left")
        axes.set_xlabel(along, fontsize=9, color=_SOFT)
        if along == "steps":
            axes.set_xscale("symlog", linthresh=1, linscale=0.3)
            axes.set_xlim(left=0)
        else:
            axes.set_xscale("log")
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.legend(fontsize=7.5, frameon=False, labelcolor=_INK, handlelength=2.5)
        _style(axes)
    return figure


def sizes(result: Result, *, title: str | None = None) -> "Figure":
    """Draw the excess risk of regression on exact sets over their size, beside the bound and the degrees of freedom.

    **Arguments:** `result`: of `ntkit.distill.excess_risks`. `title`: a heading.

    **Raises:**

    - `ValueError`: it is another one.
    """
    expected = "a result of ntkit.distill.excess_risks"
    check_instance("result", result, Result, expected)
    rows, degrees = result.tables.get("sizes"), result.summary.get("degrees of freedom")
    if not rows or not isinstance(degrees, float):
        raise wrong("result", result, expected)
    figure = _figure((5.0, 3.4), title)
    axes = figure.add_subplot()
    for at, column in enumerate(("excess risk", "bound")):
        known = [(row["images"], row[column]) for row in rows if isinstance(row[column], float)]
        numbers, risks = np.array(known, dtype=float).reshape(-1, 2).T
        axes.plot(numbers, risks, color=_LINES[at], linewidth=1.6, marker="o", markersize=4, label=column)
    axes.axvline(degrees, color=_SOFT, linewidth=1, linestyle="--", label="degrees of freedom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("images in the set", fontsize=9, color=_SOFT)
    axes.set_ylabel("risk above that of the kernel", fontsize=9, color=_SOFT)
    axes.legend(fontsize=8.5, frameon=False, labelcolor=_INK)
    _style(axes)
    return figure


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure atomically, in the format of the path's ending (PNG if it has none).

    A figure drawn from the same data gives the same bytes: no date or version is written into it.

    **Raises:**

    - `ValueError`: matplotlib cannot write that format.
    - `OSError`: `path` cannot be written.
    """
    if isinstance(figure, type) or not hasattr(figure, "savefig"):
        raise wrong("figure", figure, "a matplotlib Figure")
    ending = check_path("path", path).suffix[1:].lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if ending not in known:
        raise ValueError(f"path: got {os.fspath(path)!r}, expected an ending among {', '.join(sorted(known))}")
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending)
    with atomic_write(path) as file:
        figure.savefig(file, format=ending, metadata=undated)


def _check_keys(name: str, value: object, keys: Sequence[str], expected: str) -> None:
    if not isinstance(value, Mapping) or not all(key in value for key in keys):
        raise wrong(name, value, expected)


def _figure(size: tuple[float, float], title: str | None) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
    if title is not None and check_text("title", title):
        figure.suptitle(_shown(title), fontsize=11, weight="bold", color=_INK)
    return figure


def _shown(text: object) -> str:
    """Text that is not ntkit's own, to be drawn as it is: matplotlib takes what is between dollars for a formula."""
    text = str(text)
    return (text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…").replace("$", r"\$")


def _checked_images(images: ArrayLike) -> NDArray[np.float32]:
    pictures = np.asarray(check_real("images", images), np.float32)
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3) or 0 in pictures.shape:
        raise ValueError(
            f"images: got shape {pictures.shape}, expected (n, height, width, channels) with 1 or 3 channels"
        )
    return pictures


def _checked_labels(labels: ArrayLike | None, n: int) -> tuple[NDArray[np.float32] | None, NDArray[np.intp] | None]:
    """Soft labels `(n, C)` and the class of every image, each if there is such a thing."""
    if labels is None:
        return None, None
    array = np.asarray(check_real("labels", labels))
    if array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
        return None, _checked_classes(array, n, "labels")
    if array.ndim != 2 or len(array) != n or array.shape[1] == 0:
        raise ValueError(f"labels: got shape {array.shape}, expected soft labels ({n}, C) or integers ({n},)")
    soft = array.astype(np.float32)
    if soft.shape[1] == 1:
        return soft, (soft[:, 0] > 0).astype(np.intp)
    return soft, np.argmax(soft, axis=1)


def _checked_classes(classes: ArrayLike, n: int, argument: str = "classes") -> NDArray[np.intp]:
    array = np.asarray(check_real(argument, classes))
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{argument}: got {array.dtype} of shape {array.shape}, expected integers ({n},)")
    return array.astype(np.intp)


def _to_bytes(images: NDArray[np.float32], scale: object) -> NDArray[np.uint8]:
    low: Any
    high: Any
    if isinstance(scale, str) and scale == "image":
        low = np.min(images, axis=(1, 2, 3), keepdims=True)
        high = np.max(images, axis=(1, 2, 3), keepdims=True)
    elif isinstance(scale, str) and scale == "grid":
        low, high = np.min(images), np.max(images)
    elif isinstance(scale, tuple) and len(scale) == 2:
        low, high = (check_number("scale", bound) for bound in scale)
        if not low < high:
            raise wrong("scale", scale, "(low, high) with low < high")
    else:
        raise wrong("scale", scale, "'image', 'grid' or (low, high) with low < high")
    span = np.where(np.asarray(high) > low, np.asarray(high) - low, 1)
    # A diverged run has pixels that are no numbers; they are shown black.
    unit = np.nan_to_num(np.clip((images - low) / span, 0, 1))
    # Rounded here: matplotlib would cut the fraction off.
    return np.broadcast_to(np.rint(255 * unit), (*images.shape[:3], 3)).astype(np.uint8)


def _target_size(n: int) -> int:
    """The side of one image on the screen, in pixels: fewer images are drawn larger."""
    return 224 if n <= 12 else 144 if n <= 60 else 128 if n <= 150 else 72


def _paint_chart(
    area: NDArray[np.uint8], label: NDArray[np.float32], own: int | None, labels: NDArray[np.float32]
) -> None:
    """Paint one bar per class into the pixels of `area`, on the scale of all labels."""
    finite = np.nan_to_num(labels)
    low, high = min(0.0, float(np.min(finite))), max(0.0, float(np.max(finite)))
    height, width, _ = area.shape
    unit = (height - 1) / ((high - low) or 1.0)
    zero = round(unit * high)
    step = width // len(label)
    start = (width - step * len(label)) // 2
    best = int(np.argmax(label))
    area[zero, start : start + step * len(label)] = _rgb(_FAINT)
    for index, value in enumerate(np.nan_to_num(label)):
        colour = _OWN if index == own else _OTHER if index == best else _BAR
        end = zero - round(unit * float(value))
        x = start + index * step
        area[min(zero, end) : max(zero, end), x : x + step - max(1, step // 6)] = _rgb(colour)


def _label_text(label: NDArray[np.float32], own: int | None, name: Callable[[int], str]) -> tuple[str, str]:
    """A label in words, and its colour."""
    if len(label) == 1:
        return f"{label[0]:+.2f}", _SOFT
    best = int(np.argmax(label))
    return f"{name(best)} {label[best]:.2f}", _SOFT if own in (None, best) else _OTHER


def _rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def _groups(bands: NDArray[np.intp] | None, order: NDArray[np.intp]) -> list[tuple[int, list[int]]]:
    if bands is None:
        return [(0, order.tolist())]
    return [(int(band), [int(i) for i in order if bands[i] == band]) for band in np.unique(bands)]


def _columns(sizes: list[int], width: int, height: int) -> int:
    """How many images a row takes for a picture of about 3:2, with no band's last row nearly empty."""
    most = max(sizes)
    best, best_badness = 1, float("inf")
    for columns in range(1, most + 1):
        rows = sum(-(-size // columns) for size in sizes)
        aspect = columns * width / (rows * height)
        empty = rows * columns / sum(sizes) - 1
        badness = abs(float(np.log(aspect / 1.5))) + 2 * empty
        if badness < best_badness:
            best, best_badness = columns, badness
    return best


def _series(
    metrics: Iterable[Mapping[str, Any]],
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For every scalar metric the steps at which it was logged and its values."""
    expected = "records, mappings with a step"
    if isinstance(metrics, str | bytes | Mapping) or not isinstance(metrics, Iterable) or hasattr(metrics, "dtype"):
        raise wrong("metrics", metrics, expected)
    points: dict[str, list[tuple[float, float]]] = {}
    for record in metrics:
        if not isinstance(record, Mapping) or not isinstance(record.get("step"), int | float):
            raise wrong("metrics", record, expected)
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                points.setdefault(name, []).append((float(record["step"]), float(value)))
    return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in points.items()}


def _style(axes: Any) -> None:
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, colors=_SOFT, which="both", length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)


def _smoothed(values: NDArray[np.float64], *, logarithmic: bool) -> NDArray[np.float64] | None:
    """A centred moving mean (geometric for a logarithmic axis), or None where there is too little to smooth."""
    if len(values) < 200 or not np.all(np.isfinite(values)) or (logarithmic and np.any(values <= 0)):
        return None
    half = len(values) // 100
    data = np.log(values) if logarithmic else values
    window = np.ones(2 * half + 1)
    # Divided by the number of values inside, so that the ends are not pulled to zero.
    mean = np.convolve(data, window, "same") / np.convolve(np.ones_like(data), window, "same")
    return np.exp(mean) if logarithmic else mean
