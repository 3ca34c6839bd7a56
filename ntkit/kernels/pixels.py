"""A kernel of pixels: of images that are preprocessed before the kernel sees them."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from jaxtyping import Array

from ntkit._checks import wrong
from ntkit._pytrees import told_apart
from ntkit.kernels.base import Kernel, Wrapped, check_kernel


class Transform(Protocol):
    """A preprocessing of `ntkit.data`: a JAX pytree that keeps the shape of images."""

    def transform(self, images: Array, /) -> Array:
        """Give the images as the kernel shall see them."""


def of_pixels(kernel: Kernel, preprocessing: Transform) -> Kernel:
    """Make the kernel K(Px, Px') of pixels x, where P is a preprocessing.

    What is fitted with it is a model of pixels, so that balls around images, and gradient images, are in their units.

    **Arguments:** `kernel`: of preprocessed images. `preprocessing`: of `ntkit.data`, such as `Standardize`, fitted.

    **Raises:** `ValueError` that names the argument.
    """
    check_kernel("kernel", kernel)
    if isinstance(preprocessing, type) or not callable(getattr(preprocessing, "transform", None)):
        raise wrong("preprocessing", preprocessing, "one of ntkit.data, such as Standardize")
    return PixelKernel(kernel, preprocessing)


@told_apart
@dataclasses.dataclass(frozen=True)
class PixelKernel(Wrapped):
    """A kernel behind a preprocessing; [`of_pixels`][] makes it."""

    kernel: Kernel
    preprocessing: Transform

    def gram(self, x1: Array, x2: Array | None) -> Array:
        other = None if x2 is None else self.preprocessing.transform(x2)
        return self.kernel.gram(self.preprocessing.transform(x1), other)

    def gram_diagonal(self, x: Array) -> Array:
        return self.kernel.gram_diagonal(self.preprocessing.transform(x))
