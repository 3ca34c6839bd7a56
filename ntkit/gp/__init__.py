"""Gaussian processes with any kernel: what is known of a function, and how surely."""

from ntkit.gp.ensemble import Ensemble, ensemble
from ntkit.gp.likelihood import Maximum, log_marginal_likelihood, maximize
from ntkit.gp.posterior import LeaveOneOut, Posterior, condition
from ntkit.gp.process import Process

__all__ = [
    "Ensemble",
    "LeaveOneOut",
    "Maximum",
    "Posterior",
    "Process",
    "condition",
    "ensemble",
    "log_marginal_likelihood",
    "maximize",
]
