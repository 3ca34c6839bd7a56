"""A kernel of pixels: of images that are preprocessed before the kernel sees them."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Array

from ntkit._pytrees import pytree_dataclass
from ntkit.kernels.base import Kernel, Wrapped


class Transform(Protocol):
    """A preprocessing of `ntkit.data`: a JAX pytree that keeps the shape of images."""

    def transform(self, images: Array, /) -> Array:
        """Give the images as the kernel shall see them."""


@pytree_dataclass
class PixelKernel(Wrapped):
    """A kernel behind a preprocessing; [`ntkit.data.of_pixels`][] makes it."""

    kernel: Kernel
    preprocessing: Transform

    def gram_features(self, x: Array) -> Array:
        return self.kernel.gram_features(self.preprocessing.transform(x))

    def gram(self, x1: Array, x2: Array | None) -> Array:
        other = None if x2 is None else self.preprocessing.transform(x2)
        return self.kernel.gram(self.preprocessing.transform(x1), other)

    def gram_diagonal(self, x: Array) -> Array:
        return self.kernel.gram_diagonal(self.preprocessing.transform(x))

    def gram_matmul(self, x1: Array, x2: Array, v: Array) -> Array:
        return self.kernel.gram_matmul(self.preprocessing.transform(x1), self.preprocessing.transform(x2), v)
