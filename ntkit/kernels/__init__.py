"""Kernels between images: of infinitely wide networks in closed form, of finite ones, their sums and products."""

from ntkit.kernels.base import Kernel, Product, Scaled, Sum
from ntkit.kernels.closed_form import nngp, ntk
from ntkit.kernels.empirical import EmpiricalNTK, empirical_ntk
from ntkit.kernels.pixels import of_pixels
from ntkit.kernels.stax import from_stax

__all__ = [
    "EmpiricalNTK",
    "Kernel",
    "Product",
    "Scaled",
    "Sum",
    "empirical_ntk",
    "from_stax",
    "nngp",
    "ntk",
    "of_pixels",
]
