"""Scores of a network by its kernel, meant to say how accurate it will be without training it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import regression
from ntkit._checks import calling, check_outputs
from ntkit.data import one_hot
from ntkit.features.spectra import condition_number


class Scores(NamedTuple):
    """What a tangent kernel says of its network.

    **Fields:**

    - `condition_number`: largest eigenvalue over smallest; the lower the better (TE-NAS; Chen et al. 2021,
      arXiv:2102.11535, section 3.1.1).
    - `norm`: Frobenius norm of the kernel over n, and `mean`: of its entries; the higher the better (KNAS; Xu et al.
      2021, ICML, section 4).
    - `label_alignment`: label–gradient alignment, the correlation over pairs of images of the kernel with whether they
      have one label, in [−1, 1]; the higher the better (LGA; Mok et al. 2022, arXiv:2203.14577, section 4).
    """

    condition_number: float
    norm: float
    mean: float
    label_alignment: float


# Whether a higher score promises a higher accuracy.
HIGHER_IS_BETTER = {"condition_number": False, "norm": True, "mean": True, "label_alignment": True}


def scores(gram: Float[ArrayLike, "n n"], labels: Int[ArrayLike, " n"]) -> Scores:
    """Score a network by its tangent kernel on a few images.

    **Arguments:** `gram`: K (n, n), for example `ntkit.empirical_ntk(module.apply, variables)(images)`. `labels`: of
    the images, of two classes at least.

    **Raises:** `ValueError` that names the argument.
    """
    values, labels = np.asarray(gram, np.float64), np.asarray(labels)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"gram: got shape {values.shape}, expected a square of finite numbers, of 2 images or more")
    if labels.shape != (len(values),) or len(np.unique(labels)) < 2:
        raise ValueError(f"labels: got shape {labels.shape}, expected ({len(values)},), of two classes at least")
    same = np.where(labels[:, None] == labels[None, :], 1.0, -1.0)
    kernel_part, label_part = values - values.mean(), same - same.mean()
    size = np.linalg.norm(kernel_part) * np.linalg.norm(label_part)
    return Scores(
        condition_number(np.linalg.eigvalsh(values)),
        float(np.linalg.norm(values) / len(values)),
        float(values.mean()),
        float(np.sum(kernel_part * label_part) / size) if size > 0 else 0.0,
    )


def nngp_accuracy(
    draw: Callable[[Array, Array], Array],
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    new: Float[ArrayLike, "m ..."],
    truth: Int[ArrayLike, " m"],
    *,
    key: Array,
    num_classes: int,
    samples: int = 256,
    ridge: float = 1e-3,
) -> float:
    """Give the accuracy of regression with the covariance of randomly initialized networks' outputs.

    The NNGP kernel by sampling (Park et al. 2020, arXiv:2011.06006, section 2): K(x, x') is the mean over networks and
    outputs of f(x) f(x'). Of `ntkit.nngp` kernels, which are exact, [`ntkit.regression.fit`][] gives it.

    **Arguments:** `draw`: `draw(key, x) -> (n, outputs)`, the outputs of a new network. `x`, `labels`: to fit; `new`,
    `truth`: to measure on. `samples`: networks. `ridge`: as in [`ntkit.regression.fit`][].

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if outputs are not finite.
    """
    if isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < 1:
        raise ValueError(f"samples: got {samples!r}, expected an integer of at least 1")
    both = jnp.concatenate([jnp.asarray(x), jnp.asarray(new)])
    with calling("draw"):
        check_outputs("draw", jax.eval_shape(draw, key, both), len(both))
    outputs = _drawn(draw, jax.random.split(key, samples), both)
    values = jnp.moveaxis(outputs, 0, -1).reshape(len(both), -1)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    # Regression with the kernel ⟨·, ·⟩ of what was drawn, centred, since a classifier may have any offset.
    values = (values - values.mean(0)) / jnp.sqrt(values.shape[1])
    count = len(np.asarray(labels))
    fitted, shown = values[:count], values[count:]
    weights = regression.solve(jnp.matmul(fitted, fitted.T, precision="highest"), one_hot(labels, num_classes), ridge)
    found = np.asarray(jnp.matmul(jnp.matmul(shown, fitted.T, precision="highest"), weights[0], precision="highest"))
    if not np.isfinite(found).all():
        raise FloatingPointError("draw: got outputs that are NaN or infinite, expected finite ones")
    return float(np.mean(found.argmax(1) == np.asarray(truth)))


def _drawn(draw: Callable[[Array, Array], Array], keys: Array, x: Array) -> Any:
    return jax.jit(lambda keys, x: jax.lax.map(lambda key: draw(key, x), keys))(keys, x)
