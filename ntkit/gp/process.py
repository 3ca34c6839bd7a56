"""What a Gaussian process says of a function: mean, variance, covariance and samples at any inputs."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_integer, check_key, traced
from ntkit.kernels import memory
from ntkit.kernels.inputs import check_inputs
from ntkit.kernels.pairs import each
from ntkit.solvers.rounding import warn_of_rounding_of_variances


class Process(abc.ABC):
    """A Gaussian process that has seen data, a JAX pytree. Its outputs are independent, with one covariance.

    A new one has the inputs that it has seen, `support`, and writes three functions of checked inputs.
    """

    support: Float[Array, "n ..."]

    @abc.abstractmethod
    def means(self, x: Array) -> Array:
        """Give the means (m, outputs)."""

    @abc.abstractmethod
    def variances(self, x: Array) -> tuple[Array, Array]:
        """Give the variances (m,) of a batch, and an estimate of what rounding has done to them, relative to theirs."""

    @abc.abstractmethod
    def covariances(self, x1: Array, x2: Array | None) -> Array:
        """Give the covariances (m1, m2); `x2=None` means `x1` again."""

    def __call__(self, x: Float[ArrayLike, "m ..."]) -> Float[Array, "m outputs"]:
        """Predict: the mean, so that a process is a model as any other."""
        return self.mean(x)

    def mean(self, x: Float[ArrayLike, "m ..."]) -> Float[Array, "m outputs"]:
        """Give the mean (m, outputs) of the function at a batch of inputs."""
        return _means(self, self._checked("x", x))

    def variance(self, x: Float[ArrayLike, "m ..."]) -> Float[Array, " m"]:
        """Give the variance (m,) of the function at a batch of inputs, at least 0, the same for each output.

        **Warns:** [`RoundingWarning`][ntkit.regression.RoundingWarning] if rounding changes a variance by an estimated
        percent or more. Not while being traced.
        """
        variances, error = _variances(self, self._checked("x", x))
        if not traced(variances):
            warn_of_rounding_of_variances("variance", float(error), variances.dtype)
        return variances

    def covariance(
        self, x1: Float[ArrayLike, "m1 ..."], x2: Float[ArrayLike, "m2 ..."] | None = None
    ) -> Float[Array, "m1 m2"]:
        """Give the covariance of the function between all inputs of two batches; `x2=None`: of `x1` with itself."""
        second = None if x2 is None else self._checked("x2", x2)
        return _covariances(self, self._checked("x1", x1), second)

    def sample(self, x: Float[ArrayLike, "m ..."], *, key: Array, count: int = 1) -> Float[Array, "count m outputs"]:
        """Draw functions from the process, evaluated at a batch of inputs.

        **Arguments:** `x`: m inputs; m² numbers are held, and their eigenvalues computed. `key`: of the draw. `count`:
        how many functions.
        """
        x = self._checked("x", x)
        return _drawn(self, x, check_key("key", key), np.arange(check_integer("count", count)))

    def _checked(self, name: str, x: ArrayLike) -> Array:
        x = check_inputs(name, x)
        if x.shape[1:] != self.support.shape[1:]:
            raise ValueError(
                f"{name}: got inputs of shape {x.shape[1:]}, expected {self.support.shape[1:]} as those that were seen"
            )
        return x


@jax.jit
def _means(process: Process, x: Array) -> Array:
    return process.means(x)


@jax.jit
def _variances(process: Process, x: Array) -> tuple[Array, Array]:
    # Each input takes a row of what is solved for.
    row = len(process.support) * x.dtype.itemsize
    variances, errors = each(process.variances, x, memory.at_once(row, memory.HELD))
    return variances, jnp.max(errors)


@jax.jit
def _covariances(process: Process, x1: Array, x2: Array | None) -> Array:
    found = process.covariances(x1, x2)
    return (found + found.T) / 2 if x2 is None else found


@jax.jit
def _drawn(process: Process, x: Array, key: Array, numbers: Array) -> Array:
    mean = process.means(x)
    values, vectors = jnp.linalg.eigh(_covariances(process, x, None))
    # Of inputs that are near each other, or of many, it is singular up to rounding.
    root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))

    def one(number: Array) -> Array:
        noise = jax.random.normal(jax.random.fold_in(key, number), mean.shape, mean.dtype)
        return mean + jnp.matmul(root, noise, precision="highest")

    return jax.vmap(one)(numbers)
