"""Gram matrices of any size: in blocks, over devices, on disk."""

from ntkit.grams.blocks import gram
from ntkit.grams.store import StoreWarning

__all__ = ["StoreWarning", "gram"]
