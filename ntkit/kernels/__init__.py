"""Kernels between images: of infinitely wide networks in closed form, of finite ones, their sums and products."""

from ntkit.kernels.base import Kernel, Product, Scaled, Sum
from ntkit.kernels.closed_form import nngp, ntk
from ntkit.kernels.empirical import EmpiricalNTK, empirical_ntk
from ntkit.kernels.finite import FeatureKernel, kernel_of_features
from ntkit.kernels.random_features import random_features
from ntkit.kernels.stax import from_stax

__all__ = [
    "EmpiricalNTK",
    "FeatureKernel",
    "Kernel",
    "Product",
    "Scaled",
    "Sum",
    "empirical_ntk",
    "from_stax",
    "kernel_of_features",
    "nngp",
    "ntk",
    "random_features",
]
