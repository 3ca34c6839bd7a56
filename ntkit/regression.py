"""Kernel ridge regression and gradient flow, both in closed form.

A fitted [`Predictor`][] is a model: a callable from images to outputs. Everything here is compiled, and differentiable
in the support images, the targets, the ridge, the kernel's hyper-parameters and the time; but for fits by [`CG`][],
which are for Gram matrices too large for that.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import (
    calling,
    check_array,
    check_callable,
    check_flag,
    check_integer,
    check_scalar,
    check_targets,
    traced,
    wrong,
)
from ntkit._pytrees import told_apart
from ntkit.gram import gram as gram_in_blocks
from ntkit.kernels import Kernel
from ntkit.kernels._inputs import check_inputs
from ntkit.solvers import (
    CG,
    Cholesky,
    ConvergenceWarning,
    InMemory,
    Report,
    RoundingWarning,
    Solver,
    cross_product,
    operator_of,
    solve,
)
from ntkit.solvers.rounding import rounding, rounding_of_angles, warn_of_rounding

__all__ = [
    "CG",
    "Cholesky",
    "ConvergenceWarning",
    "Predictor",
    "Report",
    "RidgeWarning",
    "RoundingWarning",
    "accuracy",
    "fit",
    "flow",
    "solve",
    "warn_of_ridge",
]


class RidgeWarning(UserWarning):
    """The Gram matrix could not be factorized with the ridge that was asked for, and a larger one was used."""


@told_apart
@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """The model x ↦ K(x, support) weights, a JAX pytree. [`fit`][] and [`flow`][] make it.

    **Fields:**

    - `kernel`: the kernel.
    - `support`: the n inputs that it was fitted on.
    - `weights`: dual coefficients (n, outputs).
    - `ridge`: the relative ridge that was *used*: the one asked for, or a larger one where the Gram matrix could not
      be factorized in this precision. 0 for [`flow`][].
    - `report`: of a fit by [`CG`][], what it reached: a [`Report`][]. `None` otherwise.
    """

    kernel: Kernel
    support: Float[Array, "n ..."]
    weights: Float[Array, "n outputs"]
    ridge: Float[Array, ""]
    report: Report | None = None

    def __call__(self, x: Float[ArrayLike, "m ..."]) -> Float[Array, "m outputs"]:
        """Predict the outputs (m, outputs) for a batch of inputs.

        Where K(x, support) takes more than about 64 MiB by `kernel.pair_bytes` it is computed in tiles, each
        multiplied with its part of the weights; inside `jit`, `grad` and `vmap` too.
        """
        x = check_inputs("x", x)
        if x.shape[1:] != self.support.shape[1:]:
            raise ValueError(
                f"x: got inputs of shape {x.shape[1:]}, expected {self.support.shape[1:]} as in the support"
            )
        return cross_product(self.kernel, x, self.support, self.weights)


def fit(
    kernel: Kernel,
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n outputs"],
    ridge: ArrayLike = 1e-6,
    *,
    solver: Solver | None = None,
    gram: Float[Array | np.ndarray, "n n"] | None = None,
    mesh: Mesh | None = None,
    block_size: int | None = None,
    progress: bool = False,
) -> Predictor:
    """Fit kernel ridge regression: weights = (K + ridge · tr(K)/n · I)⁻¹ y with K = kernel(x).

    By default K is factorized by Cholesky in the precision of `x` (float32 unless x64 is on). If that fails it is tried
    again with a ten times larger ridge, and so on, inside the compiled function; the ridge that was used is on the
    result.

    With `solver=CG()` K is only multiplied with, so that it need not fit in memory: what is not given as `gram` is
    computed again in every step, tile by tile.

    **Arguments:**

    - `kernel`: the kernel.
    - `x`: n support inputs, images (n, height, width, channels) or vectors (n, d).
    - `y`: regression targets (n, outputs), for example `ntkit.data.one_hot(labels, 10)`.
    - `ridge`: relative to the mean of the diagonal of K; at least 0. With 0 the fit interpolates, if it can.
    - `solver`: [`Cholesky`][]`()`, the default, or [`CG`][]`(…)`.
    - `gram`: K, if you have it: an array, or a memory map, which [`CG`][] reads from the disk in every step. Its dtype
      is the precision of the fit then (float32 at least).
    - `mesh`: for [`CG`][], whose products with K are then shared by all devices of the mesh, whatever its axes: the
      rows of a given K, the tiles of another. With several processes, each makes the same call.
    - `block_size`: for [`CG`][], rows of K in one read from the disk (default: 256 MiB), or inputs on a side of a tile
      (default: an eighth of n, or about 64 MiB by `kernel.pair_bytes`).
    - `progress`: whether to show a progress bar on stderr, of [`CG`][].

    **Returns:** a [`Predictor`][].

    **Warns:** [`RidgeWarning`][] if a larger ridge was used. Not while being traced (inside `jit` or `grad`): there the
    caller finds it as `predictor.ridge`. [`RoundingWarning`][] if rounding changes predictions by an estimated percent
    or more: the precision does not resolve the model. [`ConvergenceWarning`][] if [`CG`][] stopped above its tolerance;
    `predictor.report` has what it reached.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the Gram matrix or the targets are not
    finite.
    """
    x, y = check_training_set(x, y)
    ridge = check_scalar("ridge", ridge)
    solver = Cholesky() if solver is None else solver
    if not isinstance(solver, Solver):
        raise wrong("solver", solver, "ntkit.regression.Cholesky() or CG()")
    progress = check_flag("progress", progress)
    if isinstance(solver, CG) and traced(kernel, x, y, ridge, gram):
        raise ValueError("solver: got CG inside jit, grad or vmap, expected Cholesky() there")
    if isinstance(solver, Cholesky) and mesh is not None:
        raise ValueError(
            "mesh: got one for Cholesky, which runs on one device, expected it for solver=CG() or for ntkit.gram"
        )
    operator = operator_of(kernel, x, gram, mesh, block_size)
    if isinstance(solver, Cholesky):
        operator = InMemory(operator.dense())
    solution = solver(operator, y, ridge, progress=progress)
    if not traced(solution.weights):
        _check_finite("fit", solution.weights)
        found = operator.dense() if isinstance(solver, Cholesky) else operator.diagonal()
        _warn_of_rounding("fit", kernel, x, y, found, solution.weights)
    if not traced(solution.ridge, ridge):
        warn_of_ridge(float(np.asarray(ridge)), float(solution.ridge))
    return Predictor(kernel, x, solution.weights, solution.ridge, solution.report)


def flow(
    kernel: Kernel,
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n outputs"],
    time: ArrayLike,
    *,
    learning_rate: ArrayLike = 1.0,
) -> Predictor:
    """Train the infinitely wide network to time t, by gradient flow from f₀ = 0, in closed form.

    f_t(x') = K(x', x) K⁻¹ (I − e^{−ηKt}) y  (Jacot et al. 2018, section 5; Lee et al. 2019, arXiv:1902.06720, eq. 9),
    the flow on the loss ½ · mean((f − y)²) over all n · outputs targets: η = learning_rate / (n · outputs). This is the
    time of `neural_tangents.predict.gradient_descent_mse`.

    **Arguments:** `x`, `y`: as in [`fit`][]. `time`: at least 0; `jnp.inf` is the limit, the interpolant of least
    norm. `learning_rate`: scales the time.

    **Returns:** a [`Predictor`][], with `ridge` 0.

    **Warns:** [`RoundingWarning`][] as [`fit`][], or if eigenvalues of K that are no more than rounding hide a percent
    of the targets or more, of what may have been learned by then.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the Gram matrix or the targets are not
    finite.
    """
    x, y = check_training_set(x, y)
    time, learning_rate = check_scalar("time", time, infinite=True), check_scalar("learning_rate", learning_rate)
    gram = gram_in_blocks(kernel, x)
    weights, dropped = _flow_for(gram, y, time, learning_rate)
    if not traced(weights):
        _check_finite("flow", weights)
        _warn_of_rounding("flow", kernel, x, y, gram, weights, float(dropped))
    return Predictor(kernel, x, weights, jnp.zeros((), gram.dtype))


def accuracy(
    model: Callable[[Array], Array],
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    batch_size: int = 500,
) -> float:
    """Give the fraction of inputs that a model classifies as labelled, in [0, 1].

    **Arguments:** `model`: any callable from images to outputs (n, classes), or (n, 1). `labels`: int classes, or −1
    and +1 for a model with one output. `batch_size`: inputs per call of the model.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the model's outputs are not finite.
    """
    x, labels = np.asarray(check_array("x", x)), np.asarray(check_array("labels", labels, "integer classes (n,)"))
    if x.ndim == 0:
        raise wrong("x", x, "inputs (n, …)")
    if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: got {labels.dtype} of shape {labels.shape}, expected integers of shape ({len(x)},)")
    if len(x) == 0:
        raise ValueError("x: got no inputs, expected at least one")
    batch_size = check_integer("batch_size", batch_size)
    check_callable("model", model, "a callable from inputs to outputs")
    correct = 0
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        count = len(batch)
        if start > 0 and count < batch_size:
            # One shape, one compilation: the last batch is filled up with the first inputs.
            batch = np.concatenate([batch, x[: batch_size - count]])
        with calling("model"):
            found = model(jnp.asarray(batch))
        outputs = np.asarray(check_array("model", found, f"an array ({len(batch)}, classes)"))
        if outputs.ndim != 2 or len(outputs) != len(batch):
            raise ValueError(f"model: got outputs of shape {outputs.shape}, expected ({len(batch)}, classes)")
        outputs = outputs[:count]
        _check_finite("accuracy: the model's outputs", outputs)
        correct += int(np.sum(_classes(outputs, labels) == labels[start : start + count]))
    return correct / len(x)


def warn_of_ridge(asked: float, used: float) -> None:
    """Warn if the ridge that was used is not the one that was asked for."""
    if used > asked * (1 + 1e-5):  # the one that was used has been through the dtype of the Gram matrix
        warnings.warn(
            f"ridge: the Gram matrix could not be factorized with {asked:g}; {used:g} was used instead "
            "(a larger ridge, fewer near-duplicates or x64 would avoid this)",
            RidgeWarning,
            stacklevel=3,
        )


@jax.jit
def _flow_for(gram: Array, y: Array, time: ArrayLike, learning_rate: ArrayLike) -> tuple[Array, Array]:
    """Give the weights after a time, and the part of the targets that the flow may have learned and rounding hides.

    Compiled: else jax_debug_infs would see each step on the way to infinity.
    """
    time = jnp.asarray(time, gram.dtype) * jnp.asarray(learning_rate, gram.dtype) / y.size
    # LAPACK answers infinities with anything.
    solvable = jnp.all(jnp.isfinite(gram))
    weights, left = _flow(gram, y, time)
    return jnp.where(solvable, weights, jnp.nan), left


def _warn_of_rounding(
    what: str, kernel: Kernel, x: Array, y: Array, gram: Array | np.ndarray, weights: Array, dropped: float = 0.0
) -> None:
    """Warn if this precision does not resolve a model. `gram`: K, or its diagonal alone."""
    diagonal = gram if gram.ndim == 1 else jnp.diagonal(gram)
    # Between the training inputs the error is several times what is left of their targets.
    error = max(5 * dropped, float(rounding(diagonal, weights, y)))
    if gram.ndim == 2 and kernel.loses_angles(x.shape[1:]):
        error = max(error, float(rounding_of_angles(gram, weights, y)))
    warn_of_rounding(what, error, weights.dtype)


@jax.custom_jvp
def _flow(gram: Array, y: Array, time: Array) -> tuple[Array, Array]:
    """Give φ(K) y with φ(λ) = (1 − e^{−λt}) / λ, and the part of y that rounding hides, of what e^{−λt} has left."""
    spectrum, vectors = _spectrum(gram)
    coefficients = jnp.matmul(vectors.T, y.astype(gram.dtype), precision="highest")
    hidden = jnp.where(spectrum.eigenvalues > 0, 0.0, -jnp.expm1(-spectrum.rounding * time))
    lengths = jnp.linalg.norm(coefficients, axis=0)
    dropped = jnp.linalg.norm(hidden[:, None] * coefficients, axis=0) / jnp.where(lengths > 0, lengths, 1.0)
    weights = jnp.matmul(vectors, spectrum.phi(time)[:, None] * coefficients, precision="highest")
    return weights, jnp.max(dropped)


@_flow.defjvp
def _flow_jvp(
    primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    # Differentiating through eigh divides by the gaps between eigenvalues. The derivative of a matrix function does
    # not: it is V (φ[λᵢ, λⱼ] ∘ Vᵀ dK V) Vᵀ with the divided differences of φ (Higham, Functions of Matrices, 3.11).
    gram, y, time = primals
    d_gram, d_y, d_time = tangents
    y = y.astype(gram.dtype)
    spectrum, vectors = _spectrum(gram)
    phi = spectrum.phi(time)
    coefficients = jnp.matmul(vectors.T, y, precision="highest")
    rotated = jnp.matmul(
        jnp.matmul(vectors.T, (d_gram + d_gram.T) / 2, precision="highest"), vectors, precision="highest"
    )
    d_coefficients = (
        jnp.matmul(spectrum.divided_differences(time) * rotated, coefficients, precision="highest")
        + phi[:, None] * jnp.matmul(vectors.T, d_y.astype(gram.dtype), precision="highest")
        + (spectrum.phi_by_time(time) * d_time)[:, None] * coefficients
    )
    out = _flow(gram, y, time)
    return out, (jnp.matmul(vectors, d_coefficients, precision="highest"), jnp.zeros_like(out[1]))


class _Spectrum(NamedTuple):
    """Eigenvalues λ of a Gram matrix, and the function φ(λ) = (1 − e^{−λt}) / λ of them.

    Eigenvalues up to `rounding` are noise and set to zero. There φ is t e^{−rounding · t}: the exact t while the flow
    is too short to tell, and 0 for t = ∞, where 1/λ would amplify the noise: the interpolant of least norm.
    """

    eigenvalues: Array
    rounding: Array

    def phi(self, time: Array) -> Array:
        positive = self.eigenvalues > 0
        safe = jnp.where(positive, self.eigenvalues, 1.0)
        return jnp.where(positive, -jnp.expm1(-safe * time) / safe, self._damped(time))

    def phi_by_time(self, time: Array) -> Array:
        damped = (1 - self.rounding * _finite(time)) * jnp.exp(-self.rounding * _finite(time))
        by_time = jnp.where(self.eigenvalues > 0, jnp.exp(-self.eigenvalues * _finite(time)), damped)
        return jnp.where(jnp.isinf(time), 0.0, by_time)

    def divided_differences(self, time: Array) -> Array:
        """(φ(λᵢ) − φ(λⱼ)) / (λᵢ − λⱼ), or φ' at the midpoint where the difference would be rounding noise."""
        left, right = self.eigenvalues[:, None], self.eigenvalues[None, :]
        gap, middle = left - right, (left + right) / 2
        # The midpoint rule errs by the square of the relative gap, the quotient by eps over it: equal at eps^(1/3).
        near = jnp.abs(gap) <= jnp.finfo(gap.dtype).eps ** (1 / 3) * middle
        phi = self.phi(time)
        quotient = (phi[:, None] - phi[None, :]) / jnp.where(near, 1.0, gap)
        return jnp.where(near, self._phi_by_eigenvalue(middle, time), quotient)

    def _damped(self, time: Array) -> Array:
        return _finite(time) * jnp.exp(-self.rounding * _finite(time))

    def _phi_by_eigenvalue(self, eigenvalues: Array, time: Array) -> Array:
        """dφ/dλ = ((1 + λt) e^{−λt} − 1) / λ², by its series where λt is small."""
        positive = eigenvalues > 0
        safe = jnp.where(positive, eigenvalues, 1.0)
        # By u = 100 the exponential has gone from either precision; a product of large times would overflow.
        u = jnp.where(positive, jnp.minimum(safe * time, 100.0), 0.0)
        small = u < 0.05
        exact = ((1 + u) * jnp.exp(-u) - 1) / safe**2
        series = -1 / 2 + u * (1 / 3 + u * (-1 / 8 + u * (1 / 30 - u / 144)))
        short = jnp.where(small & positive, time, 0.0)
        return jnp.where(positive, jnp.where(small, short**2 * series, exact), -self._damped(time) * _finite(time) / 2)


def _finite(time: Array) -> Array:
    """0 in place of infinity, for terms that vanish there but would be computed as ∞ · 0."""
    return jnp.where(jnp.isinf(time), 0.0, time)


def _spectrum(gram: Array) -> tuple[_Spectrum, Array]:
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    rounding = gram.shape[0] * jnp.finfo(gram.dtype).eps * jnp.max(jnp.abs(eigenvalues))
    return _Spectrum(jnp.where(eigenvalues > rounding, eigenvalues, 0.0), rounding), vectors


def check_training_set(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Give inputs and targets as arrays, or raise `ValueError` that names what is wrong with them."""
    x = check_inputs("x", x)
    return x, jnp.asarray(check_targets("y", y, len(x)))


def _check_finite(what: str, values: Array | np.ndarray) -> None:
    if not np.all(np.isfinite(np.asarray(values))):
        raise FloatingPointError(f"{what}: not finite; look for NaN or infinite values in the inputs and the kernel")


def _classes(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    classes = outputs.shape[1]
    if classes > 1:
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"labels: got {labels.min()} to {labels.max()}, expected 0 to {classes - 1} for {classes} outputs"
            )
        return outputs.argmax(axis=1)
    if not np.all(np.abs(labels) == 1):
        raise ValueError("labels: a model with one output expects labels −1 and +1")
    return np.where(outputs[:, 0] >= 0, 1, -1)
