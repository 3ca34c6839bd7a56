"""Any neural-tangents network as a kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from jaxtyping import Array

from ntkit._pytrees import told_apart
from ntkit.kernels.base import Kernel

Get: TypeAlias = Literal["ntk", "nngp"]


def from_stax(kernel_fn: Callable[..., Any], get: Get = "ntk") -> Kernel:
    """Make a kernel of a `neural_tangents.stax` network.

    **Arguments:** `kernel_fn`: the third of `init_fn, apply_fn, kernel_fn = neural_tangents.stax.serial(…)`; inputs
    reach it as they are given. `get`: `"ntk"` or `"nngp"`.

    **Raises:** `ValueError` that names the argument.
    """
    if not callable(kernel_fn):
        raise ValueError(f"kernel_fn: got {type(kernel_fn).__name__}, expected a stax kernel function")
    return StaxKernel(kernel_fn, check_get(get))


def check_get(get: Get) -> Get:
    """Raise `ValueError` unless `get` is a kernel that neural-tangents can be asked for."""
    if get not in ("ntk", "nngp"):
        raise ValueError(f"get: got {get!r}, expected 'ntk' or 'nngp'")
    return get


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

    def gram(self, x1: Array, x2: Array | None) -> Array:
        return self.kernel_fn(x1, x2, self.get)
