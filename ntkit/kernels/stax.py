"""Any neural-tangents network as a kernel."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntkit._checks import check_callable, check_choice, wrong
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.kernels.base import Kernel
from ntkit.kernels.pairs import in_blocks

Get: TypeAlias = Literal["ntk", "nngp"]
KERNEL_FN = "a stax kernel function of (x1, x2, get), the third of (init_fn, apply_fn, kernel_fn)"


def from_stax(kernel_fn: Callable[..., Any], get: Get = "ntk") -> Kernel:
    """Make a kernel of a `neural_tangents.stax` network.

    **Arguments:** `kernel_fn`: the third of `init_fn, apply_fn, kernel_fn = neural_tangents.stax.serial(…)`; inputs
    reach it as they are given. `get`: `"ntk"` or `"nngp"`.

    **Raises:** `ValueError` that names the argument.
    """
    check_choice("get", get, ("ntk", "nngp"))
    try:
        inspect.signature(check_callable("kernel_fn", kernel_fn, KERNEL_FN)).bind(None, None, get)
    except TypeError:
        raise wrong("kernel_fn", kernel_fn, KERNEL_FN) from None
    return StaxKernel(kernel_fn, get)


@pytree_dataclass
class StaxKernel(Kernel):
    """The kernel of a stax network; it has no leaves, since the network is a closure."""

    kernel_fn: Callable[..., Any] = static_field()
    get: Get = static_field()

    @property
    def engine(self) -> str:
        """Always `"neural_tangents"`."""
        return "neural_tangents"

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        return self.get == "ntk"

    def gram(self, x1: Array, x2: Array | None) -> Array:
        # It may hold a few covariances between all pixels of both images.
        pixels = math.prod(x1.shape[1:3]) if x1.ndim == 4 else 1
        return in_blocks(self._pairs, self.gram_diagonal, x1, x2, 4 * x1.dtype.itemsize * pixels**2)

    def _pairs(self, x1: Array, x2: Array | None) -> Array:
        values = self.kernel_fn(x1, x2, self.get)
        pairs = (len(x1), len(x1 if x2 is None else x2))
        array = isinstance(values, jax.Array | np.ndarray)
        if not array or values.shape != pairs or jnp.iscomplexobj(values):
            given = f"{values.dtype} of shape {values.shape}" if array else type(values).__name__
            # A network without Flatten() or GlobalAvgPool() has a value for each pair of pixels.
            raise ValueError(f"kernel_fn: got {given}, expected real numbers {pairs}, one for each pair of inputs")
        return jnp.asarray(values)
