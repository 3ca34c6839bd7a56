"""A preconditioner for K + μ I from a few columns of K, chosen at random where K is least explained so far."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ntkit.kernels.tiled import matmul
from ntkit.solvers.operators import Operator
from ntkit.solvers.placement import replicated

# Pivots proposed at once: enough for one product to be worth its while, few enough for most to be accepted.
_PROPOSALS = 128


class Preconditioner(NamedTuple):
    """An approximate inverse of K + μ I, up to a factor, by K ≈ U Λ Uᵀ of rank k.

    (λ_k + μ) U (Λ + μ I)⁻¹ Uᵀ + (I − U Uᵀ), of Frangella, Tropp, Udell 2021 (arXiv:2110.02820), section 1.1. It needs
    no division by μ: μ may be 0.
    """

    vectors: Float[Array, "n rank"]
    # 1 − (λ_k + μ) / (Λ + μ)
    damping: Float[Array, " rank"]

    def __call__(self, residual: Float[Array, "n outputs"]) -> Float[Array, "n outputs"]:
        """Apply it."""
        return residual - matmul(self.vectors, self.damping[:, None] * matmul(self.vectors.T, residual))

    @classmethod
    def of(cls, factor: Float[Array, "n rank"], shift: float) -> Preconditioner:
        """Make it of a factor F of K ≈ F Fᵀ, and μ."""
        return cls(*_decomposed(factor, shift))


@jax.jit
def _decomposed(factor: Array, shift: ArrayLike) -> tuple[Array, Array]:
    if factor.shape[1] == 0:
        return factor, jnp.zeros(0, factor.dtype)
    # Of F itself, not of Fᵀ F, which would square its condition number. QR first: the rest is small.
    orthogonal, small = jnp.linalg.qr(factor)
    vectors, scales, _ = jnp.linalg.svd(small)
    damping = (scales**2 - scales[-1] ** 2) / (scales**2 + shift)
    return matmul(orthogonal, vectors), jnp.where(scales > 0, damping, 0)


def randomly_pivoted_cholesky(operator: Operator, rank: int, key: Array) -> Float[Array, "n rank"]:
    """Factorize K ≈ F Fᵀ, with pivots drawn in proportion to the diagonal of K − F Fᵀ, from rank columns of K or more.

    Chen, Epperly, Tropp, Webber 2023 (arXiv:2207.06503), Algorithm 1, in the accelerated form of Epperly, Tropp,
    Webber 2024 (arXiv:2410.03969): many pivots are proposed at once, and each is accepted with the probability that
    makes it a draw from what the accepted ones before it have left.

    **Arguments:** `rank`: columns of F, at most n. `key`: a `jax.random` key.

    **Returns:** F, on every device of `operator.mesh`; with fewer columns where K − F Fᵀ is rounding noise before.

    **Raises:** `FloatingPointError` if the diagonal of K, or a column, is not finite.
    """
    # The draws are made by the host, which every process of several is, in float64.
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    diagonal = operator.diagonal().astype(np.float64)
    _check_finite(diagonal)
    # What rounding leaves of a variance from which `rank` squares were subtracted.
    noise = 4 * rank**0.5 * float(jnp.finfo(operator.dtype).eps) * np.abs(diagonal)
    left, filled = np.where(diagonal > noise, diagonal, 0.0), 0
    proposals = min(_PROPOSALS, rank)
    factor = replicated(operator.mesh, np.zeros((operator.size, rank + proposals if rank > 0 else 0), operator.dtype))
    while filled < rank and np.any(left > 0):
        pivots = generator.choice(operator.size, proposals, p=left / left.sum())
        thresholds = np.maximum(generator.uniform(size=proposals) * left[pivots], noise[pivots])
        beyond, block = _beyond(factor, operator.columns(pivots), pivots)
        block = np.asarray(block, np.float64)
        _check_finite(block)
        transform = _accept(block, thresholds, rank - filled)
        accepted = int(np.count_nonzero(transform.any(axis=0)))
        factor, explained = _extended(factor, beyond, transform.astype(operator.dtype), filled)
        left = left - np.asarray(explained, np.float64)
        _check_finite(left)
        left[left <= noise] = 0.0
        # What is left of a pivot's own variance is rounding noise, whatever the noise says of it.
        left[pivots[transform.any(axis=1)]] = 0.0
        filled += accepted
    return factor[:, :filled]


@jax.jit
def _beyond(factor: Array, columns: Array, pivots: Array) -> tuple[Array, Array]:
    """Give the columns of K − F Fᵀ, and their part between the pivots."""
    beyond = columns - matmul(factor, factor[pivots].T)
    return beyond, beyond[pivots]


@jax.jit
def _extended(factor: Array, beyond: Array, transform: Array, filled: int) -> tuple[Array, Array]:
    """Put new columns into F; give F, and what they explain of the diagonal of K."""
    new = matmul(beyond, transform)
    return lax.dynamic_update_slice_in_dim(factor, new, filled, 1), jnp.sum(new * new, axis=1)


def _accept(block: np.ndarray, thresholds: np.ndarray, most: int) -> np.ndarray:
    """Go through the proposed pivots, and accept each whose variance beyond those before it exceeds its threshold.

    **Arguments:** `block`: (b, b), K − F Fᵀ between the pivots. `thresholds`: (b,). `most`: to accept.

    **Returns:** T (b, b), with which (K − F Fᵀ)[:, pivots] T are the new columns of F, in the first columns of T; the
    rest of it is 0, and so are the rows of rejected pivots.
    """
    left = (block + block.T) / 2
    lower = np.zeros_like(left)
    accepted: list[int] = []
    for i in range(len(left)):
        variance = left[i, i]
        if len(accepted) < most and variance > thresholds[i]:
            column = left[:, i] / np.sqrt(variance)
            left = left - np.outer(column, column)
            lower[:, len(accepted)] = column
            accepted.append(i)
    transform = np.zeros_like(left)
    count = len(accepted)
    transform[accepted, :count] = np.linalg.inv(lower[accepted, :count]).T
    return transform


def _check_finite(values: np.ndarray) -> None:
    if not np.all(np.isfinite(values)):
        raise FloatingPointError("fit: not finite; look for NaN or infinite values in the inputs and the kernel")
