"""Solvers of (K + ridge · tr(K)/n · I) weights = y: what K is, how it is solved, and the answer, kept apart."""

from ntkit.solvers.cholesky import Cholesky, solve
from ntkit.solvers.conjugate_gradients import CG
from ntkit.solvers.operators import InMemory, OnDisk, Operator, Recomputed, operator_of
from ntkit.solvers.preconditioner import Preconditioner, randomly_pivoted_cholesky
from ntkit.solvers.primal import Primal
from ntkit.solvers.rounding import RoundingWarning
from ntkit.solvers.solution import ConvergenceWarning, Report, Solution, Solver

__all__ = [
    "CG",
    "Cholesky",
    "ConvergenceWarning",
    "InMemory",
    "OnDisk",
    "Operator",
    "Preconditioner",
    "Primal",
    "Recomputed",
    "Report",
    "RoundingWarning",
    "Solution",
    "Solver",
    "operator_of",
    "randomly_pivoted_cholesky",
    "solve",
]
