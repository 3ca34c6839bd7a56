"""The direct solver: a Cholesky factorization of the whole Gram matrix, compiled and differentiable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_floats, check_scalar, check_targets
from ntkit.solvers.operators import Operator
from ntkit.solvers.solution import Solution, Solver


@dataclasses.dataclass(frozen=True)
class Cholesky(Solver):
    """Factorize K, in memory on one device: n² numbers, n³/3 products. Works inside `jit`, `grad` and `vmap`.

    If the factorization fails it is tried again with a ten times larger ridge, and so on, inside the compiled function;
    the ridge that was used is on the [`Solution`][].
    """

    def __call__(
        self, operator: Operator, y: Float[Array, "n outputs"], ridge: ArrayLike, *, progress: bool = False
    ) -> Solution:
        gram = operator.dense()
        return Solution(*_solve(gram, y, jnp.asarray(ridge, gram.dtype)))


def solve(
    gram: Float[Array, "n n"], y: Float[Array, "n outputs"], ridge: ArrayLike
) -> tuple[Float[Array, "n outputs"], Float[Array, ""]]:
    """Solve (K + ridge · tr(K)/n · I) weights = y for a Gram matrix K, as [`ntkit.regression.fit`][] does by default.

    For use inside compiled code. Where every ridge that is tried fails (K is not finite, or not a Gram matrix) the
    weights are NaN.

    **Returns:** the weights (n, outputs) and the relative ridge that was used.
    """
    gram = jnp.asarray(check_floats("gram", gram))
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
        raise ValueError(f"gram: got shape {gram.shape}, expected a square")
    y = jnp.asarray(check_targets("y", y, len(gram)))
    ridge = jnp.asarray(check_scalar("ridge", ridge), gram.dtype)
    # What decides how much ridge is needed is not differentiated, only the solution at that ridge.
    constant = lax.stop_gradient(gram)
    factor, used = factorized(constant, lax.stop_gradient(ridge))
    used = jnp.where(used == ridge, ridge, used)
    matrix = _regularized(gram, used)

    def solved(product: Callable[[Array], Array], b: Array) -> Array:
        # Refined once: what the factorization rounds, a sum of n terms for each number, is most of the error.
        first = jax.scipy.linalg.cho_solve((factor, True), b)
        return first + jax.scipy.linalg.cho_solve((factor, True), b - product(first))

    weights = lax.custom_linear_solve(
        lambda v: jnp.matmul(matrix, v, precision="highest"), y.astype(gram.dtype), solve=solved, symmetric=True
    )
    # LAPACK makes a factor, and weights of 0, of a matrix that holds infinities.
    return jnp.where(jnp.all(jnp.isfinite(constant)), weights, jnp.nan), used


# Ten times more ridge each time: from rounding level to far beyond any ridge that still fits the data.
_RETRIES = 10


def factorized(gram: Float[Array, "n n"], ridge: Float[Array, ""]) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Give the first Cholesky factor that exists for `ridge`, 10 · `ridge`, …, and the relative ridge it took."""
    smallest = jnp.asarray(jnp.finfo(ridge.dtype).eps, ridge.dtype)
    solvable = jnp.all(jnp.isfinite(gram))

    def failed(state: tuple[Array, Array, Array]) -> Array:
        factor, _, tries = state
        return solvable & (tries < _RETRIES) & ~jnp.all(jnp.isfinite(jnp.diagonal(factor)))

    def retry(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, relative, tries = state
        relative = jnp.maximum(10 * relative, smallest)
        return jnp.linalg.cholesky(_regularized(gram, relative)), relative, tries + 1

    first = (jnp.linalg.cholesky(_regularized(gram, ridge)), ridge, jnp.zeros((), jnp.int32))
    factor, used, _ = lax.while_loop(failed, retry, first)
    return factor, used


def _regularized(gram: Array, relative: Array) -> Array:
    n = len(gram)
    return gram + relative * (jnp.trace(gram) / n) * jnp.eye(n, dtype=gram.dtype)


_solve = jax.jit(solve)
