"""How a Gram matrix is cut into blocks of one shape, each of its entries in exactly one of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from ntkit.kernels.pairs import balanced


class Tile(NamedTuple):
    """One block: the part of the matrix that it fills, and the inputs that it is computed from.

    The last block of a row reaches back into the one before it, so that all have one shape and are compiled once.
    What it computes a second time is cut off by `owned`.
    """

    name: str
    rows: slice
    columns: slice
    left: slice
    right: slice
    # x1 with itself, at the same place.
    diagonal: bool

    def owned(self, block: np.ndarray) -> np.ndarray:
        """Cut a computed block down to the part that the tile fills."""
        return block[self.rows.start - self.left.start :, self.columns.start - self.right.start :]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The blocks of a matrix (n1, n2), whose sides have `rows` and `columns` inputs. `cut` makes it."""

    n1: int
    n2: int
    rows: int
    columns: int
    symmetric: bool

    def tiles(self) -> list[Tile]:
        """Give all blocks, of a symmetric matrix those on the diagonal, then those above it."""
        down, across = _spans(self.n1, self.rows), _spans(self.n2, self.columns)
        tiles = [
            Tile(f"{i}-{j}", rows, columns, left, right, self.symmetric and i == j)
            for i, (rows, left) in enumerate(down)
            for j, (columns, right) in enumerate(across)
            if not self.symmetric or i <= j
        ]
        return sorted(tiles, key=lambda tile: not tile.diagonal)


def cut(n1: int, n2: int, side: int, symmetric: bool) -> Tiling:
    """Cut a matrix into as few blocks as have at most `side` inputs a side, of nearly equal size."""
    # Of equal blocks the last one overlaps the one before by less than one input per block.
    return Tiling(n1, n2, balanced(n1, side), balanced(n2, side), symmetric)


def _spans(n: int, side: int) -> list[tuple[slice, slice]]:
    """Give what each block fills along one axis, and the window of `side` inputs that it is computed from."""
    stops = [min(start + side, n) for start in range(0, n, side)]
    return [(slice(i * side, stop), slice(stop - side, stop)) for i, stop in enumerate(stops)]
