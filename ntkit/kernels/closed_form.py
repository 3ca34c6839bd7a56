"""The kernels of infinitely wide networks, from their architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from jaxtyping import Array

from ntkit import _neural_tangents as nt
from ntkit._checks import check_choice, check_flag, check_integer, wrong
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.architectures import (
    STAX,
    Architecture,
    AveragePool,
    Flatten,
    GlobalAveragePool,
    Layer,
    check_gaussian,
    check_image_shape,
    layer_name,
)
from ntkit.kernels.base import Kernel
from ntkit.kernels.fused import FusedKernel, supports
from ntkit.kernels.pairs import in_blocks
from ntkit.kernels.stax import Get

Engine: TypeAlias = Literal["auto", "fused", "neural_tangents"]
ENGINES: tuple[Engine, ...] = ("auto", "fused", "neural_tangents")
# Which layers an engine has, the fastest engine first.
HAS: dict[str, Callable[[Layer], bool]] = {
    "fused": supports,
    "neural_tangents": lambda layer: isinstance(layer, STAX),
}


def ntk(
    architecture: Architecture, engine: Engine = "auto", *, block_pairs: int | None = None, pallas: bool | None = None
) -> Kernel:
    """Give the neural tangent kernel of an infinitely wide network (Jacot et al. 2018, arXiv:1806.07572).

    **Arguments:**

    - `architecture`: for example `ntkit.fc(1)`.
    - `engine`: what computes it: `"fused"`, which has every architecture whose activations are relu, leaky_relu, abs,
      erf or identity, `"neural_tangents"`, which has all, or `"auto"` for the fastest that supports the architecture.
      `kernel.engine` says which it is.
    - `block_pairs`: pairs of images that the fused engine computes at once; its memory grows with it. `None`: as many
      as suit the device's caches and memory.
    - `pallas`: whether the fused engine takes a first convolution, its nonlinearity and 2×2 pooling in one kernel of
      the GPU, written in Pallas; forward, in float32. `None`: on a GPU that can, since JAX 0.6.1. Elsewhere
      than on a GPU it is interpreted, which is slow.

    **Returns:** a [`Kernel`][] whose leaves are the `W_std` and `b_std` of the architecture's layers.

    **Raises:** `ValueError` that names the argument, or a nonlinearity whose input is not Gaussian; `ImportError` where
    the engine is neural-tangents and that does not work here.
    """
    return _closed_form(architecture, "ntk", engine, block_pairs, pallas)


def nngp(
    architecture: Architecture, engine: Engine = "auto", *, block_pairs: int | None = None, pallas: bool | None = None
) -> Kernel:
    """Give the covariance of an infinitely wide random network's outputs (Lee et al. 2018, arXiv:1711.00165).

    **Arguments, returns, raises:** as in [`ntk`][].
    """
    return _closed_form(architecture, "nngp", engine, block_pairs, pallas)


def _closed_form(
    architecture: Architecture, get: Get, engine: Engine, block_pairs: int | None, pallas: bool | None
) -> Kernel:
    if not isinstance(architecture, Architecture):
        raise wrong("architecture", architecture, "an ntkit.Architecture such as ntkit.fc(1)")
    check_choice("engine", engine, ENGINES)
    fused = _choose(architecture, engine) == "fused"
    check_gaussian(architecture)
    block_pairs = None if block_pairs is None else check_integer("block_pairs", block_pairs)
    if block_pairs is not None and not fused:
        raise wrong("block_pairs", block_pairs, "None with the engine 'neural_tangents'")
    if pallas is not None and check_flag("pallas", pallas) and not fused:
        raise wrong("pallas", pallas, "False or None with the engine 'neural_tangents'")
    if fused:
        return FusedKernel(architecture, get, block_pairs, pallas)
    nt.load()  # what is missing is said here, and not inside of a compiled function
    return NeuralTangentsKernel(architecture, get)


def _choose(architecture: Architecture, engine: Engine) -> str:
    """Give the fastest engine that has every layer, or say what each of those asked for lacks."""
    lacks = {}
    for name in HAS if engine == "auto" else (engine,):
        lacks[name] = [
            f"layers[{i}], {layer_name(each)}" for i, each in enumerate(architecture.layers) if not HAS[name](each)
        ]
        if not lacks[name]:
            return name
    those = "; ".join(f"{name!r} lacks {' and '.join(layers)}" for name, layers in lacks.items())
    raise ValueError(
        f"engine: got {engine!r} for {architecture.name}, expected one that has all of its layers: {those}"
    )


@pytree_dataclass
class NeuralTangentsKernel(Kernel):
    """The kernel of an architecture, computed by neural-tangents."""

    architecture: Architecture
    get: Get = static_field()

    @property
    def engine(self) -> str:
        """Always `"neural_tangents"`."""
        return "neural_tangents"

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        return self.get == "ntk"

    def gram(self, x1: Array, x2: Array | None) -> Array:
        check_image_shape(self.architecture, x1.shape[1:])
        if isinstance(self.architecture.layers[0], Flatten):
            # neural-tangents would keep one product per pixel, (n1, n2, height, width), before it sums them.
            x1 = x1.reshape(x1.shape[0], -1)
            x2 = None if x2 is None else x2.reshape(x2.shape[0], -1)
        _, _, kernel_fn = self.architecture.stax()
        shape, layers = x1.shape[1:], self.architecture.layers
        pixels = shape[0] * shape[1] if len(shape) == 3 else 1
        pooled = any(isinstance(layer, AveragePool | GlobalAveragePool) for layer in layers)
        # Covariances of NNGP and NTK, and what turns one layer's into the next one's. Pooling mixes pixels of one image
        # with all of the other's; without it only pixels at the same place meet.
        each = 6 * x1.dtype.itemsize * (pixels**2 if pooled else pixels)
        return in_blocks(lambda x1, x2: kernel_fn(x1, x2, self.get), self.gram_diagonal, x1, x2, each)
