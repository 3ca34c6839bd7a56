"""The kernel of one pair of images in double precision, for near images in networks that pool.

There the covariances of all pixels of one image with all of the other are averaged, for which `near` has no recursion
of gaps. Here all of these are taken through the network in float64, whatever JAX is set to, in which the angle between
two float32 images is not lost. It is slow, and meant for the few pairs that need it: one at a time, and as a program
that is small to compile, since every kernel of a network that pools carries it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import assert_never

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ntkit.architectures import Activation, Conv, Dense
from ntkit.kernels.fused.moments import MOMENTS
from ntkit.kernels.fused.stages import Cells, Layers, Recursion, Stage

# Pairs whose product gives a gap below this multiple of the dtype's eps: angles beyond it are right to 0.0003.
NEAR = 2**12
# Of larger images the covariances of all pixels of a pair would take gigabytes.
MOST_PIXELS = 48 * 48


def supports(stages: tuple[Stage, ...], dtype: jnp.dtype) -> bool:
    """Whether these images can be computed so, and need it."""
    pixels = math.prod(axis.size for axis in stages[0].axes)
    # In older versions of JAX what is compiled has one precision.
    return dtype == jnp.float32 and hasattr(jax, "enable_x64") and pixels <= MOST_PIXELS


def kernel(recursion: Recursion, stages: tuple[Stage, ...], x1: Array, x2: Array) -> Array:
    """Give the kernel of an image (1, channels, height, width) with others (n, …), (n,), in their precision."""
    # The same hyper-parameters as in the precision of the images, to the last bit.
    layers = [jax.tree.map(lambda std: jnp.asarray(std, x1.dtype), stage.layers) for stage in stages]
    # What is traced is handed over, not closed over: JAX keeps the function with the program.
    bare = tuple(dataclasses.replace(stage, layers=()) for stage in stages)

    # JAX would batch what is in here in the precision that it is set to.
    @jax.custom_batching.sequential_vmap
    def exact(layers: list[Layers], x1: Array, x2: Array) -> Array:
        with jax.enable_x64(True):
            layers, x1, x2 = jax.tree.map(lambda a: lax.convert_element_type(a, jnp.float64), (layers, x1, x2))
            through = tuple(dataclasses.replace(stage, layers=those) for stage, those in zip(bare, layers, strict=True))
            values = lax.map(functools.partial(_pair, recursion, through, x1[0]), x2)
            return lax.convert_element_type(values, jnp.float32)

    return exact(layers, x1, x2)


def _pair(recursion: Recursion, stages: tuple[Stage, ...], x1: Array, x2: Array) -> Array:
    """Take covariances (4, height, width, height', width') through a network.

    They are those of image 1 with itself, of both, and of image 2 with itself; the last is the tangent kernel of both.
    """
    firsts, seconds = jnp.stack([x1, x1, x2]), jnp.stack([x1, x2, x2])
    product = jnp.einsum("icyx,icuv->iyxuv", firsts, seconds) / len(x1)
    values = jnp.concatenate([product, jnp.zeros_like(product[:1])])
    for stage in stages:
        for layer, fan_in in stage.layers:
            if isinstance(layer, Activation):
                moments = MOMENTS[layer.name]
                one, two = (moments.maps(_variances(values[i])) for i in (0, 2))
                sides = ((one, one, two), (one, two, two))
                down, across = (tuple(map(jnp.stack, zip(*maps, strict=True))) for maps in sides)
                nngp, slope = moments.pair(
                    lambda value: value,
                    values[:3],
                    tuple(each[:, :, :, None, None] for each in down),
                    tuple(each[:, None, None] for each in across),
                )
                values = jnp.concatenate([nngp, values[3:] * slope[1:2]])
                continue
            match layer:
                case Conv():
                    values = _window_mean(layer, values)
                case Dense():
                    pass
                case _:
                    assert_never(layer)
            mean = values[:3]
            nngp = own = layer.W_std**2 * mean + (0.0 if layer.b_std is None else layer.b_std**2)
            if recursion.parameterization == "standard":
                # Sohl-Dickstein et al. 2020 (arXiv:2001.07301): a weight's own scale is 1, and so is a bias's.
                own = fan_in * mean + (0.0 if layer.b_std is None else 1.0)
            values = jnp.concatenate([nngp, own[1:2] + layer.W_std**2 * values[3:]])
        values = _pooled((stage.axes[0].cells, stage.axes[1].cells), values)
    return values[3 if recursion.tangent else 1, 0, 0, 0, 0]


def _variances(values: Array) -> Array:
    """Give the covariances of pixels with themselves, (height, width)."""
    shape, pixels = values.shape[:2], math.prod(values.shape[:2])
    return values.reshape(-1)[:: pixels + 1].reshape(shape)


def _window_mean(layer: Conv, values: Array) -> Array:
    """Average over a window that moves in both images alike, which are the last four axes."""
    for first, size in ((1, layer.window[0]), (2, layer.window[1])):
        second, before, length = first + 2, (size - 1) // 2, values.shape[first]
        pads = [(before, size - 1 - before) if axis in (first, second) else (0, 0) for axis in range(5)]
        padded = jnp.pad(values, pads, mode="wrap" if layer.padding == "CIRCULAR" else "constant")
        total = jnp.zeros_like(values)
        for i in range(size):
            down = lax.slice_in_dim(padded, i, i + length, axis=first)
            total += lax.slice_in_dim(down, i, i + length, axis=second)
        values = total / size
    return values


def _pooled(cells: tuple[Cells, Cells], values: Array) -> Array:
    """Average over what becomes one pixel of the next stage."""
    for first, of in ((1, cells[0]), (2, cells[1])):
        second, inside = first + 2, slice(of.start, of.start + of.step * of.count)
        if of.paired:
            # A pixel meets only itself, and there is one cell.
            same = jnp.diagonal(values, axis1=first, axis2=second)[..., inside].mean(axis=-1)
            values = jnp.expand_dims(same, (first, second))
            continue
        for axis in (first, second):
            # What a stride leaves out behind the last cell may be beyond the image.
            end = of.start + of.step * of.count
            over = max(0, end - values.shape[axis])
            padded = jnp.pad(values, [(0, over if each == axis else 0) for each in range(5)])
            kept = lax.slice_in_dim(padded, of.start, end, axis=axis)
            shape = (*kept.shape[:axis], of.count, of.step, *kept.shape[axis + 1 :])
            values = lax.slice_in_dim(kept.reshape(shape), 0, of.width, axis=axis + 1).mean(axis=axis + 1)
    return values
