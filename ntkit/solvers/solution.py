"""What a solver is, and what it answers."""

from __future__ import annotations

import abc

from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.solvers.operators import Operator


class ConvergenceWarning(UserWarning):
    """An iterative solver stopped before it reached the residual that was asked for."""


@pytree_dataclass
class Report:
    """What an iterative solver has to say of its answer, a JAX pytree.

    **Fields:**

    - `residual`: of each output, ‖y − A weights‖ / ‖y‖ with A = K + ridge · tr(K)/n · I: computed from the weights
      that were returned, not the estimate that the iteration itself keeps. 0 where y is 0.
    - `steps`: products with K that each output took part in, without those for its residual.
    - `converged`: of each output, whether its residual is at most the tolerance.
    - `tolerance`: the relative residual that was asked for.
    - `rank`: of the preconditioner; less than asked for where K has no more to give in this precision.
    """

    residual: Float[Array, " outputs"]
    steps: Int[Array, " outputs"]
    converged: Bool[Array, " outputs"]
    tolerance: float = static_field()
    rank: int = static_field()


@pytree_dataclass
class Solution:
    """The answer of a solver.

    **Fields:** `weights`: (n, outputs). `ridge`: the relative ridge that was used, a scalar. `report`: of an iterative
    solver; `None` of a direct one.
    """

    weights: Float[Array, "n outputs"]
    ridge: Float[Array, ""]
    report: Report | None = None


class Solver(abc.ABC):
    """How a system is solved: a value. Users choose [`Cholesky`][] or [`CG`][]."""

    @abc.abstractmethod
    def __call__(
        self, operator: Operator, y: Float[Array, "n outputs"], ridge: ArrayLike, *, progress: bool = False
    ) -> Solution:
        """Solve (K + ridge · tr(K)/n · I) weights = y.

        **Arguments:** `operator`: K. `y`: targets (n, outputs). `ridge`: at least 0, relative to the mean of K's
        diagonal. `progress`: whether to show a progress bar on stderr, where there are steps to count.
        """
