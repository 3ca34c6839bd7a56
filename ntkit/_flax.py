"""The flax reading of an architecture."""

from __future__ import annotations

import math
from typing import assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp

from ntkit._convolution import padded
from ntkit.activations import ACTIVATIONS
from ntkit.architectures import (
    Activation,
    Architecture,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Padding,
    Std,
    check_image_shape,
)


class Network(nn.Module):
    """A finite network, as `Architecture.flax` gives it."""

    architecture: Architecture
    num_outputs: int
    width: int

    def features(self, x: jax.Array) -> jax.Array:
        """Map inputs to the last hidden values (n, m)."""
        return self(x, readout=False)

    @nn.compact
    def __call__(self, x: jax.Array, *, readout: bool = True) -> jax.Array:
        """Map images (n, height, width, channels) or vectors (n, d) to outputs (n, num_outputs)."""
        check_image_shape(self.architecture, x.shape[1:])
        standard = self.architecture.parameterization == "standard"
        last = len(self.architecture.layers) - 1
        for i, layer in enumerate(self.architecture.layers):
            if i == last and not readout:
                break
            features = self.num_outputs if i == last else self.width
            match layer:
                case Dense():
                    affine = Affine(features, None, (1, 1), "VALID", layer.W_std, layer.b_std, standard)
                    x = affine(x)
                case Conv():
                    affine = Affine(
                        features,
                        layer.window,
                        layer.strides,
                        layer.padding,
                        layer.W_std,
                        layer.b_std,
                        standard,
                    )
                    x = affine(x)
                case Activation():
                    x = ACTIVATIONS[layer.name].function(x)
                case AveragePool():
                    x = nn.avg_pool(x, layer.window, layer.window, "VALID")
                case GlobalAveragePool():
                    x = x.mean(axis=(1, 2))
                case Flatten():
                    x = x.reshape(x.shape[0], -1)
                case _:
                    assert_never(layer)
        return x


class Affine(nn.Module):
    """A dense layer (`window=None`) or a convolution, in the NTK or the standard parameterization.

    NTK (Jacot et al. 2018): z = W_std / sqrt(fan_in) · W x + b_std · b with W, b ~ N(0, 1). Standard: the scales are
    in the initialization instead.
    """

    features: int
    window: tuple[int, int] | None
    strides: tuple[int, int]
    padding: Padding
    W_std: Std
    b_std: Std | None
    standard: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1] * math.prod(self.window or (1,))
        W_scale = self.W_std / math.sqrt(fan_in)
        kernel_init = nn.initializers.normal(W_scale if self.standard else 1.0)
        if self.window is None:
            linear: nn.Module = nn.Dense(self.features, use_bias=False, kernel_init=kernel_init, name="linear")
        else:
            # Not by flax, which pads CIRCULAR as if there were no strides.
            x, padding = padded(x, self.window, self.strides, self.padding)
            linear = nn.Conv(
                self.features,
                self.window,
                self.strides,
                padding,
                use_bias=False,
                kernel_init=kernel_init,
                name="linear",
            )
        # The scale multiplies the output, not the input: an exact zero stays exact and the product is the layer's own.
        x = linear(x) if self.standard else W_scale * linear(x)
        if self.b_std is None:
            return x
        bias_init = nn.initializers.normal(self.b_std if self.standard else 1.0)
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        bias = bias.reshape(*(1,) * (x.ndim - 1), -1)
        return x + bias if self.standard else x + self.b_std * bias
