"""What a spectrum says: how many directions a kernel has, and how they lie to the labels."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import ArrayLike, Float

from ntkit._checks import check_finite, check_flag, check_integer, check_positive, check_square, wrong


class SpectrumWarning(UserWarning):
    """Eigenvalues are negative by more than rounding: they are not those of a Gram matrix."""


def effective_rank(eigenvalues: Float[ArrayLike, " n"]) -> float:
    """Give exp(entropy) of the eigenvalues as shares of their sum: from 1 to n (Roy & Vetterli 2007).

    Negative ones, which are rounding, count as zero.

    **Warns:** [`SpectrumWarning`][] if some are more than that.

    **Raises:** `ValueError` if none is positive.
    """
    values = _spectrum(eigenvalues)
    shares = values[values > 0]
    shares = shares / shares.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def condition_number(eigenvalues: Float[ArrayLike, " n"]) -> float:
    """Give the largest eigenvalue over the smallest; infinity if that is not positive.

    In float32 a condition number above about 1e6 is one of the rounding.

    **Warns, raises:** as [`effective_rank`][].
    """
    values = _spectrum(eigenvalues)
    return float(values.max() / values.min()) if values.min() > 0 else float("inf")


def concentration(eigenvalues: Float[ArrayLike, " n"], top: int) -> float:
    """Give the share of Σ λ² that the largest `top` eigenvalues have (Tsilivis & Kempe 2022, section 5).

    **Warns, raises:** as [`effective_rank`][].
    """
    values = np.sort(np.abs(_spectrum(eigenvalues)))[::-1]
    top = check_integer("top", top, 1, len(values))
    return float(np.sum(values[:top] ** 2) / np.sum(values**2))


def alignment(gram: Float[ArrayLike, "n n"], y: Float[ArrayLike, "n outputs"], *, centred: bool = False) -> float:
    """Give the kernel–target alignment ⟨K, yyᵀ⟩ / (‖K‖ ‖yyᵀ‖), at most 1 (Cristianini et al. 2001).

    **Arguments:** `gram`: K (n, n). `y`: (n, outputs). `centred`: of K and y minus their means in feature space (Cortes
    et al. 2012, definition 4).

    **Raises:** `ValueError` that names the argument.
    """
    kernel, labels = check_square("gram", gram), check_finite("y", y)
    if labels.ndim != 2 or len(labels) != len(kernel):
        raise ValueError(f"y: got shape {labels.shape}, expected ({len(kernel)}, outputs)")
    if check_flag("centred", centred):
        kernel = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
        labels = labels - labels.mean(0)
    inner = np.sum((kernel @ labels) * labels)
    sizes = {"gram": np.linalg.norm(kernel), "y": np.linalg.norm(labels.T @ labels)}
    for name, size in sizes.items():
        if size == 0:
            raise ValueError(f"{name}: got one that is zero, expected an alignment to be defined")
    return float(inner / (sizes["gram"] * sizes["y"]))


def label_shares(vectors: Float[ArrayLike, "n k"], y: Float[ArrayLike, "n outputs"]) -> Float[np.ndarray, " k"]:
    """Give the share of the labels' squares along each eigenvector, ‖v_iᵀ y‖² / ‖y‖²; all of them sum to 1.

    Where it lies at large eigenvalues gradient descent is fast (Arora et al. 2019, arXiv:1901.08584).
    """
    along, total = _along(vectors, "y", y), np.sum(np.square(np.asarray(y, np.float64)))
    if total == 0:
        raise ValueError("y: got zeros alone, expected labels that can be shared out")
    return np.sum(along**2, axis=1) / total


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
    values, left = _spectrum(eigenvalues), np.linalg.norm(_along(vectors, "y", y), axis=1)
    if len(values) != len(left):
        raise ValueError(f"eigenvalues: got {len(values)}, expected {len(left)}, one for each of the vectors")
    times = check_finite("steps", steps).reshape(-1)
    if not np.all(times >= 0):
        raise ValueError(f"steps: got {times.min():g}, expected at least 0")
    if not check_positive("learning_rate", learning_rate) * values.max() < 2:
        expected = f"a number above 0 and below {2 / values.max():g}, 2 over the largest eigenvalue"
        raise wrong("learning_rate", learning_rate, expected)
    return np.abs(1 - learning_rate * values) ** times[:, None] * left


def residuals(vectors: Float[ArrayLike, "n k"], residual: Float[ArrayLike, "n outputs"]) -> Float[np.ndarray, " k"]:
    """Give the size of y − f along each eigenvector, ‖v_iᵀ (y − f)‖: what is measured of a network as it trains."""
    return np.linalg.norm(_along(vectors, "residual", residual), axis=1)


def similarity(first: Float[ArrayLike, "m k"], second: Float[ArrayLike, "m l"]) -> Float[np.ndarray, "k l"]:
    """Give the absolute cosines of two kernels' features, by their values on the same m images, in [0, 1].

    The values are those of [`EigenFeatures.eigenfunctions`][], for example. Features of two architectures are the same
    up to sign and scale where it is 1 on the diagonal (Tsilivis & Kempe 2022, section 4, find most of the top so).
    """
    first, second = check_finite("first", first), check_finite("second", second)
    if first.ndim != 2:
        raise ValueError(f"first: got shape {first.shape}, expected (m, features)")
    if second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"second: got shape {second.shape}, expected ({len(first)}, features) as first")
    units = [values / np.maximum(np.linalg.norm(values, axis=0), np.finfo(float).tiny) for values in (first, second)]
    return np.abs(units[0].T @ units[1])


def _along(vectors: ArrayLike, name: str, y: ArrayLike) -> np.ndarray:
    """Give the components vᵢᵀ y (k, outputs) of labels, or of what is left of them."""
    columns, rows = check_finite("vectors", vectors), check_finite(name, y)
    if columns.ndim != 2:
        raise ValueError(f"vectors: got shape {columns.shape}, expected (n, k), eigenvectors as columns")
    if rows.ndim != 2 or len(rows) != len(columns):
        raise ValueError(f"{name}: got shape {rows.shape}, expected ({len(columns)}, outputs) as vectors")
    return columns.T @ rows


def _spectrum(eigenvalues: ArrayLike) -> np.ndarray:
    """Give eigenvalues of a Gram matrix, in float64; at least one is positive, and none is negative but for rounding.

    Others are warned of.
    """
    values = check_finite("eigenvalues", eigenvalues)
    if values.ndim != 1:
        raise ValueError(f"eigenvalues: got shape {values.shape}, expected (n,)")
    least, most = values.min(), values.max()
    if not most > 0:
        raise ValueError("eigenvalues: got none above 0, expected at least one")
    # Whatever precision they come from: float32 rounds a Gram matrix of n inputs by about this much of the largest.
    if least < -8 * len(values) * np.finfo(np.float32).eps * most:
        warnings.warn(
            f"eigenvalues: got {least:.3g} beside {most:.3g}, which is more than rounding: they are not those of a "
            "Gram matrix, and what is said of them means little",
            SpectrumWarning,
            stacklevel=3,
        )
    return values
