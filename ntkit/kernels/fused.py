"""The kernels of fully-connected networks in one pass over the matrix of inner products.

Only that product costs more than reading its result: what follows is pointwise in the pair of inputs, and XLA fuses it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntkit.architectures import Activation, Architecture, Dense, Flatten
from ntkit.kernels._moments import MOMENTS
from ntkit.kernels.base import Kernel
from ntkit.kernels.stax import Get


def supports(architecture: Architecture) -> bool:
    """Whether every layer of a network has its rule here."""
    return all(
        isinstance(layer, Dense | Flatten) or (isinstance(layer, Activation) and layer.name in MOMENTS)
        for layer in architecture.layers
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedKernel(Kernel):
    """The kernel of a fully-connected architecture."""

    architecture: Architecture
    get: Get = dataclasses.field(metadata={"static": True})

    @property
    def engine(self) -> str:
        """Always `"fused"`."""
        return "fused"

    def pair_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return 3 * itemsize

    def gram(self, x1: Array, x2: Array | None) -> Array:
        x1 = x1.reshape(x1.shape[0], -1)
        if x2 is not None:
            x2 = x2.reshape(x2.shape[0], -1)
            return self._recursion(x1.shape[1], _inner(x1, x2), _variances(x1), _variances(x2), None)
        variances = _variances(x1)
        # Equal inputs are known here, and given the exact cosine of 1: near it a rounding error of eps in the cosine is
        # one of sqrt(eps) in the angle.
        same = jnp.eye(len(x1), dtype=bool)
        return self._recursion(x1.shape[1], _inner(x1, x1), variances, variances, same)

    def gram_diagonal(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        nngp, ntk, fan_in = _variances(x), jnp.zeros(x.shape[0], x.dtype), x.shape[1]
        for layer in self.architecture.layers:
            if isinstance(layer, Dense):
                nngp, ntk = self._dense(layer, fan_in, nngp, ntk)
                fan_in = self.architecture.width
            elif isinstance(layer, Activation):
                nngp, slope = MOMENTS[layer.name].diagonal(nngp)
                ntk = ntk * slope
        return ntk if self.get == "ntk" else nngp

    def _recursion(self, fan_in: int, nngp: Array, v1: Array, v2: Array, same: Array | None) -> Array:
        """Go through the layers (Jacot et al. 2018, theorem 1), with the variances of both batches beside the pairs."""
        ntk = jnp.zeros_like(nngp)
        if same is not None:
            nngp = jnp.where(same, v1[:, None], nngp)
        for layer in self.architecture.layers:
            if isinstance(layer, Dense):
                nngp, ntk = self._dense(layer, fan_in, nngp, ntk)
                v1, v2 = _affine(layer, v1), _affine(layer, v2)
                fan_in = self.architecture.width
            elif isinstance(layer, Activation):
                pair, diagonal = MOMENTS[layer.name]
                nngp, slope = pair(nngp, v1[:, None], v2[None, :])
                v1, slope1 = diagonal(v1)
                v2, _ = diagonal(v2)
                if same is not None:
                    nngp = jnp.where(same, v1[:, None], nngp)
                    slope = jnp.where(same, slope1[:, None], slope)
                ntk = ntk * slope
        return ntk if self.get == "ntk" else nngp

    def _dense(self, layer: Dense, fan_in: int, nngp: Array, ntk: Array) -> tuple[Array, Array]:
        after = _affine(layer, nngp)
        if self.architecture.parameterization == "ntk":
            return after, after + layer.W_std**2 * ntk
        # Sohl-Dickstein et al. 2020 (arXiv:2001.07301): a weight's own scale is 1, and so is a bias's.
        bias = 0.0 if layer.b_std is None else 1.0
        return after, fan_in * nngp + bias + layer.W_std**2 * ntk


def _affine(layer: Dense, covariance: Array) -> Array:
    scaled = layer.W_std**2 * covariance
    return scaled if layer.b_std is None else scaled + layer.b_std**2


def _inner(x1: Array, x2: Array) -> Array:
    # Full float32 also on a GPU: TF32 ruins an arccos near 1.
    return jnp.matmul(x1, x2.T, precision="highest") / x1.shape[1]


def _variances(x: Array) -> Array:
    return jnp.sum(x * x, axis=1) / x.shape[1]
