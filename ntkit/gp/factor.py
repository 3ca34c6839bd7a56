"""The Cholesky factor of a covariance, with derivatives of any order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ntkit.kernels.tiled import matmul
from ntkit.solvers.cholesky import factorized


def factor(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Factorize a covariance, L Lᵀ = matrix + extra · I.

    **Returns:** L, and `extra`: 0, or the variance without which there is no factor in this precision. L is NaN where
    there is none with any.
    """
    n = len(matrix)
    constant = lax.stop_gradient(matrix)
    known, relative = factorized(constant, jnp.zeros((), matrix.dtype))
    known = jnp.where(jnp.all(jnp.isfinite(constant)), known, jnp.nan)
    extra = relative * jnp.trace(constant) / n
    return _factor(matrix + extra * jnp.eye(n, dtype=matrix.dtype), lax.stop_gradient(known)), extra


@jax.custom_jvp
def _factor(matrix: Array, known: Array) -> Array:
    return known


@_factor.defjvp
def _factor_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # dL = L Φ(L⁻¹ dA L⁻ᵀ) with the lower triangle Φ, half of the diagonal in it (Murray 2016, arXiv:1602.07527, eq. 8).
    lower = _factor(*primals)
    change = (tangents[0] + tangents[0].T) / 2
    inner = solve(lower, solve(lower, change).T)
    return lower, matmul(lower, jnp.tril(inner) - jnp.diag(jnp.diagonal(inner)) / 2)


def solve(lower: Float[Array, "n n"], v: Float[Array, "n m"], *, transposed: bool = False) -> Float[Array, "n m"]:
    """Give L⁻¹ v, or L⁻ᵀ v."""
    return lax.linalg.triangular_solve(lower, v, left_side=True, lower=True, transpose_a=transposed)
