"""Random features of wide networks: of their covariance from one forward pass, of their tangent kernel from one more.

With h the values of a layer and w Gaussian, the covariance of the next one is E[σ(w·h) σ(w·h')]: features are σ(w·h) of
sampled w, the hidden layer of a random network (Cho & Saul 2009; Loo et al. 2022, arXiv:2210.12067).

The tangent kernel is Θ = Σ + Σ̇ ∘ Θ of the layer before (Jacot et al. 2018, theorem 1), with Σ̇ = E[σ'(w·h) σ'(w·h')].
With features t of Θ and an independent Gaussian g, σ'(w·h) (g·t) has the second moment Σ̇ ∘ Θ: features of a product of
kernels without their tensor product. That is a forward derivative of the network whose direction is drawn anew in
every layer. Zandieh et al. 2021 (arXiv:2106.07880) sketch the tensor product of arc-cosine features instead, by fast
Fourier transforms in each pixel; this is two more products of the layer's own shape, has every activation, and is
differentiable.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeAlias, assert_never

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntkit._checks import check_choice, check_integer, check_key, wrong
from ntkit._convolution import padded
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.activations import ACTIVATIONS
from ntkit.architectures import (
    Activation,
    Architecture,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    check_gaussian,
    check_image_shape,
)
from ntkit.kernels import memory
from ntkit.kernels.finite import FeatureKernel
from ntkit.kernels.pairs import each
from ntkit.kernels.stax import Get

# Gives standard normal numbers of a shape.
Normal: TypeAlias = Callable[[tuple[int, ...]], Array]


def random_features(
    architecture: Architecture, get: Get = "nngp", *, key: Array, width: int | None = None, networks: int = 1
) -> RandomFeatures:
    """Give the kernel of sampled finite networks, with features, which tends to `ntk` or `nngp` as they grow wide.

    Its error falls as 1/√(width · networks). With one hidden layer its mean over keys is the kernel of the infinitely
    wide network; with more there is a bias too, which falls as 1/width.

    **Arguments:**

    - `architecture`: for example `ntkit.convnet(3)`. For `get="ntk"` in the NTK parameterization.
    - `get`: `"nngp"`, features are the last hidden layer; `"ntk"`, as many again for the derivatives. Through these
      the gradient by the inputs leaves out the derivative of σ', which relu has none of.
    - `key`: of the draw.
    - `width`: units or channels of each hidden layer (default: the architecture's own).
    - `networks`: independent ones whose features are put side by side.

    **Returns:** a [`Kernel`][] with `features(x) -> (n, m)`, m = networks · (width · pixels of the last layer + 1) for
    the covariance.

    **Raises:** `ValueError` that names the argument, or a nonlinearity whose input is not Gaussian.
    """
    if not isinstance(architecture, Architecture):
        raise wrong("architecture", architecture, "an ntkit.Architecture such as ntkit.fc(1)")
    check_choice("get", get, ("ntk", "nngp"))
    check_gaussian(architecture)
    if get == "ntk" and architecture.parameterization != "ntk":
        raise ValueError(
            f"architecture: got the {architecture.parameterization} parameterization, expected 'ntk' with get='ntk'"
        )
    width = check_integer("width", architecture.width if width is None else width)
    return RandomFeatures(
        architecture,
        jax.random.key_data(check_key("key", key)),
        get,
        width,
        check_integer("networks", networks),
        _implementation(key),
    )


@pytree_dataclass
class RandomFeatures(FeatureKernel):
    """The kernel of sampled networks; [`random_features`][ntkit.random_features] makes it.

    **Fields:** `key`: the bits of the key that they are drawn with; other bits are not compiled anew.
    """

    architecture: Architecture
    key: Array
    get: Get = static_field()
    width: int = static_field()
    networks: int = static_field()
    implementation: str = static_field()

    @property
    def engine(self) -> str:
        """Always `"random_features"`."""
        return "random_features"

    def redrawn(self, number: Array | int) -> RandomFeatures:
        """Give the same kernel of other networks, by the number of the draw."""
        key = jax.random.fold_in(self._key, number)
        return dataclasses.replace(self, key=jax.random.key_data(key))

    @property
    def _key(self) -> Array:
        return jax.random.wrap_key_data(self.key, impl=self.implementation)

    def gram_features(self, x: Array) -> Array:
        check_image_shape(self.architecture, x.shape[1:])
        at_once = memory.at_once(self._alive(x), memory.BLOCK)
        parts = []
        # A loop would compile one alone, and take twice the time of this on a CPU.
        for key in jax.random.split(self._key, self.networks):
            weights = self._draw(key, x)
            parts.append(each(functools.partial(self._network, weights), x, at_once))
        return jnp.concatenate(parts, axis=1) / math.sqrt(self.networks)

    def _draw(self, key: Array, x: Array) -> list[Array]:
        """Draw all weights of a network, which do not depend on the number of inputs."""
        shapes: list[tuple[int, ...]] = []

        def record(shape: tuple[int, ...]) -> Array:
            shapes.append(shape)
            return jnp.zeros(shape, x.dtype)

        jax.eval_shape(lambda x: self._pass(x, record), x[:1])
        return [jax.random.normal(jax.random.fold_in(key, i), shape, x.dtype) for i, shape in enumerate(shapes)]

    def _network(self, weights: list[Array], x: Array) -> Array:
        remaining = iter(weights)
        return self._pass(x, lambda shape: next(remaining))

    def _alive(self, x: Array) -> int:
        """Give about how many bytes of hidden layers are alive at once for one input."""
        pixels = math.prod(x.shape[1:3]) if x.ndim == 4 else 1
        return 4 * x.dtype.itemsize * max(math.prod(x.shape[1:]), pixels * self.width)

    def _pass(self, x: Array, normal: Normal) -> Array:
        """Give the features of a batch: values of the layers in `values`, features of the tangent kernel beside."""
        values = x
        tangents: Array | None = None
        *hidden, readout = self.architecture.layers
        for layer in hidden:
            match layer:
                case Dense() | Conv():
                    before = values
                    values = self._affine(layer, before, normal)
                    if self.get == "ntk":
                        # Of the layer's own parameters, and of those before it.
                        own = self._affine(layer, before, normal)
                        tangents = own if tangents is None else own + self._linear(layer, tangents, normal)
                case Activation():
                    function = ACTIVATIONS[layer.name].function
                    if tangents is None:
                        values = function(values)
                    else:
                        values, tangents = jax.jvp(function, (values,), (tangents,))
                case AveragePool() | GlobalAveragePool() | Flatten():
                    values = _spatial(layer, values)
                    tangents = None if tangents is None else _spatial(layer, tangents)
                case _:
                    assert_never(layer)
        assert isinstance(readout, Dense)  # an architecture has no other
        parts = [readout.W_std / math.sqrt(each.shape[1]) * each for each in (values, tangents) if each is not None]
        if readout.b_std is not None:
            parts.append(jnp.full((len(x), 1), 1.0, x.dtype) * readout.b_std)
        return jnp.concatenate(parts, axis=1).astype(x.dtype)

    def _affine(self, layer: Dense | Conv, x: Array, normal: Normal) -> Array:
        found = self._linear(layer, x, normal)
        return found if layer.b_std is None else found + layer.b_std * normal((self.width,))

    def _linear(self, layer: Dense | Conv, x: Array, normal: Normal) -> Array:
        if isinstance(layer, Dense):
            return layer.W_std / math.sqrt(x.shape[-1]) * (x @ normal((x.shape[-1], self.width)))
        images, padding = padded(x, layer.window, layer.strides, layer.padding)
        kernel = normal((*layer.window, x.shape[-1], self.width))
        found = jax.lax.conv_general_dilated(
            images, kernel, layer.strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return layer.W_std / math.sqrt(math.prod(kernel.shape[:3])) * found


def _spatial(layer: AveragePool | GlobalAveragePool | Flatten, x: Array) -> Array:
    match layer:
        case Flatten():
            return x.reshape(len(x), -1)
        case GlobalAveragePool():
            return x.mean(axis=(1, 2))
        case AveragePool():
            (rows, columns), (height, width) = layer.window, x.shape[1:3]
            whole = x[:, : height // rows * rows, : width // columns * columns]
            return whole.reshape(len(x), height // rows, rows, width // columns, columns, -1).mean(axis=(2, 4))


def _implementation(key: Array) -> str:
    new = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return str(jax.random.key_impl(key if new else jax.random.wrap_key_data(key)))
