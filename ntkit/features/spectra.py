"""What a spectrum says: how many directions a kernel has, and how they lie to the labels."""

from __future__ import annotations

import numpy as np
from jaxtyping import ArrayLike, Float


def effective_rank(eigenvalues: Float[ArrayLike, " n"]) -> float:
    """Give exp(entropy) of the eigenvalues as shares of their sum: from 1 to n (Roy & Vetterli 2007).

    Negative ones, which are rounding, count as zero.

    **Raises:** `ValueError` if none is positive.
    """
    shares = _positive("eigenvalues", eigenvalues)
    shares = shares / shares.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def condition_number(eigenvalues: Float[ArrayLike, " n"]) -> float:
    """Give the largest eigenvalue over the smallest; infinity if that is not positive.

    In float32 a condition number above about 1e6 is one of the rounding.
    """
    values = _finite("eigenvalues", eigenvalues)
    return float(values.max() / values.min()) if values.min() > 0 else float("inf")


def concentration(eigenvalues: Float[ArrayLike, " n"], top: int) -> float:
    """Give the share of Σ λ² that the largest `top` eigenvalues have (Tsilivis & Kempe 2022, section 5)."""
    values = np.sort(np.abs(_finite("eigenvalues", eigenvalues)))[::-1]
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or not 1 <= top <= len(values):
        raise ValueError(f"top: got {top!r}, expected an integer from 1 to {len(values)}, the number of eigenvalues")
    return float(np.sum(values[:top] ** 2) / np.sum(values**2))


def alignment(gram: Float[ArrayLike, "n n"], y: Float[ArrayLike, "n outputs"], *, centred: bool = False) -> float:
    """Give the kernel–target alignment ⟨K, yyᵀ⟩ / (‖K‖ ‖yyᵀ‖), at most 1 (Cristianini et al. 2001).

    **Arguments:** `gram`: K (n, n). `y`: (n, outputs). `centred`: of K and y minus their means in feature space (Cortes
    et al. 2012, definition 4).

    **Raises:** `ValueError` that names the argument.
    """
    kernel, labels = _finite("gram", gram), _finite("y", y)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"gram: got shape {kernel.shape}, expected a square")
    if labels.ndim != 2 or len(labels) != len(kernel):
        raise ValueError(f"y: got shape {labels.shape}, expected ({len(kernel)}, outputs)")
    if centred:
        kernel = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
        labels = labels - labels.mean(0)
    inner = np.sum((kernel @ labels) * labels)
    size = np.linalg.norm(kernel) * np.linalg.norm(labels.T @ labels)
    if size == 0:
        raise ValueError("gram: got one that is zero, or labels that are, expected an alignment to be defined")
    return float(inner / size)


def label_shares(vectors: Float[ArrayLike, "n k"], y: Float[ArrayLike, "n outputs"]) -> Float[np.ndarray, " k"]:
    """Give the share of the labels' squares along each eigenvector, ‖v_iᵀ y‖² / ‖y‖²; all of them sum to 1.

    Where it lies at large eigenvalues gradient descent is fast (Arora et al. 2019, arXiv:1901.08584).
    """
    vectors, y = _finite("vectors", vectors), _finite("y", y)
    if y.ndim != 2 or vectors.ndim != 2 or len(y) != len(vectors):
        raise ValueError(f"y: got shape {y.shape}, expected ({len(vectors)}, outputs), a row for each of the vectors'")
    return np.sum((vectors.T @ y) ** 2, axis=1) / np.sum(y**2)


def predicted_residuals(
    eigenvalues: Float[ArrayLike, " k"],
    vectors: Float[ArrayLike, "n k"],
    y: Float[ArrayLike, "n outputs"],
    steps: ArrayLike,
    learning_rate: float,
) -> Float[np.ndarray, "steps k"]:
    """Predict what gradient descent leaves of each eigencomponent of the labels: (1 − η λ_i)^t ‖v_iᵀ y‖.

    Arora et al. 2019 (arXiv:1901.08584, theorem 4.1), for descent on ½ Σ (f − y)² from f₀ = 0.

    **Arguments:** `steps`: numbers t of steps, at least 0. `learning_rate`: η; with the loss ½ · mean over n images,
    η is the learning rate over n.

    **Returns:** (steps, k).

    **Raises:** `ValueError` that names the argument; also if η λ is 2 or more, where descent diverges.
    """
    values, vectors, y = (
        _finite(name, value) for name, value in (("eigenvalues", eigenvalues), ("vectors", vectors), ("y", y))
    )
    times = _finite("steps", steps).reshape(-1)
    if not np.all(times >= 0):
        raise ValueError(f"steps: got {times.min():g}, expected at least 0")
    if not (np.ndim(learning_rate) == 0 and learning_rate > 0 and learning_rate * values.max() < 2):
        raise ValueError(
            f"learning_rate: got {learning_rate!r}, expected a number above 0 and below {2 / values.max():g}, 2 over "
            "the largest eigenvalue"
        )
    return np.abs(1 - learning_rate * values) ** times[:, None] * residuals(vectors, y)


def residuals(vectors: Float[ArrayLike, "n k"], residual: Float[ArrayLike, "n outputs"]) -> Float[np.ndarray, " k"]:
    """Give the size of y − f along each eigenvector, ‖v_iᵀ (y − f)‖: what is measured of a network as it trains."""
    vectors, residual = _finite("vectors", vectors), _finite("residual", residual)
    if residual.ndim != 2 or len(residual) != len(vectors):
        raise ValueError(f"residual: got shape {residual.shape}, expected ({len(vectors)}, outputs)")
    return np.linalg.norm(vectors.T @ residual, axis=1)


def similarity(first: Float[ArrayLike, "m k"], second: Float[ArrayLike, "m l"]) -> Float[np.ndarray, "k l"]:
    """Give the absolute cosines of two kernels' features, by their values on the same m images, in [0, 1].

    The values are those of [`EigenFeatures.eigenfunctions`][], for example. Features of two architectures are the same
    up to sign and scale where it is 1 on the diagonal (Tsilivis & Kempe 2022, section 4, find most of the top so).
    """
    first, second = _finite("first", first), _finite("second", second)
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"second: got shape {second.shape}, expected ({len(first)}, features) as first")
    units = [values / np.maximum(np.linalg.norm(values, axis=0), np.finfo(float).tiny) for values in (first, second)]
    return np.abs(units[0].T @ units[1])


def _finite(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name}: got {'no numbers' if array.size == 0 else 'NaN or infinity'}, expected finite ones")
    return array


def _positive(name: str, values: ArrayLike) -> np.ndarray:
    array = _finite(name, values)
    positive = array[array > 0]
    if positive.size == 0:
        raise ValueError(f"{name}: got none above 0, expected at least one")
    return positive
