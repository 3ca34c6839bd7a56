"""Scores of a network by its kernel, meant to say how accurate it will be without training it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import regression
from ntkit._checks import (
    check_array,
    check_call,
    check_callable,
    check_integer,
    check_key,
    check_number,
    check_outputs,
    check_square,
)
from ntkit.data import check_images, check_labels, one_hot
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
    values, labels = check_square("gram", gram), np.asarray(check_array("labels", labels, "classes (n,)"))
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
    samples, num_classes = check_integer("samples", samples), check_integer("num_classes", num_classes)
    ridge = check_number("ridge", ridge, least=0)
    check_key("key", key)
    check_callable("draw", draw, "a function of a key and images")
    x = check_images("x", x)
    new = check_images("new", new)
    if np.shape(new)[1:] != np.shape(x)[1:]:
        raise ValueError(f"new: got inputs of shape {np.shape(new)[1:]}, expected {np.shape(x)[1:]} as in x")
    check_labels("labels", labels, np.shape(x)[0], num_classes)
    check_labels("truth", truth, np.shape(new)[0], num_classes)
    both = jnp.concatenate([jnp.asarray(x), jnp.asarray(new)])
    check_outputs("draw", check_call("draw", draw, key, both), len(both))
    outputs = _drawn(draw, jax.random.split(key, samples), both)
    values = jnp.moveaxis(outputs, 0, -1).reshape(len(both), -1)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    # Regression with the kernel ⟨·, ·⟩ of what was drawn, centred, since a classifier may have any offset.
    values = (values - values.mean(0)) / jnp.sqrt(values.shape[1])
    count = np.shape(x)[0]
    fitted, shown = values[:count], values[count:]
    weights = regression.solve(jnp.matmul(fitted, fitted.T, precision="highest"), one_hot(labels, num_classes), ridge)
    found = np.asarray(jnp.matmul(jnp.matmul(shown, fitted.T, precision="highest"), weights[0], precision="highest"))
    if not np.isfinite(found).all():
        raise FloatingPointError("draw: got outputs that are NaN or infinite, expected finite ones")
    return float(np.mean(found.argmax(1) == np.asarray(truth)))


def _drawn(draw: Callable[[Array, Array], Array], keys: Array, x: Array) -> Any:
    return jax.jit(lambda keys, x: jax.lax.map(lambda key: draw(key, x), keys))(keys, x)
