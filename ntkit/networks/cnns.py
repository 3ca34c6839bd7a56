"""The convolutional networks that dataset distillation is tested on, for images of about 32×32 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ntkit._checks import check_integer

if TYPE_CHECKING:
    import flax.linen as nn


def simple_cnn(num_outputs: int, *, width: int = 32) -> nn.Module:
    """Give a small network: convolutions 3×3 of 32, 64 and 64 channels, a dense layer of 64, and the readout.

    ReLU after each, and 2×2 maxima after the first two convolutions; an odd row or column is a window of its own.
    Papers on distillation call several networks "simple CNN"; this is the one of many a tutorial.

    **Arguments:** `num_outputs`: outputs of the readout. `width`: channels of the first convolution, to which the
    others are in proportion.

    **Returns:** a `flax.linen` module with biases, without normalization (an output depends on its own image alone),
    initialized as in He et al. 2015 (arXiv:1502.01852).

    **Raises:** `ValueError` that names the argument.
    """
    stages = [[(32, 3)], [(64, 3)], [(64, 3)]]
    return _cnn(num_outputs, stages, pools=2, hidden=64, width=width)


def standard_convnet(num_outputs: int, *, width: int = 128, depth: int = 3) -> nn.Module:
    """Give the network that sets of 32×32 images are usually distilled for and tested on.

    Three times a convolution 3×3 of 128 channels, instance normalization, ReLU and 2×2 averages, then the readout
    (after Gidaris & Komodakis 2018; Zhao, Mopuri, Bilen 2021, arXiv:2006.05929). Of all networks here the last hidden
    values are `module.apply(variables, x, method="features")`.

    **Arguments:** `num_outputs`: outputs of the readout. `width`: channels. `depth`: convolutions; an image needs at
    least 2 to this power pixels in height and width.

    **Returns:** a `flax.linen` module with flax's initialization. An output depends on its own image alone.

    **Raises:** `ValueError` that names the argument.
    """
    from ntkit.networks._modules import NormalizedCNN

    depth, width = check_integer("depth", depth, 1, 10), check_integer("width", width)
    return NormalizedCNN(depth, width, check_integer("num_outputs", num_outputs))


def alexnet(num_outputs: int, *, width: int = 128) -> nn.Module:
    """Give AlexNet for 32×32 images as papers on distillation have it: five convolutions and the readout.

    Convolutions 5×5 of 128 and 192 channels and 3×3 of 256, 192 and 192, with 2×2 maxima after the first, the second
    and the last (after Krizhevsky et al. 2012; the sizes are those of Zhao, Mopuri, Bilen 2021, arXiv:2006.05929).

    **Arguments**, **Returns** and **Raises:** as in [`simple_cnn`][].
    """
    stages = [[(128, 5)], [(192, 5)], [(256, 3), (192, 3), (192, 3)]]
    return _cnn(num_outputs, stages, pools=3, hidden=None, width=width)


def vgg11(num_outputs: int, *, width: int = 64) -> nn.Module:
    """Give VGG11 for 32×32 images: eight convolutions 3×3 of 64 to 512 channels and the readout.

    Configuration A of Simonyan & Zisserman 2015 (arXiv:1409.1556), with 2×2 maxima after convolutions 1, 2, 4, 6 and 8
    and, as is usual for images of this size, without its hidden dense layers.

    **Arguments**, **Returns** and **Raises:** as in [`simple_cnn`][].
    """
    stages = [[(64, 3)], [(128, 3)], [(256, 3)] * 2, [(512, 3)] * 2, [(512, 3)] * 2]
    return _cnn(num_outputs, stages, pools=5, hidden=None, width=width)


def resnet18(num_outputs: int, *, width: int = 64) -> nn.Module:
    """Give ResNet-18 for 32×32 images: a convolution, four stages of two residual blocks, the mean over pixels.

    He et al. 2016 (arXiv:1512.03385), with a first convolution 3×3 without stride, no maxima, and instance
    normalization in place of batch normalization, as papers on distillation have it.

    **Arguments:** `num_outputs`: outputs of the readout. `width`: channels of the first stage; the others have two,
    four and eight times as many.

    **Returns** and **Raises:** as in [`simple_cnn`][].
    """
    from ntkit.networks._modules import ResNet18

    num_outputs, width = check_integer("num_outputs", num_outputs), check_integer("width", width)
    return ResNet18(width, num_outputs)


def _cnn(
    num_outputs: int,
    stages: Sequence[Sequence[tuple[int, int]]],
    *,
    pools: int,
    hidden: int | None,
    width: int,
) -> nn.Module:
    """Give a network of stages of convolutions (channels, window), scaled to `width` channels in the first."""
    from ntkit.networks._modules import CNN  # flax costs most of a second to import: only who asks for it pays

    num_outputs, width = check_integer("num_outputs", num_outputs), check_integer("width", width)

    def scaled(count: int) -> int:
        return max(1, round(count * width / stages[0][0][0]))

    convolutions = tuple(tuple((scaled(count), window) for count, window in stage) for stage in stages)
    units = None if hidden is None else scaled(hidden)
    return CNN(convolutions, pools, units, num_outputs)
