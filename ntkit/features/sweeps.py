"""All features of a kernel at once: how useful each is, and how robust against one step along its gradient."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_flag, wrong
from ntkit._loops import fast_in_loops
from ntkit.attacks import Ball
from ntkit.attacks.balls import check_ball, like
from ntkit.attacks.goals import Goal
from ntkit.attacks.losses import fooled, log_odds
from ntkit.attacks.problem import batches, problem
from ntkit.data.targets import targets_of
from ntkit.features.eigen import EigenFeatures
from ntkit.kernels import Kernel, memory
from ntkit.runs import progress


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What [`sweep`][] found of each of k features.

    **Fields:** `eigenvalues` (k,). `accuracy`, `correlation` (k,): usefulness, as in
    [`ntkit.features.usefulness`][]. `robust_accuracy`, `robust_correlation` (k,): the same under attack, as in
    [`ntkit.features.robustness`][] with FGSM.
    """

    eigenvalues: Float[np.ndarray, " k"]
    accuracy: Float[np.ndarray, " k"]
    correlation: Float[np.ndarray, " k"]
    robust_accuracy: Float[np.ndarray, " k"]
    robust_correlation: Float[np.ndarray, " k"]


def sweep(
    features: EigenFeatures,
    x: Float[ArrayLike, "m ..."],
    labels: Int[ArrayLike, " m"],
    ball: Ball,
    *,
    show_progress: bool = False,
) -> Sweep:
    """Measure every feature, compiled: its usefulness, and its robustness against FGSM.

    What features share is computed once: the kernel of the images with the support, which gives all features' outputs,
    and its linearization, from which all their gradients are matrix products. Only at the attacked images, which are
    others for each feature, it is computed again. Memory is bounded, whatever the number of features.

    **Arguments:** `features`: of [`ntkit.features.eigenfeatures`][]. `x`, `labels`, `ball`: as in
    [`ntkit.attacks.FGSM`][], whose cross-entropy and step it takes. `show_progress`: whether to show a progress bar on
    stderr.

    **Returns:** a [`Sweep`][].

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if outputs or gradients are not finite.
    """
    if not isinstance(features, EigenFeatures) or len(features) == 0:
        raise wrong("features", features, "features of ntkit.features.eigenfeatures")
    check_ball("ball", ball)
    check_flag("show_progress", show_progress)
    found = problem(features[0], x, labels, ball)
    found.check_differentiable()
    m, n, k = len(found.x), len(features.support), len(features)
    # As many images at once as fit, and then as many features.
    # Of a kernel a handful are alive at once.
    pairs = memory.at_once(2 * found.x.dtype.itemsize * n)
    at_once = min(m, max(1, pairs))
    size = min(k, max(1, pairs // at_once))
    columns = features.coefficients / features.eigenvalues[:, None]
    totals = []
    with progress(k, "sweep", enabled=show_progress) as bar:
        for start in range(0, k, size):
            # The last block is filled up with the first features, the last batch with the first images.
            chosen = np.arange(start, start + size) % k
            total = _Sums(*(np.zeros(size) for _ in _Sums._fields))
            for first, rows in batches(m, at_once):
                counts = jnp.asarray(np.arange(first, first + at_once) < m)
                some = (found.x[rows], found.classes[rows], counts)
                vectors = features.vectors[:, chosen]
                # Compiled apart: XLA fuses the steps into the products that give the gradients, which takes longer.
                slopes = _slopes(features.kernel, features.support, some[0], vectors)
                part = _measure(ball, features.kernel, features.support, some, vectors, columns[chosen], *slopes)
                total = jax.tree.map(lambda one, other: one + np.asarray(other, np.float64), total, part)
            totals.append(_Sums(*(values[: k - start] for values in total)))
            bar.update(min(k, start + size))
    sums = jax.tree.map(lambda *arrays: np.concatenate(arrays), *totals)
    if not all(np.isfinite(values).all() for values in sums):
        raise FloatingPointError("features: their outputs or gradients are NaN or infinite, expected finite values")
    scale = np.sqrt(sums.squares * float(jnp.sum(targets_of(found.classes, found.outputs) ** 2)))
    scale = np.where(scale > 0, scale, 1)
    return Sweep(
        np.asarray(features.eigenvalues, np.float64),
        sums.right / m,
        sums.agreement / scale,
        sums.still_right / m,
        sums.attacked_agreement / scale,
    )


class _Sums(NamedTuple):
    """Of each feature, over images: who is right, the products with targets, and the squares of clean outputs."""

    right: Any
    still_right: Any
    agreement: Any
    attacked_agreement: Any
    squares: Any


@jax.jit
def _slopes(kernel: Kernel, support: Array, x: Array, vectors: Array) -> tuple[Array, Array]:
    """Give what multiplies each feature's column, (m, k), and its gradients (k, m, …)."""

    def slopes(x: Array, vectors: Array) -> tuple[Array, Array]:
        values, pull = jax.vjp(lambda x: kernel(x, support), x)
        gradients = jax.vmap(lambda v: pull(jnp.broadcast_to(v, values.shape).astype(values.dtype))[0], 1)(vectors)
        return jnp.matmul(values, vectors, precision="highest"), gradients

    return fast_in_loops(slopes)(x, vectors)


@functools.partial(jax.jit, static_argnums=0)
def _measure(
    ball: Ball,
    kernel: Kernel,
    support: Array,
    images: tuple[Array, Array, Array],
    vectors: Float[Array, "n k"],
    columns: Float[Array, "k outputs"],
    values: Float[Array, "m k"],
    gradients: Float[Array, "k m ..."],
) -> _Sums:
    """Attack each feature's images, (x, classes, which of them count), along its gradients, and count."""
    x, classes, counts = images
    targets = targets_of(classes, columns.shape[1])

    def loss(value: Array, column: Array) -> Array:
        return jnp.sum(log_odds(value[:, None] * column[None], classes))

    # Of one feature the loss depends on one number for each image: the sign of its slope by that decides.
    by_value = jax.vmap(jax.grad(loss), (1, 0))(values, columns)

    def attacked(slope: tuple[Array, Array]) -> Array:
        by_value, gradient = slope
        ascent = like(by_value, x) * gradient
        return ball.project(x, x + ball.radius * ball.steepest(ascent))

    # A loop: what the projection asks of the images alone is computed once before it, and not for each feature.
    moved = lax.map(attacked, (by_value, gradients))
    kernels = kernel(moved.reshape(-1, *x.shape[1:]), support).reshape(*moved.shape[:2], -1)
    after = jnp.einsum("kmn,nk->mk", kernels, vectors, precision="highest")

    def of_feature(value: Array, after: Array, column: Array) -> _Sums:
        clean, outputs = value[:, None] * column[None], after[:, None] * column[None]
        outputs = jnp.where(Goal(classes).farther(log_odds, clean, outputs)[:, None], clean, outputs)
        right = ~fooled(clean, classes)
        still = right & ~fooled(outputs, classes)
        weights = counts.astype(x.dtype)
        return _Sums(
            jnp.sum(right & counts),
            jnp.sum(still & counts),
            jnp.sum(clean * targets * weights[:, None]),
            jnp.sum(outputs * targets * weights[:, None]),
            jnp.sum(clean**2 * weights[:, None]),
        )

    return jax.vmap(of_feature, (1, 1, 0))(values, after, columns)
