"""Architectures as values: a frozen tuple of layers with three readings.

An [`Architecture`][] says what a network is, not how it is computed. It is read as a closed-form kernel
(`ntkit.ntk`, `ntkit.nngp`), as a `neural_tangents.stax` triple (`.stax()`) and as a flax module (`.flax()`).

Architectures are JAX pytrees whose leaves are the standard deviations `W_std` and `b_std` of each layer, so that
these can be traced, differentiated and learned; everything else about a layer is static.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, assert_never, get_args

import jax

from ntkit import _neural_tangents as nt
from ntkit import activations
from ntkit._checks import check_choice, check_integer, check_scalar, check_text, wrong
from ntkit._pytrees import pytree_dataclass

if TYPE_CHECKING:
    import flax.linen as nn

Parameterization: TypeAlias = Literal["ntk", "standard"]
Padding: TypeAlias = Literal["SAME", "VALID", "CIRCULAR"]
Std: TypeAlias = "float | jax.Array"
# A field with this metadata is part of a pytree's structure, not one of its leaves.
STATIC = {"static": True}

StaxTriple: TypeAlias = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]

# Deeper ones would be traced and compiled for hours, layer by layer.
MAX_DEPTH = 1000

PARAMETERIZATIONS: tuple[Parameterization, ...] = ("ntk", "standard")
PADDINGS: tuple[Padding, ...] = ("SAME", "VALID", "CIRCULAR")


@pytree_dataclass
class Dense:
    """A fully-connected layer, z = W x + b.

    **Fields:** `W_std`, `b_std`: standard deviations of weights and biases in the NTK parameterization
    (`b_std=None`: no bias).
    """

    W_std: Std
    b_std: Std | None

    def __post_init__(self) -> None:
        _check_stds(self)


@pytree_dataclass
class Conv:
    """A convolution over (n, height, width, channels).

    **Fields:** `W_std`, `b_std`: as of [`Dense`][]. `window`, `strides`: (vertical, horizontal), in pixels. `padding`:
    with zeros (`"SAME"`), around the image's other end (`"CIRCULAR"`), or none (`"VALID"`).
    """

    W_std: Std
    b_std: Std | None
    window: tuple[int, int] = dataclasses.field(default=(3, 3), metadata=STATIC)
    strides: tuple[int, int] = dataclasses.field(default=(1, 1), metadata=STATIC)
    padding: Padding = dataclasses.field(default="SAME", metadata=STATIC)

    def __post_init__(self) -> None:
        _check_stds(self)
        _check_pair("window", self.window)
        _check_pair("strides", self.strides)
        check_choice("padding", self.padding, PADDINGS)


@pytree_dataclass
class Activation:
    """A pointwise nonlinearity, by its name in `ntkit.activations.ACTIVATIONS`."""

    name: str = dataclasses.field(metadata=STATIC)

    def __post_init__(self) -> None:
        check_choice("activation", self.name, sorted(activations.ACTIVATIONS))


@pytree_dataclass
class AveragePool:
    """Average pooling over disjoint windows; rows and columns that do not fill a window are dropped."""

    window: tuple[int, int] = dataclasses.field(default=(2, 2), metadata=STATIC)

    def __post_init__(self) -> None:
        _check_pair("window", self.window)


@pytree_dataclass
class GlobalAveragePool:
    """The mean over all pixels: (n, height, width, channels) to (n, channels)."""


@pytree_dataclass
class Flatten:
    """All pixels and channels of an image as one vector; vectors are left as they are."""


Layer: TypeAlias = Dense | Conv | Activation | AveragePool | GlobalAveragePool | Flatten
# Layers of images.
SPATIAL = (Conv, AveragePool, GlobalAveragePool)
# Those that `_stax_layer` has.
STAX = (Dense, Conv, Activation, AveragePool, GlobalAveragePool, Flatten)


@pytree_dataclass
class Architecture:
    """A network up to its number of outputs: the readout, a [`Dense`][] layer, is the last of `layers`.

    **Fields:**

    - `layers`: the layers, input first.
    - `name`: what the architecture is called in tables and run directories.
    - `parameterization`: `"ntk"` (Jacot et al. 2018) or `"standard"` (Sohl-Dickstein et al. 2020,
      arXiv:2001.07301). The NNGP kernel is the same in both; the NTK of the standard parameterization depends on
      the width.
    - `width`: units or channels of each hidden layer where no other is asked for.

    **Raises:** `ValueError` that names the field, or the layer that cannot follow those before it.
    """

    layers: tuple[Layer, ...]
    name: str = dataclasses.field(metadata=STATIC)
    parameterization: Parameterization = dataclasses.field(default="ntk", metadata=STATIC)
    width: int = dataclasses.field(default=512, metadata=STATIC)

    def __post_init__(self) -> None:
        _check_layers(self.layers)
        check_text("name", self.name)
        check_choice("parameterization", self.parameterization, PARAMETERIZATIONS)
        check_integer("width", self.width)

    def stax(self, num_outputs: int = 1, width: int | None = None) -> StaxTriple:
        """Read the architecture as `neural_tangents.stax` functions.

        **Arguments:** `num_outputs`: outputs of the readout. `width`: units or channels of each hidden layer
        (default: the architecture's own).

        **Returns:** `(init_fn, apply_fn, kernel_fn)`.

        **Raises:** `ValueError` that names the argument, or a nonlinearity whose input is not Gaussian.
        """
        check_gaussian(self)
        width = check_integer("width", self.width if width is None else width)
        num_outputs = check_integer("num_outputs", num_outputs)
        last = len(self.layers) - 1
        return nt.stax.serial(
            *(
                _stax_layer(layer, num_outputs if i == last else width, self.parameterization)
                for i, layer in enumerate(self.layers)
            )
        )

    def flax(self, num_outputs: int = 1, width: int | None = None) -> nn.Module:
        """Read the architecture as a `flax.linen` module with the same parameterization.

        **Arguments:** as in [`Architecture.stax`][].

        **Returns:** a module with `init(key, x)` and `apply(variables, x) -> (n, num_outputs)`. In the NTK
        parameterization all parameters are standard normal at initialization and the scales are part of the
        forward pass, so that the module's empirical NTK converges to `ntkit.ntk(architecture)` as the width grows.
        """
        from ntkit._flax import Network  # flax costs most of a second to import: only who asks for it pays

        width = check_integer("width", self.width if width is None else width)
        # JAX compiles a module as a constant, which must be hashable: a float is, the array of a learned W_std is not.
        constant = jax.tree.map(lambda std: std if isinstance(std, jax.core.Tracer) else float(std), self)
        return Network(constant, check_integer("num_outputs", num_outputs), width)


def fc(
    depth: int,
    *,
    activation: str = "relu",
    W_std: Std = 2**0.5,
    b_std: Std | None = 0.1,
    parameterization: Parameterization = "ntk",
    width: int = 512,
) -> Architecture:
    """Give a fully-connected network: flatten, (dense, activation) × depth, dense.

    **Arguments:**

    - `depth`: number of hidden layers, at least 0 (0: a linear model).
    - `activation`: a name in `ntkit.activations.ACTIVATIONS`, for example `"relu"`, `"erf"`, `"gelu"`.
    - `W_std`, `b_std`: standard deviations of weights and biases, the same in every layer, the readout included;
      floats or traced scalars. `b_std=None`: no biases.
    - `parameterization`: `"ntk"` or `"standard"`.
    - `width`: units of each hidden layer. The NTK of the standard parameterization depends on it, and it is the
      default of `.stax()` and `.flax()`.

    **Raises:** `ValueError` that names the argument.
    """
    build = _Builder(depth, 0, activation, W_std, b_std, parameterization, width)
    layers = (Flatten(), *(build.dense, build.activation) * build.depth, build.dense)
    return build.architecture(f"fc{build.depth}", layers)


def conv(
    depth: int,
    *,
    activation: str = "relu",
    W_std: Std = 2**0.5,
    b_std: Std | None = 0.1,
    parameterization: Parameterization = "ntk",
    width: int = 512,
) -> Architecture:
    """Give a convolutional network without pooling: (conv 3×3, activation) × depth, flatten, dense.

    **Arguments:** as in [`fc`][]; `depth` is the number of convolutions, at least 1.
    """
    build = _Builder(depth, 1, activation, W_std, b_std, parameterization, width)
    layers = (*(build.conv, build.activation) * build.depth, Flatten(), build.dense)
    return build.architecture(f"conv{build.depth}", layers)


def convnet(
    depth: int = 3,
    *,
    activation: str = "relu",
    W_std: Std = 2**0.5,
    b_std: Std | None = 0.1,
    parameterization: Parameterization = "ntk",
    width: int = 512,
) -> Architecture:
    """Give the ConvNet of dataset distillation: (conv 3×3, activation, average pool 2×2) × depth, flatten, dense.

    The network of KIP (Nguyen, Novak, Xiao, Lee 2021, arXiv:2107.13034). An image needs at least `2**depth` pixels
    in height and width.

    **Arguments:** as in [`fc`][]; `depth` is the number of convolutions, at least 1.
    """
    build = _Builder(depth, 1, activation, W_std, b_std, parameterization, width)
    layers = (*(build.conv, build.activation, AveragePool()) * build.depth, Flatten(), build.dense)
    return build.architecture(f"convnet{build.depth}", layers)


# Convolutions between pooling layers: Shankar et al. 2020 (arXiv:2003.02237), figure 1.
MYRTLE_STAGES = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def myrtle(
    depth: int,
    *,
    activation: str = "relu",
    W_std: Std = 2**0.5,
    b_std: Std | None = 0.1,
    parameterization: Parameterization = "ntk",
    width: int = 512,
) -> Architecture:
    """Give a Myrtle network (Shankar et al. 2020, arXiv:2003.02237): three stages, global average pooling, dense.

    Each stage is a number of (conv 3×3, activation) pairs; stages are separated by 2×2 average pooling. On 32×32
    images the global pool equals the three poolings of the original.

    **Arguments:** as in [`fc`][]; `depth` is 5, 7 or 10.
    """
    build = _Builder(depth, 1, activation, W_std, b_std, parameterization, width)
    if build.depth not in MYRTLE_STAGES:
        raise wrong("depth", depth, "5, 7 or 10 (the Myrtle networks there are)")
    first, second, third = ((build.conv, build.activation) * count for count in MYRTLE_STAGES[build.depth])
    layers = (*first, AveragePool(), *second, AveragePool(), *third, GlobalAveragePool(), build.dense)
    return build.architecture(f"myrtle{build.depth}", layers)


def check_gaussian(architecture: Architecture) -> None:
    """Raise `ValueError` where a nonlinearity does not act on Gaussian values, whose expectation its closed form is.

    Random weights make values Gaussian, and their means stay so. Those of `Flatten` are Gaussian too, but not alike:
    each pixel has a variance of its own.
    """
    source: str | None = "the inputs"
    for i, layer in enumerate(architecture.layers):
        values = f"the values of layers[{i}], {layer_name(layer)}"
        match layer:
            case Dense() | Conv():
                source = None
            case Activation("identity") | AveragePool() | GlobalAveragePool():
                pass
            case Activation():
                if source is not None:
                    raise ValueError(
                        f"layers[{i}]: got {layer_name(layer)} of {source}, expected Dense or Conv between them: the "
                        "closed form is of Gaussian values"
                    )
                source = values
            case Flatten():
                source = values if source is None else source
            case _:
                assert_never(layer)


def check_image_shape(architecture: Architecture, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` where an input of `shape`, (height, width, channels) or (d,), does not fit the network."""
    size = shape[:2] if len(shape) == 3 else None
    spatial = next((layer for layer in architecture.layers if isinstance(layer, SPATIAL)), None)
    if spatial is not None and size is None:
        raise ValueError(
            f"x: got inputs of shape {shape}, expected (height, width, channels): {architecture.name} has "
            f"{layer_name(spatial)}"
        )
    for layer in architecture.layers:
        if size is None or isinstance(layer, Flatten | GlobalAveragePool):
            return
        match layer:
            case AveragePool():
                size = (size[0] // layer.window[0], size[1] // layer.window[1])
            case Conv():
                size = _convolved(size, layer)
            case Dense() | Activation():
                continue
            case _:
                assert_never(layer)
        if min(size) < 1:
            raise ValueError(
                f"x: got images of {shape[0]}×{shape[1]} pixels, expected larger ones: of {architecture.name} the "
                f"window {layer.window} of a {layer_name(layer)} does not fit"
            )
    if size is not None:
        raise ValueError(
            f"architecture: got {architecture.name} without Flatten() or GlobalAveragePool(), "
            "expected one of them between images and the readout"
        )


def _convolved(size: tuple[int, int], layer: Conv) -> tuple[int, int]:
    """Give the size of a convolution's output."""
    shrink = (layer.window[0] - 1, layer.window[1] - 1) if layer.padding == "VALID" else (0, 0)
    height, width = (
        -((less - pixels) // stride) for pixels, less, stride in zip(size, shrink, layer.strides, strict=True)
    )
    return height, width


def _check_layers(layers: object) -> None:
    """Raise `ValueError` unless these are layers that can follow each other, whatever the inputs' size."""
    if not isinstance(layers, tuple):
        raise wrong("layers", layers, "a tuple of layers")
    for i, layer in enumerate(layers):
        # No subclasses: JAX would not know them.
        if type(layer) not in get_args(Layer):
            raise wrong(f"layers[{i}]", layer, "a layer of ntkit.architectures, such as Dense(1.0, None)")
    if not layers or not isinstance(layers[-1], Dense):
        last = layer_name(layers[-1]) if layers else "no layers"
        raise ValueError(f"layers: got {last}, expected the readout, Dense(W_std, b_std), as the last of them")
    vectors = None
    for i, layer in enumerate(layers):
        if vectors is not None and isinstance(layer, SPATIAL):
            raise ValueError(
                f"layers[{i}]: got {layer_name(layer)} after {vectors}, expected it before: it needs images"
            )
        if isinstance(layer, Flatten | GlobalAveragePool) and vectors is None:
            vectors = f"layers[{i}], {layer_name(layer)}"
    images = next((i for i, layer in enumerate(layers) if isinstance(layer, SPATIAL)), None)
    if images is not None and vectors is None:
        raise ValueError(
            f"layers: got neither Flatten() nor GlobalAveragePool() after layers[{images}], "
            f"{layer_name(layers[images])}, expected one of them before the readout"
        )


def _check_stds(layer: Dense | Conv) -> None:
    check_scalar("W_std", layer.W_std)
    if layer.b_std is not None:
        check_scalar("b_std", layer.b_std)


def _check_pair(name: str, value: object) -> None:
    try:
        right = isinstance(value, tuple) and len([check_integer(name, each) for each in value]) == 2
    except ValueError:
        right = False
    if not right:
        raise wrong(name, value, "a tuple of two positive integers, (vertical, horizontal)")


def layer_name(layer: Layer) -> str:
    """Name a layer in one word."""
    return f"Activation({layer.name!r})" if isinstance(layer, Activation) else type(layer).__name__


class _Builder:
    """The layers that the networks above are made of, which check what they are given."""

    def __init__(
        self,
        depth: int,
        least: int,
        activation: str,
        W_std: Std,
        b_std: Std | None,
        parameterization: Parameterization,
        width: int,
    ) -> None:
        self.depth = check_integer("depth", depth, least, MAX_DEPTH)
        self.parameterization = parameterization
        self.width = width
        self.dense = Dense(W_std, b_std)
        self.conv = Conv(W_std, b_std)
        self.activation = Activation(activation)

    def architecture(self, name: str, layers: tuple[Layer, ...]) -> Architecture:
        return Architecture(layers, name, self.parameterization, self.width)


def _stax_layer(layer: Layer, width: int, parameterization: Parameterization) -> StaxTriple:
    stax = nt.stax
    match layer:
        case Dense():
            return stax.Dense(width, layer.W_std, layer.b_std, parameterization=parameterization)
        case Conv():
            return stax.Conv(
                width,
                layer.window,
                layer.strides,
                layer.padding,
                layer.W_std,
                layer.b_std,
                parameterization=parameterization,
            )
        case Activation():
            return activations.ACTIVATIONS[layer.name].stax(stax)
        case AveragePool():
            return stax.AvgPool(layer.window, layer.window, "VALID")
        case GlobalAveragePool():
            return stax.GlobalAvgPool()
        case Flatten():
            return stax.Flatten()
        case _:
            assert_never(layer)
