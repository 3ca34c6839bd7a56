"""Which covariances of two images a network's kernel needs, worked out before any of them is computed.

The covariances of all pixels of one image with all pixels of the other fall into *displacements*: the pairs
(p, p + d) for one d. A convolution moves both pixels alike and a nonlinearity moves neither, so that different
displacements meet only where pixels are pooled. Two things follow. A network is a list of stages, each a few layers
that can be computed at one displacement after another, in memory of one image's size. And many displacements are never
needed: `Flatten` reads pixels with themselves, d = 0, and each 2×2 pooling before it asks for two more on either side;
of the 1,024 displacements of 32×32 images, `convnet(3)` needs 225.

Displacements are taken modulo the size of the image along each axis: an axis of n pixels has n displacements of n pairs
each, some of which wrap around. All of this is per axis, static, and in NumPy.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, TypeAlias, assert_never

import numpy as np

from ntkit.architectures import (
    Activation,
    Architecture,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Parameterization,
)

Layers: TypeAlias = "tuple[tuple[Dense | Conv | Activation, int], ...]"
Ends: TypeAlias = "list[tuple[int, Cells]]"


class Recursion(NamedTuple):
    """What is the same for all layers.

    **Fields:** `tangent`: whether T is asked for. `pallas`: whether the first stage is one kernel of a GPU, where it
    can be; `None` for where the arrays are on one.
    """

    parameterization: Parameterization
    tangent: bool
    pallas: bool | None = False


@dataclasses.dataclass(frozen=True)
class Cells:
    """The positions along an axis that become one position of the next stage: their mean.

    **Fields:** cell `a` of `count` holds `start + step · a + u` for `u` in `range(width)`. `paired`: whether a pixel
    meets only itself, as in `Flatten`.
    """

    start: int
    step: int
    width: int
    count: int
    paired: bool = False

    def of(self, position: int) -> int | None:
        """Give the cell that a position is in, if any."""
        cell, within = divmod(position - self.start, self.step)
        return cell if 0 <= cell < self.count and within < self.width else None

    @property
    def weight(self) -> float:
        """What each pair of positions counts in the mean."""
        return 1 / self.width if self.paired else 1 / self.width**2


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a stage.

    **Fields:** `size`: positions. `displacements` (D,): those that are needed, modulo `size`. `cells`: how the axis
    ends. `following`: how many displacements the next stage has. Of the pairs at a displacement, some go to one of
    those and some to another: `targets` (D, T) has their indices, and `weights` (D, T, size) what each position adds
    there.
    """

    size: int
    displacements: np.ndarray
    cells: Cells
    following: int
    targets: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stage:
    """Layers that leave displacements apart, and the cells by which they meet.

    **Fields:** `layers`: by their places in the architecture, each with its fan-in. `axes`: of height and width.
    """

    layers: Layers
    axes: tuple[Axis, Axis]


def stages(architecture: Architecture, shape: tuple[int, int, int]) -> tuple[Stage, ...]:
    """Divide a network into stages, for images of `shape`, (height, width, channels)."""
    return _with_needs(*_divide(architecture, shape))


def stages_to_the_last_activation(architecture: Architecture, shape: tuple[int, int, int]) -> tuple[Stage, ...]:
    """Give the stages before the last activation's own, for no more than the variances with which that begins."""
    layers, ends = _divide(architecture, shape)
    active = [i for i, stage in enumerate(layers) if any(isinstance(layer, Activation) for layer, _ in stage)]
    last = max(active, default=0)
    return _with_needs(layers[:last], ends[:last])


def _divide(architecture: Architecture, shape: tuple[int, int, int]) -> tuple[list[Layers], list[Ends]]:
    """Give each stage's layers, and its sizes and cells by axis."""
    size, channels = shape[:2], shape[2]
    layers: list[Layers] = [()]
    ends: list[Ends] = []

    def end(cells: list[Cells]) -> None:
        nonlocal size
        ends.append(list(zip(size, cells, strict=True)))
        layers.append(())
        size = (cells[0].count, cells[1].count)

    for layer in architecture.layers:
        match layer:
            case Flatten():
                channels *= size[0] * size[1]
                if size != (1, 1):
                    end([Cells(0, n, n, 1, paired=True) for n in size])
            case GlobalAveragePool():
                end([Cells(0, n, n, 1) for n in size])
            case AveragePool():
                end([Cells(0, w, w, n // w) for n, w in zip(size, layer.window, strict=True)])
            case Activation():
                layers[-1] += ((layer, channels),)
            case Dense():
                layers[-1] += ((layer, channels),)
                channels = architecture.width
            case Conv():
                layers[-1] += ((layer, channels * math.prod(layer.window)),)
                channels = architecture.width
                cells = [_sampled(n, layer, axis) for axis, n in enumerate(size)]
                if cells != [_every(n) for n in size]:
                    end(cells)
            case _:
                assert_never(layer)
    ends.append([(n, _every(n)) for n in size])
    return layers, ends


def _every(size: int) -> Cells:
    return Cells(0, 1, 1, size)


def _sampled(size: int, layer: Conv, axis: int) -> Cells:
    """Give the positions at which a convolution's window is centred."""
    window, stride = layer.window[axis], layer.strides[axis]
    centre = (window - 1) // 2
    if layer.padding == "VALID":
        return Cells(centre, stride, 1, (size - window) // stride + 1)
    count = -(-size // stride)
    before = max((count - 1) * stride + window - size, 0) // 2
    return Cells(centre - before, stride, 1, count)


def _with_needs(layers: list[Layers], ends: list[Ends]) -> tuple[Stage, ...]:
    """Go backwards from what is asked for: of each pixel's covariances at the end, the one with itself."""
    found: list[Stage] = []
    needed = [frozenset({0}), frozenset({0})]
    for stage, axes in reversed(list(zip(layers, ends, strict=False))):
        wraps = any(isinstance(layer, Conv) and layer.padding == "CIRCULAR" for layer, _ in stage)
        solved = [_axis(size, cells, after, wraps) for (size, cells), after in zip(axes, needed, strict=True)]
        found.append(Stage(stage, (solved[0][0], solved[1][0])))
        needed = [before for _, before in solved]
    return tuple(reversed(found))


def _axis(size: int, cells: Cells, after: frozenset[int], wraps: bool) -> tuple[Axis, frozenset[int]]:
    """Give an axis whose cells are needed at the displacements `after`, and the displacements that it needs itself.

    Both are differences of positions, not taken modulo the size: no pair is needed only because another one at the same
    displacement is.
    """
    cell = [cells.of(position) for position in range(size)]
    pairs = [
        (i, j, b - a)
        for i, a in enumerate(cell)
        for j, b in enumerate(cell)
        if a is not None and b is not None and b - a in after and (i == j or not cells.paired)
    ]
    before = frozenset(j - i for i, j, _ in pairs)
    if wraps:
        # A circular convolution goes on where the image ends.
        before = frozenset(d + turn for d in before for turn in (-size, 0, size) if -size < d + turn < size)
    displacements, following = (sorted({d % n for d in of}) for of, n in ((before, size), (after, cells.count)))
    targets: dict[int, list[int]] = {d: [] for d in displacements}
    for i, j, d in pairs:
        if (target := following.index(d % cells.count)) not in targets[(j - i) % size]:
            targets[(j - i) % size].append(target)
    most = max((len(each) for each in targets.values()), default=1)
    indices = np.zeros((len(displacements), most), np.int32)
    weights = np.zeros((len(displacements), most, size))
    for row, each in enumerate(targets.values()):
        indices[row, : len(each)] = each
    rows = {d: row for row, d in enumerate(displacements)}
    for i, j, d in pairs:
        target = following.index(d % cells.count)
        weights[rows[(j - i) % size], targets[(j - i) % size].index(target), i] = cells.weight
    return Axis(size, np.array(displacements, np.int32), cells, len(following), indices, weights), before
