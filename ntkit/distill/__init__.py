"""Data set distillation with kernels: KIP, Label Solve, and the sets that they make."""

from ntkit.distill.distilled import Distilled
from ntkit.distill.kip import kip
from ntkit.distill.label_solve import label_solve
from ntkit.distill.losses import cross_entropy, mse

__all__ = ["Distilled", "cross_entropy", "kip", "label_solve", "mse"]
