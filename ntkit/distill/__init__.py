"""Data set distillation with kernels: KIP, Label Solve, and the sets that they make. NTGA, which poisons a set."""

from ntkit.distill.distilled import Distilled
from ntkit.distill.kip import kip
from ntkit.distill.label_solve import label_solve
from ntkit.distill.losses import cross_entropy, mse
from ntkit.distill.ntga import ntga

__all__ = ["Distilled", "cross_entropy", "kip", "label_solve", "mse", "ntga"]
