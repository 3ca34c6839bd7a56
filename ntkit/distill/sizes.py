"""How many images are enough: degrees of freedom, and sets on which a regression is that on the whole data.

Maalouf, Tukan, Loo, Hasani, Lechner, Rus 2023 (arXiv:2305.14113).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit import regression
from ntkit._checks import check_batch, check_finite, check_integers, check_number, check_square, check_targets
from ntkit.architectures import Architecture
from ntkit.distill.distilled import Distilled
from ntkit.kernels import Kernel, nngp, ntk, random_features
from ntkit.kernels.base import check_kernel
from ntkit.kernels.stax import Get
from ntkit.runs import Result


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


def excess_risks(
    architecture: Architecture,
    images: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n outputs"],
    *,
    widths: Sequence[int],
    key: Array,
    get: Get = "nngp",
    ridge: float = 1e-2,
) -> Result:
    """Give how much worse than on all data with the whole kernel regression is on exact sets, by their size.

    For each width a network is sampled, and [`exact_set`][] gives the few images on which regression with its features
    is that on all images. What remains is what the features differ from the kernel. The risk is the mean square on
    `images`; excess is what it has above that of the kernel. The bound beside it holds for every draw: with
    Δ = 1 − λmin((K + λ)^(−½) (ΦΦᵀ + λ) (K + λ)^(−½)), Avron et al. 2017 (arXiv:1804.09893), the ridge
    objective of the features is at most 1 / (1 − Δ) times that of the kernel, λ tr Yᵀ (K + λ)⁻¹ Y, and the risk is no
    more than the objective. Δ falls below 1/2 with some multiple of the degrees of freedom as the number of features.

    **Arguments:** `architecture`: of the kernel. `images`, `targets`: all data; K of it is in memory. `widths`: of the
    sampled networks. `key`: of them. `get`: `"nngp"` or `"ntk"`. `ridge`: λ relative to tr(K)/n.

    **Returns:** a `Result`: the table `sizes`, with a row for each width, and in the summary the degrees of freedom and
    the risk of the kernel. A bound that says nothing, with Δ = 1, is `None`.

    **Raises:** `ValueError` that names the argument.
    """
    images = np.asarray(check_batch("images", images))
    targets = np.asarray(check_targets("targets", targets, len(images)))
    widths, ridge = check_integers("widths", widths), check_number("ridge", ridge, least=0)
    if ridge == 0:
        raise ValueError("ridge: got 0, expected a number above 0: without one the risk of enough features is 0")
    sampled = [random_features(architecture, get, key=key, width=width) for width in widths]
    gram = check_finite("images", {"nngp": nngp, "ntk": ntk}[get](architecture)(images))
    shift = ridge * np.mean(np.diagonal(gram))
    values, vectors = np.linalg.eigh(gram)
    inverse = 1 / (np.maximum(values, 0) + shift)
    coefficients = vectors.T @ targets.astype(np.float64)
    objective = shift * float(np.mean(inverse @ coefficients**2)) / len(images)
    risk = float(np.mean(((shift * inverse)[:, None] * coefficients) ** 2))
    rows = []
    for kernel in sampled:
        features = np.asarray(kernel.features(images), np.float64)
        # The same λ, relative to another trace.
        relative = shift / np.mean(np.sum(features**2, axis=1))
        few = exact_set(kernel, images, targets, ridge=relative)
        model = regression.fit(kernel, few.images, few.labels, relative)
        whitened = np.sqrt(inverse)[:, None] * (vectors.T @ features)
        least = np.linalg.eigvalsh(whitened @ whitened.T + np.diag(shift * inverse))[0]
        rows.append(
            {
                "features": features.shape[1],
                "images": len(few.images),
                "excess risk": float(np.mean((np.asarray(model(images), np.float64) - targets) ** 2)) - risk,
                "bound": objective / least - risk if least > 0 else None,
                "Δ": 1 - float(least),
            }
        )
    return Result(
        f"{len(images)} images, {get} of {architecture.name}, ridge {ridge:g}",
        summary={"degrees of freedom": float(np.sum(1 - shift * inverse)), "risk of the kernel": risk},
        tables={"sizes": rows},
        captions={"sizes": "Risk on exact sets, above that of the whole kernel on all images"},
    )
