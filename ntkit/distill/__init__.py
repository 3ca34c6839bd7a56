"""Data set distillation: learners, Label Solve, and the sets that they make."""

from ntkit.data.targets import cross_entropy, mse
from ntkit.distill.attacked import UnderAttack
from ntkit.distill.boosting import boost
from ntkit.distill.comparison import compare_with_real
from ntkit.distill.distilled import Distilled
from ntkit.distill.frepo import FRePo
from ntkit.distill.judging import herded, judge
from ntkit.distill.kip import KIP
from ntkit.distill.label_solve import label_solve
from ntkit.distill.learner import Learner
from ntkit.distill.learning import Support, Targets, distill
from ntkit.distill.rat_bptt import RaTBPTT
from ntkit.distill.rcig import RCIG
from ntkit.distill.rfad import RFAD
from ntkit.distill.robustness import robustness_of_sets
from ntkit.distill.sizes import degrees_of_freedom, exact_set, excess_risks

__all__ = [
    "KIP",
    "RCIG",
    "RFAD",
    "Distilled",
    "FRePo",
    "Learner",
    "RaTBPTT",
    "Support",
    "Targets",
    "UnderAttack",
    "boost",
    "compare_with_real",
    "cross_entropy",
    "degrees_of_freedom",
    "distill",
    "exact_set",
    "excess_risks",
    "herded",
    "judge",
    "label_solve",
    "mse",
    "robustness_of_sets",
]
