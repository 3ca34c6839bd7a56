"""Any neural-tangents network as a kernel."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntkit._checks import check_callable, check_choice, wrong
from ntkit._pytrees import told_apart
from ntkit.kernels.base import Kernel

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


@told_apart
@dataclasses.dataclass(frozen=True)
class StaxKernel(Kernel):
    """The kernel of a stax network; it has no leaves, since the network is a closure."""

    kernel_fn: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    get: Get = dataclasses.field(metadata={"static": True})

    @property
    def engine(self) -> str:
        """Always `"neural_tangents"`."""
        return "neural_tangents"

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        return self.get == "ntk"

    def gram(self, x1: Array, x2: Array | None) -> Array:
        values = self.kernel_fn(x1, x2, self.get)
        pairs = (len(x1), len(x1 if x2 is None else x2))
        array = isinstance(values, jax.Array | np.ndarray)
        if not array or values.shape != pairs or jnp.iscomplexobj(values):
            given = f"{values.dtype} of shape {values.shape}" if array else type(values).__name__
            # A network without Flatten() or GlobalAvgPool() has a value for each pair of pixels.
            raise ValueError(f"kernel_fn: got {given}, expected real numbers {pairs}, one for each pair of inputs")
        return jnp.asarray(values)
