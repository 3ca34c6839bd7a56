from collections import Counter

import jax
import numpy as np
import pytest

from ntkit.solvers import InMemory, Preconditioner, randomly_pivoted_cholesky

RNG = np.random.default_rng(0)
# Eigenvalues 1, 1/2, 1/4, …
VECTORS = np.linalg.qr(RNG.normal(size=(60, 60)))[0]
DECAYING = (VECTORS * 0.5 ** np.arange(60)) @ VECTORS.T


def factor_of(matrix, rank, key=0):
    return np.asarray(randomly_pivoted_cholesky(InMemory(matrix), rank, jax.random.key(key)))


def test_what_is_left_is_positive_and_small(x64: None) -> None:
    for rank in (1, 20):
        left = np.linalg.eigvalsh(DECAYING - (factor := factor_of(DECAYING, rank)) @ factor.T)
        assert factor.shape == (60, rank)
        assert left.min() > -1e-12
        # The best there is of this rank leaves 0.5^rank.
        assert left.max() < 20 * 0.5**rank


@pytest.mark.parametrize("rank", [3, 40])
def test_a_matrix_of_low_rank_is_all_explained(rank: int, x64: None) -> None:
    root = RNG.normal(size=(200, 8))
    factor = factor_of(root @ root.T, rank)
    assert factor.shape[1] == min(rank, 8)
    if rank >= 8:
        np.testing.assert_allclose(factor @ factor.T, root @ root.T, atol=1e-9)


def test_in_float32_noise_is_no_pivot() -> None:
    root = RNG.normal(size=(300, 5)).astype(np.float32)
    factor = factor_of(root @ root.T, 300)
    assert 5 <= factor.shape[1] < 30
    np.testing.assert_allclose(factor @ factor.T, root @ root.T, atol=1e-4)


def test_pivots_are_drawn_as_one_at_a_time() -> None:
    """Many at once, with rejection, are distributed like single draws from what is left of the diagonal."""
    matrix = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 2.0]], np.float32)
    draws = 200
    found = Counter()
    for key in range(draws):
        factor = factor_of(matrix, 2, key)
        found[tuple(np.flatnonzero(np.abs(1 - np.sum(factor**2, 1) / np.diag(matrix)) < 1e-5))] += 1
    # First 2, then 0 or 1 alike; or first 0, then 2 rather than 1, of which 1 − 0.9² = 0.19 is left; and so on.
    neighbours = 0.5 * 0.19 / 2.19
    assert set(found) <= {(0, 1), (0, 2), (1, 2)}
    assert abs(found[0, 1] / draws - neighbours) < 4 * (neighbours / draws) ** 0.5
    assert abs(found[0, 2] / draws - (1 - neighbours) / 2) < 4 * (0.25 / draws) ** 0.5


def test_is_the_inverse_where_the_factor_is_all(x64: None) -> None:
    residual = RNG.normal(size=(60, 2))
    for shift in (1e-3, 0.0):
        preconditioner = Preconditioner.of(np.linalg.cholesky(DECAYING + 1e-6 * np.eye(60)), shift)
        shifted = DECAYING + (1e-6 + shift) * np.eye(60)
        # Up to a factor: the least eigenvalue.
        expected = np.linalg.eigvalsh(shifted).min() * np.linalg.solve(shifted, residual)
        np.testing.assert_allclose(preconditioner(residual), expected, rtol=1e-5, atol=1e-9)


def test_none_of_rank_zero(x64: None) -> None:
    residual = RNG.normal(size=(60, 2))
    assert factor_of(DECAYING, 0).shape == (60, 0)
    np.testing.assert_array_equal(Preconditioner.of(np.zeros((60, 0)), 0.1)(residual), residual)
