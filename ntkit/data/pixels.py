"""Whatever is fed preprocessed images, as what is fed pixels."""

from __future__ import annotations

import dataclasses
from typing import Any, overload

from jaxtyping import Array, Float

from ntkit._checks import check_callable, wrong
from ntkit._pytrees import as_pytree, pytree_dataclass
from ntkit.data.preprocess import Preprocessing
from ntkit.kernels.base import Kernel, check_kernel
from ntkit.kernels.preprocessed import PixelKernel, Transform


@overload
def of_pixels(of_images: Kernel, preprocessing: Transform) -> Kernel: ...


@overload
def of_pixels(of_images: Any, preprocessing: Transform) -> Any: ...


def of_pixels(of_images: Any, preprocessing: Transform) -> Any:
    """Put a preprocessing into a kernel, a predictor, a network, or any other model or flax module: x ↦ f(Px).

    Balls around images, and gradient images, are then in the units of the pixels, whatever f itself is fed.

    **Arguments:** `of_images`: of preprocessed images: a kernel, which becomes K(Px, Px'); a network that is still to
    be trained, a flax module or the like; or a model, a callable. `preprocessing`: of `ntkit.data`, such as
    `Standardize`, fitted; or anything with its `transform`.

    **Returns:** a kernel, a module or a model of pixels x; a kernel or a model is a pytree, as what was given.

    **Raises:** `ValueError` that names the argument.
    """
    if isinstance(preprocessing, type) or not callable(getattr(preprocessing, "transform", None)):
        raise wrong("preprocessing", preprocessing, "one of ntkit.data, such as Standardize")
    if isinstance(of_images, Kernel):
        return PixelKernel(check_kernel("of_images", of_images), preprocessing)
    if all(callable(getattr(of_images, name, None)) for name in ("init", "apply")):
        return PixelModule(of_images, preprocessing)
    check_callable("of_images", of_images, "a kernel, or a callable from preprocessed images to outputs")
    # A plain function becomes a pytree here.
    return PixelModel(as_pytree(of_images), preprocessing)


@pytree_dataclass(eq=False)
class PixelModel:
    """A model of pixels; [`of_pixels`][ntkit.data.of_pixels] makes it."""

    model: Any
    preprocessing: Preprocessing | Transform

    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        """Give the outputs for images of pixels."""
        return self.model(self.preprocessing.transform(x))


@dataclasses.dataclass(frozen=True)
class PixelModule:
    """A network of pixels that is still to be trained; [`of_pixels`][ntkit.data.of_pixels] makes it.

    Its preprocessing is among the variables, under its name, beside those that are trained: an argument of what is
    compiled, and not a constant in it.
    """

    module: Any
    preprocessing: Preprocessing | Transform

    def init(self, key: Array, x: Float[Array, "n ..."]) -> dict[str, Any]:
        """Give the variables of the network within, and the preprocessing."""
        return dict(self.module.init(key, self.preprocessing.transform(x))) | {"preprocessing": self.preprocessing}

    def apply(self, variables: Any, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        """Give the outputs for images of pixels."""
        return self.module.apply(self.within(variables), variables["preprocessing"].transform(x))

    @staticmethod
    def within(variables: Any) -> dict[str, Any]:
        """Give the variables of the network within."""
        return {name: values for name, values in variables.items() if name != "preprocessing"}
