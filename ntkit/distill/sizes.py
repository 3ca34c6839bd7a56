"""How many images are enough: degrees of freedom, and sets on which a regression is that on the whole data.

Maalouf, Tukan, Loo, Hasani, Lechner, Rus 2023 (arXiv:2305.14113).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from ntkit import regression
from ntkit._checks import check_batch, check_number, check_square, check_targets
from ntkit.distill.distilled import Distilled
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel


def degrees_of_freedom(gram: Float[ArrayLike, "n n"], ridge: float = 1e-6) -> float:
    """Give tr K (K + λI)⁻¹, the number of parameters that ridge regression with a kernel makes use of.

    Between 0 and n. About so many random features reach the error of the whole kernel, and so do as many images.

    **Arguments:** `gram`: K (n, n). `ridge`: λ relative to tr(K)/n, as in [`ntkit.regression.fit`][].

    **Raises:** `ValueError` that names the argument.
    """
    gram = check_square("gram", gram)
    ridge = check_number("ridge", ridge, least=0)
    values = np.maximum(np.linalg.eigvalsh(gram), 0)
    shift = ridge * float(np.mean(np.diagonal(gram)))
    # What is rounding counts for nothing without a ridge.
    least = len(gram) * np.finfo(np.float64).eps * values[-1]
    return float(np.sum(np.where(values > least, values / np.maximum(values + shift, np.finfo(float).tiny), 0.0)))


def exact_set(
    kernel: Kernel,
    images: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n outputs"],
    *,
    ridge: float = 1e-6,
) -> Distilled:
    """Give a few of the images, with targets such that regression on them is that on all of them.

    With m features, regression is m numbers for each output, and any m images with independent features can stand for
    all others: their targets follow from the weights, as in [`label_solve`][ntkit.distill.label_solve], here without
    an error (Maalouf et al. 2023). The images are chosen by a QR factorization with pivoting of their
    features, as far from each other as it finds them.

    **Arguments:** `kernel`: one with features, such as [`ntkit.random_features`][]. `images`, `targets`: all data.
    `ridge`: relative, of the regression on all data and of that on the set.

    **Returns:** as many images as the rank of the features, at most m. `regression.fit(kernel, set.images, set.labels,
    ridge)` predicts what the fit on all does, but for rounding.

    **Raises:** `ValueError` that names the argument, also for a kernel without features.
    """
    from scipy.linalg import lstsq, qr

    check_kernel("kernel", kernel)
    images = np.asarray(check_batch("images", images))
    targets = np.asarray(check_targets("targets", targets, len(images)))
    ridge = check_number("ridge", ridge, least=0)
    features = np.asarray(kernel.features(images))
    weights = np.asarray(regression.fit(kernel, images, targets, ridge, solver=regression.Primal()).weights, np.float64)
    precision = float(jnp.finfo(features.dtype).eps) * max(features.shape)
    triangle, order = qr(features.T.astype(np.float64), mode="r", pivoting=True)
    diagonal = np.abs(np.diagonal(triangle))
    chosen = np.sort(order[: max(1, int(np.sum(diagonal > precision * diagonal[0])))])
    rows = features[chosen].astype(np.float64)
    coefficients = lstsq(rows.T, weights)[0]
    gram = rows @ rows.T
    labels = gram @ coefficients + ridge * np.mean(np.diagonal(gram)) * coefficients
    return Distilled(images[chosen], labels.astype(features.dtype), kernel=kernel)
