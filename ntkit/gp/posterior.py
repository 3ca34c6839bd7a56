"""A Gaussian process after noisy observations (Rasmussen & Williams 2006, chapters 2 and 5)."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_finite, check_real, check_scalar, traced
from ntkit._pytrees import pytree_dataclass
from ntkit.gp.factor import factor, solve
from ntkit.gp.process import Process
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.kernels.tiled import matmul
from ntkit.regression import RidgeWarning, check_rounding, check_training_set


class LeaveOneOut(NamedTuple):
    """What the process says of each observation from all of the others.

    **Fields:** `mean`: (n, outputs). `variance`: (n,), of the observation, its noise in it. `log_density`:
    (n, outputs), of the observation.
    """

    mean: Float[Array, "n outputs"]
    variance: Float[Array, " n"]
    log_density: Float[Array, "n outputs"]


@pytree_dataclass(eq=False)
class Posterior(Process):
    """A Gaussian process that has seen noisy values; [`condition`][ntkit.gp.condition] makes it.

    `variance` and `covariance` are those of the function; an observation has `noise` beside.

    **Fields:** `kernel`: the prior covariance. `support`: the n inputs that were seen. `targets`: what was seen there
    (n, outputs). `noise`: its variance, a scalar or (n,), with what was added where there was no factor without.
    `factor`: the Cholesky factor L of K + noise. `weights`: (K + noise)⁻¹ y.
    """

    kernel: Kernel
    support: Float[Array, "n ..."]
    targets: Float[Array, "n outputs"]
    noise: Array
    factor: Float[Array, "n n"]
    weights: Float[Array, "n outputs"]

    @property
    def log_marginal_likelihood(self) -> Float[Array, ""]:
        """The log density of all that was seen, summed over outputs (eq. 2.30)."""
        return evidence(self.factor, self.weights, self.targets)

    def leave_one_out(self) -> LeaveOneOut:
        """Predict each observation from all of the others, in closed form (eqs. 5.10 to 5.12)."""
        return _leave_one_out(self)

    def means(self, x: Array) -> Array:
        return self.kernel.gram_matmul(x, self.support, self.weights).astype(self.weights.dtype)

    def variances(self, x: Array) -> tuple[Array, Array]:
        prior = self.kernel.gram_diagonal(x)
        half = solve(self.factor, self.kernel.gram(self.support, x))
        variances = jnp.maximum(prior - jnp.sum(half**2, axis=0), 0.0)
        # kᵀ (A + δ)⁻¹ k, where each number of A is a sum of up to n: an error of wᵀ δ w with w = A⁻¹ k.
        weights = solve(self.factor, half, transposed=True)
        diagonal = jnp.sum(self.factor**2, axis=1)
        rounded = jnp.finfo(prior.dtype).eps * (prior + jnp.sqrt(len(diagonal)) * (diagonal @ weights**2))
        return variances, rounded / (variances + jnp.mean(self.noise) + jnp.finfo(prior.dtype).tiny)

    def covariances(self, x1: Array, x2: Array | None) -> Array:
        half = solve(self.factor, self.kernel.gram(self.support, x1))
        other = half if x2 is None else solve(self.factor, self.kernel.gram(self.support, x2))
        return self.kernel.gram(x1, x2) - matmul(half.T, other)


def condition(
    kernel: Kernel, x: Float[ArrayLike, "n ..."], y: Float[ArrayLike, "n outputs"], noise: ArrayLike
) -> Posterior:
    """Condition a Gaussian process of mean 0 on noisy observations of its values.

    **Arguments:**

    - `kernel`: the covariance of the process, for example `ntkit.nngp(ntkit.fc(2))`. Its outputs are independent.
    - `x`: n inputs, images (n, height, width, channels) or vectors (n, d).
    - `y`: what was observed, (n, outputs).
    - `noise`: the variance of an observation's error, in units of y²: a number of at least 0, or one for each
      observation (n,), by which a few can count for less than the others.

    **Returns:** a [`Posterior`][ntkit.gp.Posterior], which is a model too. All of it is compiled, and differentiable in
    everything.

    **Warns:** [`RidgeWarning`][ntkit.regression.RidgeWarning] if a larger noise had to be used,
    [`RoundingWarning`][ntkit.regression.RoundingWarning] if rounding changes means by an estimated percent of the
    largest target or more. Not while being traced.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the covariance or the targets are not
    finite.
    """
    check_kernel("kernel", kernel)
    x, y = check_training_set(x, y)
    posterior, gram, extra = _condition(kernel, x, y, check_noise(noise, len(x)))
    if not traced(posterior.weights):
        if not np.all(np.isfinite(np.asarray(posterior.weights))):
            raise FloatingPointError(
                "condition: not finite; look for NaN or infinite values in the inputs and the kernel"
            )
        check_rounding("condition", kernel, x, y, gram, posterior.weights)
        if extra > 0:
            warnings.warn(
                f"noise: the covariance could not be factorized with the noise that was given; {float(extra):g} was "
                "added to it (a larger noise, fewer near-duplicates or x64 would avoid this)",
                RidgeWarning,
                stacklevel=2,
            )
    return posterior


def check_noise(noise: ArrayLike, n: int) -> ArrayLike:
    """A variance, or one for each of n observations."""
    if np.ndim(noise) == 0:
        return check_scalar("noise", noise)
    values = check_real("noise", noise)
    if values.shape != (n,):
        raise ValueError(f"noise: got shape {values.shape}, expected a number or one for each of {n} observations")
    if not traced(values) and (check_finite("noise", values) < 0).any():
        raise ValueError(f"noise: got {np.min(values):g}, expected variances of at least 0")
    return values


@jax.jit
def _condition(kernel: Kernel, x: Array, y: Array, noise: ArrayLike) -> tuple[Posterior, Array, Array]:
    gram = kernel(x)
    y, noise = y.astype(gram.dtype), jnp.asarray(noise, gram.dtype)
    lower, weights, extra = solved(gram, y, noise)
    return Posterior(kernel, x, y, noise + extra, lower, weights), gram, extra


def solved(gram: Array, y: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Give the factor of K + noise, (K + noise)⁻¹ y, and what had to be added to the noise."""
    matrix = gram + jnp.diag(jnp.broadcast_to(noise, (len(gram),)))
    lower, extra = factor(matrix)

    def inverse(v: Array) -> Array:
        return solve(lower, solve(lower, v), transposed=True)

    first = inverse(y)
    # Refined once, as regression does.
    return lower, first + inverse(y - matmul(matrix, first) - extra * first), extra


def evidence(lower: Array, weights: Array, y: Array) -> Array:
    """Give −½ yᵀ A⁻¹ y − ½ log det A − n/2 log 2π of each output, summed."""
    n, outputs = y.shape
    logarithms = jnp.sum(jnp.log(jnp.diagonal(lower))) + n / 2 * jnp.log(2 * jnp.pi)
    return -0.5 * jnp.sum(y * weights) - outputs * logarithms


@jax.jit
def _leave_one_out(posterior: Posterior) -> LeaveOneOut:
    identity = jnp.eye(len(posterior.factor), dtype=posterior.factor.dtype)
    variance = 1 / jnp.sum(solve(posterior.factor, identity) ** 2, axis=0)
    error = variance[:, None] * posterior.weights
    log_density = -0.5 * (jnp.log(2 * jnp.pi * variance)[:, None] + error**2 / variance[:, None])
    return LeaveOneOut(posterior.targets - error, variance, log_density)
