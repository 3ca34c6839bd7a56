"""The iterative solver: preconditioned conjugate gradients for a Gram matrix that is only ever multiplied with.

The loop is this file's own, and run by the host, for what those at hand (`lineax.CG`, `jax.scipy.sparse.linalg.cg`)
do not do: they are compiled as a whole, and a matrix on a disk cannot be; lineax stops by the largest componentwise
error of one vector, in weights and targets, not by a residual of each output; and neither tells the residual of what
it returns.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_integer, check_key, check_number, wrong
from ntkit.runs.bars import progress as show_progress
from ntkit.solvers.operators import Operator
from ntkit.solvers.placement import replicated
from ntkit.solvers.preconditioner import Preconditioner, randomly_pivoted_cholesky
from ntkit.solvers.solution import ConvergenceWarning, Report, Solution, Solver

# Steps between two looks at the true residual, whose product with K is one more.
_CHECK_EVERY = 50
# What the iteration believes of its residual may be wrong by this much of it.
_DRIFT = 0.1
# An output that was started anew this often, and not brought below half of its residual, is given up.
_PATIENCE = 2


@dataclasses.dataclass(frozen=True)
class CG(Solver):
    """Conjugate gradients, preconditioned by randomly pivoted Cholesky: products with K, and `rank` columns of it.

    Each output has its own step lengths, and stops by itself at its own relative residual ‖y − A weights‖ / ‖y‖, with
    A = K + ridge · tr(K)/n · I. The true residual is computed every 50 steps and before an output counts as converged;
    where rounding has let the iteration's own drift away from it, the iteration starts anew from the true one.
    The weights of the least residual seen are returned. It runs on the host: not inside `jit`, `grad` or `vmap`.

    **Fields:**

    - `tolerance`: the relative residual to reach, of each output.
    - `rank`: of the preconditioner, n · rank numbers on each device; 0 for none. `None`: the smallest of n, 10 √n and
      1000.
    - `max_steps`: products with K, at most, beside those for true residuals.
    - `key`: a `jax.random` key, of the pivots; `None`: `jax.random.key(0)`.

    **Raises:** `ValueError` that names the field.
    """

    tolerance: float = 1e-4
    rank: int | None = None
    max_steps: int = 1000
    key: Array | None = None

    def __post_init__(self) -> None:
        if not check_number("tolerance", self.tolerance, above=0, most=1) < 1:
            raise wrong("tolerance", self.tolerance, "a number above 0 and below 1")
        if self.rank is not None:
            check_integer("rank", self.rank, 0)
        check_integer("max_steps", self.max_steps)
        if self.key is not None:
            check_key("key", self.key)

    def __call__(
        self, operator: Operator, y: Float[Array, "n outputs"], ridge: ArrayLike, *, progress: bool = False
    ) -> Solution:
        """Solve, and warn with [`ConvergenceWarning`][] if an output did not reach the tolerance."""
        n, dtype = operator.size, operator.dtype
        shift = float(np.asarray(ridge)) * float(np.mean(operator.diagonal(), dtype=np.float64))
        rank = min(n, int(10 * n**0.5), 1000) if self.rank is None else min(n, int(self.rank))
        key = jax.random.key(0) if self.key is None else self.key
        preconditioner = Preconditioner.of(randomly_pivoted_cholesky(operator, rank, key), shift)
        targets = np.asarray(y, dtype)
        if not np.all(np.isfinite(targets)):
            raise FloatingPointError("fit: not finite; look for NaN or infinite values in the targets")
        norms = _norms(targets)
        # Of unit length: a residual is then a relative one, and its square neither overflows nor underflows.
        lengths = np.where(norms > 0, norms, 1).astype(dtype)
        system = _System(operator, replicated(operator.mesh, targets / lengths), shift, preconditioner)
        with show_progress(self.max_steps, "solve", enabled=progress) as bar:
            found = _iterate(system, norms > 0, self.tolerance, self.max_steps, bar.update)
        report = Report(
            residual=jnp.asarray(found.residual, dtype),
            steps=jnp.asarray(found.steps),
            converged=jnp.asarray(found.residual <= self.tolerance),
            tolerance=float(self.tolerance),
            rank=preconditioner.vectors.shape[1],
        )
        if not np.all(found.residual <= self.tolerance):
            _warn(found, self.tolerance, self.max_steps, dtype)
        # Through the host: what comes back lies on one device, of this process, like all else that a user has.
        return Solution(jnp.asarray(np.asarray(found.weights) * lengths), jnp.asarray(ridge, dtype), report)


class _State(NamedTuple):
    """What a step changes: columns are outputs."""

    weights: Array
    # What the iteration believes the residual to be.
    residual: Array
    direction: Array
    # Of the residual with the preconditioned one.
    product: Array
    active: Array | np.ndarray
    # Whether a direction was met along which A is not positive.
    indefinite: Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class _System:
    """A weights = targets, and what approximates A⁻¹."""

    operator: Operator
    targets: Array
    shift: float
    preconditioner: Preconditioner

    def step(self, state: _State, tolerance: float) -> _State:
        image = self.operator.matvec(state.direction)
        return _step(state, image, self.shift, self.preconditioner, tolerance)

    def residual(self, state: _State) -> tuple[Array, np.ndarray, np.ndarray]:
        """Compute the residual of the weights; give it, its length, and how far the iteration's own has drifted."""
        image = self.operator.matvec(state.weights)
        residual, relative, drift = _residual(state, self.targets, image, self.shift)
        return residual, np.asarray(relative), np.asarray(drift)


class _Found(NamedTuple):
    weights: Array
    residual: np.ndarray
    steps: np.ndarray
    # Of the outputs that did not converge: those that rounding stopped, and those of them where A was not positive.
    stalled: np.ndarray
    indefinite: np.ndarray


def _iterate(
    system: _System, active: np.ndarray, tolerance: float, max_steps: int, report: Callable[..., None]
) -> _Found:
    """Run until every output has converged or stalled, or `max_steps` are done. Zero columns are solved by 0."""
    weights = jnp.zeros_like(system.targets)
    state = _State(weights, weights, weights, jnp.zeros_like(weights[0]), active, np.zeros_like(active))
    state = _restarted(state, system.targets, active, active, system.preconditioner)
    best = np.where(active, 1.0, 0.0)
    at_restart, restarts = best.copy(), np.zeros(len(active), int)
    steps, taken = np.zeros(len(active), np.int32), 0
    stalled = np.zeros_like(active)
    while True:
        active, look_at = np.asarray(state.active), min(taken + _CHECK_EVERY, max_steps)
        while active.any() and taken < look_at:
            steps += active
            state = system.step(state, tolerance)
            active, taken = np.asarray(state.active), taken + 1
            report(taken, residual=best.max())
        residual, relative, drift = system.residual(state)
        if not np.all(np.isfinite(relative)):
            raise FloatingPointError("fit: not finite; look for NaN or infinite values in the inputs and the kernel")
        weights, best = _columns_where(relative < best, state.weights, weights), np.minimum(relative, best)
        open_ = (best > tolerance) & ~stalled
        # Frozen, by its own residual or by a direction that is none; or no longer to be believed.
        lost = open_ & (~active | (drift > _DRIFT * relative))
        progressed = relative <= at_restart / 2
        restarts = np.where(progressed, 0, restarts + lost)
        stalled |= lost & (restarts > _PATIENCE)
        again = lost & ~stalled
        at_restart = np.where(again, relative, at_restart)
        active = open_ & ~stalled
        if taken >= max_steps or not active.any():
            return _Found(weights, best, steps, stalled, np.asarray(state.indefinite))
        state = _restarted(state, residual, again, active, system.preconditioner)


@jax.jit
def _step(state: _State, image: Array, shift: Array, preconditioner: Preconditioner, tolerance: Array) -> _State:
    """Take one step of each active column (Saad, Iterative Methods for Sparse Linear Systems, Algorithm 9.1)."""
    image = image + shift * state.direction
    curvature = jnp.sum(state.direction * image, axis=0)
    # ~(> 0) would take NaN for it: that is another failure, and has to show in the residual.
    indefinite = state.active & (curvature <= 0)
    going = state.active & ~indefinite
    length = jnp.where(going, state.product / jnp.where(going, curvature, 1), 0)
    weights = state.weights + length[None] * state.direction
    residual = state.residual - length[None] * image
    preconditioned = preconditioner(residual)
    product = jnp.sum(residual * preconditioned, axis=0)
    kept = jnp.where(going, product / jnp.where(going, state.product, 1), 0)
    direction = preconditioned + kept[None] * state.direction
    going = going & (product > 0) & (jnp.linalg.norm(residual, axis=0) > tolerance)
    return _State(weights, residual, direction, product, going, state.indefinite | indefinite)


@jax.jit
def _residual(state: _State, targets: Array, image: Array, shift: Array) -> tuple[Array, Array, Array]:
    residual = targets - (image + shift * state.weights)
    return residual, jnp.linalg.norm(residual, axis=0), jnp.linalg.norm(residual - state.residual, axis=0)


@jax.jit
def _restarted(state: _State, residual: Array, again: Array, active: Array, preconditioner: Preconditioner) -> _State:
    """Start some columns anew from their true residual."""
    direction = preconditioner(residual)
    product = jnp.sum(residual * direction, axis=0)
    return _State(
        weights=state.weights,
        residual=jnp.where(again, residual, state.residual),
        direction=jnp.where(again, direction, state.direction),
        product=jnp.where(again, product, state.product),
        active=active,
        indefinite=state.indefinite,
    )


_columns_where = jax.jit(jnp.where)


def _norms(targets: np.ndarray) -> np.ndarray:
    """Lengths of columns, whose squares may overflow."""
    largest = np.abs(targets).max(axis=0)
    return largest * np.linalg.norm(targets / np.where(largest > 0, largest, 1), axis=0)


def _warn(found: _Found, tolerance: float, max_steps: int, dtype: np.dtype) -> None:
    failed = found.residual > tolerance
    if np.any(failed & found.indefinite):
        why, remedy = f"the Gram matrix is not positive definite in {dtype} with this ridge", "a larger ridge"
    elif np.any(failed & found.stalled):
        why, remedy = f"rounding in {dtype} outweighs what is left", "a larger ridge"
    else:
        why, remedy = f"max_steps={max_steps} was reached", "more steps, a larger rank or a larger ridge"
    if dtype == np.float32:
        remedy += ", or x64,"
    warnings.warn(
        f"solver: CG reached a relative residual of {found.residual.max():.1e} in {found.steps.max()} steps, expected "
        f"at most {tolerance:g} ({failed.sum()} of {len(failed)} outputs did not converge): {why}; "
        f"{remedy} would help",
        ConvergenceWarning,
        stacklevel=4,
    )
