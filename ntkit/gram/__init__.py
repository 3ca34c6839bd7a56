"""Gram matrices of any size: in blocks, over devices, on disk."""

from ntkit.gram.blocks import gram
from ntkit.gram.store import StoreWarning

__all__ = ["StoreWarning", "gram"]
