"""Kernels between images: closed-form ones of infinitely wide networks, and their sums and products."""

from ntkit.kernels.base import Kernel, Product, Scaled, Sum
from ntkit.kernels.closed_form import nngp, ntk
from ntkit.kernels.stax import from_stax

__all__ = ["Kernel", "Product", "Scaled", "Sum", "from_stax", "nngp", "ntk"]
