"""The closed-form kernels of fully-connected and convolutional networks, by ntkit's own engine."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.architectures import (
    Activation,
    Architecture,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    check_image_shape,
)
from ntkit.kernels import memory, pairs
from ntkit.kernels.base import Kernel
from ntkit.kernels.fused import first_stage, near
from ntkit.kernels.fused.covariances import Batch, kernel, variances
from ntkit.kernels.fused.moments import MOMENTS, Maps
from ntkit.kernels.fused.stages import Recursion, Stage, stages, stages_to_the_last_activation
from ntkit.kernels.stax import Get

# Covariances of one displacement that are alive at once, forward and backward.
ALIVE = 16

LAYERS = (Dense, Conv, AveragePool, GlobalAveragePool, Flatten)


def supports(layer: Layer) -> bool:
    """Whether a layer has its rule here."""
    return layer.name in MOMENTS if isinstance(layer, Activation) else isinstance(layer, LAYERS)


@pytree_dataclass
class FusedKernel(Kernel):
    """The kernel of an architecture.

    **Fields:** `block_pairs`: pairs of images computed at once, or `None` for as many as the device likes best.
    `pallas`: whether the first stage is one kernel of a GPU, where it can be (see `first_stage`); `None` for where
    there is such a GPU.
    """

    architecture: Architecture
    get: Get = static_field()
    block_pairs: int | None = static_field(default=None)
    pallas: bool | None = static_field(default=None)
    exactly_symmetric: ClassVar[bool] = True

    @property
    def engine(self) -> str:
        """Always `"fused"`."""
        return "fused"

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        sharp = any(
            isinstance(layer, Activation) and layer.name not in ("erf", "identity")
            for layer in self.architecture.layers
        )
        images = self._images(jnp.zeros((1, *shape)))
        return self.get == "ntk" and sharp and near.way(self._stages(images), images) is None

    def gram(self, x1: Array, x2: Array | None) -> Array:
        x1 = self._images(x1)
        plan = self._stages(x1)
        most = self._pairs_at_once(plan, x1.dtype.itemsize)

        def block(first: Batch, second: Batch, same: bool = False) -> Array:
            values = self._pairs(plan, first, second)
            # Of vectors while their product is at hand; images are looked through once, at the end.
            return self._mended(plan, values, first, second, same) if most is None else values

        if x2 is None:
            batch = self._batch(x1, most)
            side = _side_in_cache(len(x1), x1.dtype.itemsize) if most is None else max(1, math.isqrt(most))

            def own(batch: Batch) -> Array:
                return block(batch, batch, True)

            values = pairs.triangle(block, batch, self._diagonal(batch, plan, most), side, own)
            if most is None or batch.inverse is None:
                return values
            values = self._mended(plan, values, batch, batch, same=True)
            return (values + values.T) / 2
        x2 = self._images(x2)
        first, second = self._batches(x1, x2, most)
        # The second images are the ones that are moved: fewer of them cost less.
        if most is not None and len(x1) < len(x2):
            values = pairs.rectangle(block, second, first, _sides(len(x2), len(x1), most)).T
        else:
            values = pairs.rectangle(block, first, second, _sides(len(x1), len(x2), most))
        return values if most is None else self._mended(plan, values, first, second, same=False)

    def gram_diagonal(self, x: Array) -> Array:
        x = self._images(x)
        plan = self._stages(x)
        most = self._pairs_at_once(plan, x.dtype.itemsize)
        return self._diagonal(self._batch(x, most), plan, most)

    def _pairs(self, plan: tuple[Stage, ...], first: Batch, second: Batch) -> Array:
        """Give the kernel of every pair; but for the diagonal where both are the same."""
        if _few(first.images):
            return near.kernel(self._recursion, plan, first.images[:, None], second.images[None])
        return kernel(self._recursion, plan, _down(first), _across(second), same=False)

    def _mended(self, plan: tuple[Stage, ...], values: Array, first: Batch, second: Batch, same: bool) -> Array:
        way = near.way(plan, first.images)
        if way is None or first.inverse is None or second.inverse is None:
            return values
        sides = ((first.images, first.inverse), (second.images, second.inverse))
        return near.mended(way, self._recursion, plan, values, *sides, same=same)

    def _diagonal(self, batch: Batch, plan: tuple[Stage, ...], most: int | None) -> Array:
        def own(batch: Batch) -> Array:
            return kernel(self._recursion, plan, _down(batch), _down(batch), same=True)[:, 0]

        return pairs.each(own, batch, len(batch.images) if most is None else most)

    @property
    def _recursion(self) -> Recursion:
        pallas = False if self.pallas is None and not first_stage.pays() else self.pallas
        return Recursion(self.architecture.parameterization, self.get == "ntk", pallas)

    def _images(self, x: Array) -> Array:
        """Give inputs as (n, channels, height, width); a vector is an image of one pixel."""
        check_image_shape(self.architecture, x.shape[1:])
        if x.ndim == 2 or isinstance(self.architecture.layers[0], Flatten):
            return x.reshape(len(x), -1, 1, 1)
        return jnp.moveaxis(x, -1, 1)

    def _stages(self, images: Array) -> tuple[Stage, ...]:
        _, channels, height, width = images.shape
        return stages(self.architecture, (height, width, channels))

    def _batch(self, images: Array, most: int | None) -> Batch:
        """Give images with their variances, which are computed once for each and not once for each pair."""
        _, channels, height, width = images.shape
        before = stages_to_the_last_activation(self.architecture, (height, width, channels))
        layers = tuple(stage.layers for stage in self._stages(images)[: len(before) + 1])

        def own(images: Array) -> tuple[tuple[Array, Maps], ...]:
            found = variances(self._recursion, layers, before, images[:, None])
            return jax.tree.map(lambda a: a[:, 0], found)

        found = pairs.each(own, images, len(images) if most is None else most)
        mended = near.way(self._stages(images), images) is not None and not _few(images)
        return Batch(images, found, near.inverse_lengths(images) if mended else None)

    def _batches(self, x1: Array, x2: Array, most: int | None) -> tuple[Batch, Batch]:
        if most is None:
            return self._batch(x1, most), self._batch(x2, most)
        # Together: they are compiled once, which takes longer than a copy.
        both = self._batch(jnp.concatenate([x1, x2]), most)
        return jax.tree.map(lambda a: a[: len(x1)], both), jax.tree.map(lambda a: a[len(x1) :], both)

    def _pairs_at_once(self, plan: tuple[Stage, ...], itemsize: int) -> int | None:
        """Give how many pairs to compute at once; `None`: all, where covariances take no more than the result does."""
        if self.block_pairs is not None:
            return self.block_pairs
        if all((y.size, x.size) == (1, 1) for y, x in (stage.axes for stage in plan)):
            return None
        pixels = max(y.size * x.size for y, x in (stage.axes for stage in plan))
        if jax.default_backend() == "cpu":
            return memory.at_once(pixels * itemsize, memory.CACHE)
        between = max(math.prod(axis.size * len(axis.displacements) for axis in stage.axes) for stage in plan[1:])
        return memory.at_once((4 * between + ALIVE * pixels) * itemsize, memory.of_device())


def _few(images: Array) -> bool:
    """Whether these are vectors of so few components that all of their pairs are taken for near."""
    return images.shape[1] <= near.FEW and images.shape[2:] == (1, 1)


def _side_in_cache(n: int, itemsize: int) -> int:
    """Give the side of the blocks of a symmetric matrix of n inputs without pixels.

    A block that stays in the cache is mirrored without a further pass through memory.
    """
    return math.isqrt(memory.at_once(itemsize, memory.CACHE)) if jax.default_backend() == "cpu" else n


def _sides(n1: int, n2: int, most: int | None) -> tuple[int, int]:
    """Give the sides of a block of at most `most` pairs, longer along the first."""
    if most is None:
        return n1, n2
    b1 = min(n1, max(1, 2 * math.isqrt(most)))
    return b1, min(n2, max(1, most // b1))


def _down(batch: Batch) -> Batch:
    return jax.tree.map(lambda a: a[:, None], batch)


def _across(batch: Batch) -> Batch:
    return jax.tree.map(lambda a: a[None], batch)
