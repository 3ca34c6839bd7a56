"""Kernel ridge regression and gradient flow, both in closed form.

A fitted [`Predictor`][] is a model: a callable from images to outputs. Everything here is compiled, and differentiable
in the support images, the targets, the ridge, the kernel's hyper-parameters and the time; but for fits by [`CG`][],
which are for Gram matrices too large for that.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_batch, check_flag, check_scalar, check_targets, traced, wrong
from ntkit._pytrees import pytree_dataclass
from ntkit.grams import gram as gram_in_blocks
from ntkit.kernels import Kernel, memory
from ntkit.kernels.base import check_kernel
from ntkit.kernels.finite import count_features
from ntkit.kernels.inputs import check_inputs
from ntkit.kernels.pairs import each
from ntkit.kernels.tiled import matmul
from ntkit.solvers import (
    CG,
    Cholesky,
    ConvergenceWarning,
    InMemory,
    Primal,
    Report,
    RoundingWarning,
    Solver,
    operator_of,
    solve,
)
from ntkit.solvers.primal import Normal, normal_equations, rounded
from ntkit.solvers.rounding import rounding, rounding_of_angles, warn_of_rounding

__all__ = [
    "CG",
    "Cholesky",
    "ConvergenceWarning",
    "FeaturePredictor",
    "Predictor",
    "Primal",
    "Report",
    "RidgeWarning",
    "RoundingWarning",
    "fit",
    "flow",
    "solve",
    "warn_of_ridge",
]


class RidgeWarning(UserWarning):
    """The Gram matrix could not be factorized with the ridge that was asked for, and a larger one was used."""


@pytree_dataclass(eq=False)
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

        Where K(x, support) takes more than about 64 MiB it is computed in tiles, each
        multiplied with its part of the weights; inside `jit`, `grad` and `vmap` too.
        """
        x = check_inputs("x", x)
        if x.shape[1:] != self.support.shape[1:]:
            raise ValueError(
                f"x: got inputs of shape {x.shape[1:]}, expected {self.support.shape[1:]} as in the support"
            )
        return self.kernel.matmul(x, self.support, self.weights)


@pytree_dataclass(eq=False)
class FeaturePredictor:
    """The model x ↦ φ(x) weights of a kernel with features φ, a JAX pytree. [`fit`][] and [`flow`][] make it.

    **Fields:** `kernel`: the kernel. `weights`: of its features (m, outputs). `ridge`: as of a [`Predictor`][].
    """

    kernel: Kernel
    weights: Float[Array, "m outputs"]
    ridge: Float[Array, ""]

    def __call__(self, x: Float[ArrayLike, "n ..."]) -> Float[Array, "n outputs"]:
        """Predict the outputs (n, outputs) for a batch of inputs."""
        x = check_inputs("x", x)
        if (found := count_features(self.kernel, x)) != len(self.weights):
            raise ValueError(
                f"x: got inputs of shape {x.shape[1:]}, of {found} features, expected those of {len(self.weights)}"
            )
        return _of_features(self, x)


@jax.jit
def _of_features(predictor: FeaturePredictor, x: Array) -> Array:
    def predicted(x: Array) -> Array:
        return matmul(predictor.kernel.gram_features(x), predictor.weights)

    return each(predicted, x, memory.at_once(len(predictor.weights) * x.dtype.itemsize, memory.HELD))


def fit(
    kernel: Kernel,
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n outputs"],
    ridge: ArrayLike = 1e-6,
    *,
    solver: Solver | Primal | None = None,
    gram: Float[Array | np.ndarray, "n n"] | None = None,
    mesh: Mesh | None = None,
    block_size: int | None = None,
    progress: bool = False,
) -> Predictor | FeaturePredictor:
    """Fit kernel ridge regression: weights = (K + ridge · tr(K)/n · I)⁻¹ y with K = kernel(x).

    By default K is factorized by Cholesky in the precision of `x` (float32 unless x64 is on). If that fails it is tried
    again with a ten times larger ridge, and so on, inside the compiled function; the ridge that was used is on the
    result.

    A kernel with features is fitted on these, which gives the same model: a [`FeaturePredictor`][]. Where there are
    fewer of them than inputs, the inputs are read in parts, and may be a NumPy memory map.

    With `solver=CG()` K is only multiplied with, so that it need not fit in memory: what is not given as `gram` is
    computed again in every step, tile by tile.

    **Arguments:**

    - `kernel`: the kernel.
    - `x`: n support inputs, images (n, height, width, channels) or vectors (n, d).
    - `y`: regression targets (n, outputs), for example `ntkit.data.one_hot(labels, 10)`.
    - `ridge`: relative to the mean of the diagonal of K; at least 0. With 0 the fit interpolates, if it can.
    - `solver`: [`Cholesky`][]`()`, [`CG`][]`(…)`, or [`Primal`][]`(…)` on features. `None`: `Primal` where these are
      fewer than the inputs and nothing below is given, else `Cholesky`.
    - `gram`: K, if you have it: an array, or a memory map, which [`CG`][] reads from the disk in every step. Its dtype
      is the precision of the fit then (float32 at least).
    - `mesh`: for [`CG`][], whose products with K are then shared by all devices of the mesh, whatever its axes: the
      rows of a given K, the tiles of another. With several processes, each makes the same call.
    - `block_size`: for [`CG`][], rows of K in one read from the disk (default: 256 MiB), or inputs on a side of a tile
      (default: an eighth of n, or about 64 MiB).
    - `progress`: whether to show a progress bar on stderr, of [`CG`][].

    **Returns:** a [`Predictor`][], or a [`FeaturePredictor`][].

    **Warns:** [`RidgeWarning`][] if a larger ridge was used. Not while being traced (inside `jit` or `grad`): there the
    caller finds it as `predictor.ridge`. [`RoundingWarning`][] if rounding changes predictions by an estimated percent
    or more: the precision does not resolve the model. [`ConvergenceWarning`][] if [`CG`][] stopped above its tolerance;
    `predictor.report` has what it reached.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the Gram matrix or the targets are not
    finite.
    """
    ridge, progress = check_scalar("ridge", ridge), check_flag("progress", progress)
    given = any(each is not None for each in (gram, mesh, block_size))
    if isinstance(solver, Primal) or (solver is None and not given and check_kernel("kernel", kernel).has_features):
        if given:
            raise ValueError(
                "solver: got Primal with a gram, mesh or block_size, expected Cholesky() or CG() with these"
            )
        return _fit_features(kernel, x, y, ridge, solver)
    x, y = check_training_set(x, y)
    solver = Cholesky() if solver is None else solver
    if not isinstance(solver, Solver):
        raise wrong("solver", solver, "ntkit.regression.Cholesky(), CG() or Primal()")
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
        check_rounding("fit", kernel, x, y, found, solution.weights)
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
) -> Predictor | FeaturePredictor:
    """Train the infinitely wide network to time t, by gradient flow from f₀ = 0, in closed form.

    f_t(x') = K(x', x) K⁻¹ (I − e^{−ηKt}) y  (Jacot et al. 2018, section 5; Lee et al. 2019, arXiv:1902.06720, eq. 9),
    the flow on the loss ½ · mean((f − y)²) over all n · outputs targets: η = learning_rate / (n · outputs). This is the
    time of `neural_tangents.predict.gradient_descent_mse`.

    **Arguments:** `x`, `y`: as in [`fit`][]. `time`: at least 0; `jnp.inf` is the limit, the interpolant of least
    norm. `learning_rate`: scales the time.

    **Returns:** a [`Predictor`][], with `ridge` 0; a [`FeaturePredictor`][] of a kernel with features.

    **Warns:** [`RoundingWarning`][] as [`fit`][], or if eigenvalues of K that are no more than rounding hide a percent
    of the targets or more, of what may have been learned by then.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the Gram matrix or the targets are not
    finite.
    """
    time, learning_rate = check_scalar("time", time, infinite=True), check_scalar("learning_rate", learning_rate)
    if _few_features(kernel, x):
        # g(ΦΦᵀ) y = Φ-weights g(ΦᵀΦ) Φᵀy, for any function g of the spectrum.
        _, normal, targets = _equations(kernel, x, y, Primal())

        def flowed(gram: Array) -> Array:
            return flowed_weights(gram, normal.cross, time, learning_rate, targets.size)[0]

        predictor = FeaturePredictor(kernel, flowed(normal.gram), jnp.zeros((), normal.gram.dtype))
        _check_features("flow", predictor, normal, targets, flowed)
        return predictor
    x, y = check_training_set(x, y)
    gram = gram_in_blocks(kernel, x)
    weights, dropped = flowed_weights(gram, y, time, learning_rate, y.size)
    if not traced(weights):
        _check_finite("flow", weights)
        check_rounding("flow", kernel, x, y, gram, weights, float(dropped))
    zero = jnp.zeros((), gram.dtype)
    if kernel.has_features:
        return FeaturePredictor(kernel, matmul(kernel.features(x).T, weights), zero)
    return Predictor(kernel, x, weights, zero)


def warn_of_ridge(asked: float, used: float) -> None:
    """Warn if the ridge that was used is not the one that was asked for."""
    if used > asked * (1 + 1e-5):  # the one that was used has been through the dtype of the Gram matrix
        warnings.warn(
            f"ridge: the Gram matrix could not be factorized with {asked:g}; {used:g} was used instead "
            "(a larger ridge, fewer near-duplicates or x64 would avoid this)",
            RidgeWarning,
            stacklevel=3,
        )


def _few_features(kernel: Kernel, x: ArrayLike) -> bool:
    """Whether a kernel has fewer features than there are inputs."""
    if not check_kernel("kernel", kernel).has_features:
        return False
    x = check_batch("x", x)
    return count_features(kernel, jnp.asarray(x[:1])) < len(x)


def _equations(kernel: Kernel, x: ArrayLike, y: ArrayLike, solver: Primal) -> tuple[int, Normal, Array | np.ndarray]:
    """Check a training set, which stays where it is, and give its size, its normal equations and the targets."""
    x = check_batch("x", x)
    y = check_targets("y", y, len(x))
    return len(x), normal_equations(kernel, x, y, solver), y


def _fit_features(
    kernel: Kernel, x: ArrayLike, y: ArrayLike, ridge: ArrayLike, solver: Primal | None
) -> FeaturePredictor:
    if not check_kernel("kernel", kernel).has_features:
        raise wrong("solver", solver, "Cholesky() or CG() for a kernel without features")
    if solver is None and not _few_features(kernel, x):
        features = kernel.features(x)
        found = fit(kernel, x, y, ridge, solver=Cholesky(), gram=matmul(features, features.T))
        return FeaturePredictor(kernel, matmul(features.T, found.weights), found.ridge)
    n, normal, y = _equations(kernel, x, y, Primal() if solver is None else solver)
    # Relative to the mean of K's diagonal, and not to that of ΦᵀΦ, whose trace is the same.
    share = len(normal.gram) / n
    weights, used = solve(normal.gram, normal.cross, jnp.asarray(ridge) * share)

    def solved(gram: Array) -> Array:
        return solve(gram, normal.cross, used)[0]

    predictor = FeaturePredictor(kernel, weights, (used / share).astype(used.dtype))
    _check_features("fit", predictor, normal, y, solved)
    if not traced(predictor.ridge, ridge):
        warn_of_ridge(float(np.asarray(ridge)), float(predictor.ridge))
    return predictor


def _check_features(
    what: str, predictor: FeaturePredictor, normal: Normal, y: Array | np.ndarray, solved: Callable[[Array], Array]
) -> None:
    """Raise if a model is not finite, and warn if other roundings of the same equations give another one."""
    weights = predictor.weights
    if traced(weights):
        return
    _check_finite(what, weights)
    change = matmul(normal.some, solved(rounded(normal.gram)) - weights)
    largest = np.abs(np.asarray(y)).max()
    warn_of_rounding(what, float(jnp.max(jnp.abs(change))) / (largest if largest > 0 else 1.0), weights.dtype)


@functools.partial(jax.jit, static_argnums=4)
def flowed_weights(
    gram: Array, y: Array, time: ArrayLike, learning_rate: ArrayLike, targets: int
) -> tuple[Array, Array]:
    """Give the weights after a time, and the part of the targets that the flow may have learned and rounding hides.

    Compiled: else jax_debug_infs would see each step on the way to infinity.
    """
    time = jnp.asarray(time, gram.dtype) * jnp.asarray(learning_rate, gram.dtype) / targets
    # LAPACK answers infinities with anything.
    solvable = jnp.all(jnp.isfinite(gram))
    weights, left = _flow(gram, y, time)
    return jnp.where(solvable, weights, jnp.nan), left


def check_rounding(
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
