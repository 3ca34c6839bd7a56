"""The distribution of infinitely wide networks that were trained for a time (Lee et al. 2019, arXiv:1902.06720)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_scalar, traced
from ntkit._pytrees import pytree_dataclass
from ntkit.gp.process import Process
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.kernels.tiled import matmul
from ntkit.regression import check_rounding, check_training_set, flowed_weights


@pytree_dataclass(eq=False)
class Ensemble(Process):
    """The outputs of networks trained from random initializations; [`ensemble`][ntkit.gp.ensemble] makes it.

    **Fields:** `ntk`: the kernel that training follows. `nngp`: the covariance at initialization. `support`: the n
    training inputs. `learned`: Θ⁻¹ (I − e^{−ηΘt}), (n, n). `weights`: `learned` times the targets, (n, outputs).
    `initial`: `nngp` of the support with itself.
    """

    ntk: Kernel
    nngp: Kernel
    support: Float[Array, "n ..."]
    learned: Float[Array, "n n"]
    weights: Float[Array, "n outputs"]
    initial: Float[Array, "n n"]

    def means(self, x: Array) -> Array:
        return self.ntk.gram_matmul(x, self.support, self.weights).astype(self.weights.dtype)

    def variances(self, x: Array) -> tuple[Array, Array]:
        prior = self.nngp.gram_diagonal(x)
        moved, before = self._both(x)
        variances = jnp.maximum(prior + jnp.sum(moved * (matmul(self.initial, moved) - 2 * before), axis=0), 0.0)
        largest = prior + jnp.sqrt(len(moved)) * (jnp.diagonal(self.initial) @ moved**2)
        eps = jnp.finfo(prior.dtype)
        return variances, eps.eps * largest / (variances + eps.tiny)

    def covariances(self, x1: Array, x2: Array | None) -> Array:
        moved1, before1 = self._both(x1)
        moved2, before2 = (moved1, before1) if x2 is None else self._both(x2)
        mixed = matmul(before1.T, moved2) + matmul(moved1.T, before2)
        return self.nngp.gram(x1, x2) - mixed + matmul(moved1.T, matmul(self.initial, moved2))

    def _both(self, x: Array) -> tuple[Array, Array]:
        """Give by how much each training output at initialization is subtracted, and its covariance."""
        return matmul(self.learned, self.ntk.gram(self.support, x)), self.nngp.gram(self.support, x)


def ensemble(
    ntk: Kernel,
    nngp: Kernel,
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n outputs"],
    time: ArrayLike = jnp.inf,
    *,
    learning_rate: ArrayLike = 1.0,
) -> Ensemble:
    """Give the distribution of infinitely wide networks that gradient flow has trained from random initializations.

    At time t the outputs are Gaussian (Lee et al. 2019, eqs. 14 and 15): with P = Θ⁻¹ (I − e^{−ηΘt}) their mean is
    Θ(x', x) P y, and their covariance that of f₀(x') − Θ(x', x) P f₀(x), where f₀ has the covariance `nngp`. With `ntk`
    the same kernel as `nngp` the last layer alone is trained (eq. 13): at t = ∞ that is
    [`condition`][ntkit.gp.condition] without noise. With the tangent kernel it is no posterior of any prior.

    **Arguments:**

    - `ntk`: what training follows, `ntkit.ntk(architecture)`; or `nngp`.
    - `nngp`: `ntkit.nngp(architecture)`.
    - `x`, `y`: n training inputs and targets (n, outputs).
    - `time`: at least 0, or infinity; with `learning_rate` in the units of [`flow`][ntkit.regression.flow].

    **Returns:** an [`Ensemble`][ntkit.gp.Ensemble], whose mean is the model that `flow` gives.

    **Warns:** [`RoundingWarning`][ntkit.regression.RoundingWarning] if rounding changes means by an estimated percent
    of the largest target or more. Not while being traced.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if a Gram matrix or the targets are not
    finite.
    """
    check_kernel("ntk", ntk), check_kernel("nngp", nngp)
    x, y = check_training_set(x, y)
    time, learning_rate = check_scalar("time", time, infinite=True), check_scalar("learning_rate", learning_rate)
    found, gram = _ensemble(ntk, nngp, x, y, time, learning_rate)
    if not traced(found.weights):
        if not np.all(np.isfinite(np.asarray(found.weights))):
            raise FloatingPointError(
                "ensemble: not finite; look for NaN or infinite values in the inputs and the kernels"
            )
        check_rounding("ensemble", ntk, x, y, gram, found.weights)
    return found


@jax.jit
def _ensemble(
    ntk: Kernel, nngp: Kernel, x: Array, y: Array, time: ArrayLike, learning_rate: ArrayLike
) -> tuple[Ensemble, Array]:
    gram, initial = ntk(x), nngp(x)
    y = y.astype(gram.dtype)
    learned, _ = flowed_weights(gram, jnp.eye(len(gram), dtype=gram.dtype), time, learning_rate, y.size)
    return Ensemble(ntk, nngp, x, learned, matmul(learned, y), initial), gram
