"""The first convolution, nonlinearity and pooling of a block of pairs of images, in one kernel of a GPU.

After a convolution the covariances of images are products of their patches. So at one pixel of the one side and one of
the other they are a matrix product, of all patches of a batch there with all patches of the other batch. What it gives
goes through the nonlinearity and into the mean over two cells of pixels without leaving the registers, where XLA writes
it to memory and reads it again several times.

Written in Pallas for Triton; elsewhere than on a GPU it is interpreted, which is slow and for tests.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ntkit.architectures import Activation, Conv
from ntkit.kernels.fused.stages import Axis, Cells, Stage

# Images of either side whose pairs one program of the kernel computes. Triton's products want at least 16.
LEAST_SIDE, SIDE = 16, 32
# The longest patches that fit into a GPU's shared memory beside that, and the most pixels in a cell.
MOST_FEATURES = 128
MOST_PIXELS = 4
# The compute capability that Triton needs.
OLDEST = 8.0
# The version of JAX since which a program for one platform leaves out what is for others.
LEAVES_OUT = (0, 6, 1)

Values = TypeVar("Values")


def pays() -> bool:
    """Whether this process has a GPU that it is faster on than XLA's kernels (4 times on an H100)."""
    device = jax.devices()[0]
    if jax.__version_info__ < LEAVES_OUT or device.platform != "gpu":
        return False
    # Those of other makers have names of another kind. Triton has no products in full float32 for older ones.
    capability = re.fullmatch(r"\d+\.\d+", str(getattr(device, "compute_capability", "")))
    if capability is None or float(capability[0]) < OLDEST:
        return False
    try:
        importlib.import_module("jax.experimental.pallas.triton")
    except ImportError:  # JAX says since 0.12 that it will go
        return False
    return True


def supports(stage: Stage, channels: int, dtype: Any) -> bool:
    """Whether it computes a network's first stage: a zero-padded convolution, nonlinearities, and small cells."""
    if not stage.layers or not isinstance(convolution := stage.layers[0][0], Conv):
        return False
    vertical, horizontal = (axis.cells for axis in stage.axes)
    return (
        dtype == jnp.float32
        and convolution.padding == "SAME"
        and all(isinstance(layer, Activation) for layer, _ in stage.layers[1:])
        and channels * math.prod(convolution.window) <= MOST_FEATURES
        and 1 < vertical.width * horizontal.width <= MOST_PIXELS
        and not vertical.paired
    )


def through(
    stage: Stage,
    at: Callable[[Any, Array, list[Array], list[Array]], Values],
    channels: int,
    layers: Any,
    planes1: Array,
    planes2: Array,
) -> Values:
    """Take all pairs of two batches through a first stage.

    **Arguments:** `at`: from the layers, the patches' mean products (b1, b2) and what it wants to know of each side,
    lists of (b1, 1) and of (1, b2), gives the values to be averaged, a pytree of (b1, b2). `planes1`:
    (n1, 1, planes, height, width), of which the first `channels` are images and the others what `at` wants to know.
    `planes2`: (1, n2, planes, height, width).

    **Returns:** for each value (horizontal displacements, vertical displacements, n1, n2, height, width), which are
    those of the next stage.
    """
    # Not at the top: it takes 0.3 s, and most have no use for it.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    convolution = stage.layers[0][0]
    assert isinstance(convolution, Conv)
    n1, n2 = planes1.shape[0], planes2.shape[1]
    side1, side2 = (SIDE if n > LEAST_SIDE else LEAST_SIDE for n in (n1, n2))
    patches1, known1 = _by_cells(stage, convolution.window, channels, planes1[:, 0], side1)
    patches2, known2 = _by_cells(stage, convolution.window, channels, planes2[0], side2)
    stds, tree = jax.tree.flatten(layers)
    cells, rows = _pairs_of_cells(stage)
    pixels = patches1.shape[1]
    features = channels * math.prod(convolution.window)
    weight = math.prod(axis.cells.weight for axis in stage.axes)

    def program(cells: Any, stds: Any, patches1: Any, known1: Any, patches2: Any, known2: Any, *means: Any) -> None:
        first, second = cells[pl.program_id(0), 0], cells[pl.program_id(0), 1]
        layers = jax.tree.unflatten(tree, [stds[i] for i in range(stds.shape[0])])

        def add(i: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
            u, v = lax.div(i, pixels), lax.rem(i, pixels)
            # Full float32: TF32 ruins an arccos near 1.
            product = lax.dot_general(
                patches1[first, u], patches2[second, v], (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
            )
            of1 = [known1[first, u, plane][:, None] for plane in range(known1.shape[2])]
            of2 = [known2[second, v, plane][None, :] for plane in range(known2.shape[2])]
            found = jax.tree.leaves(at(layers, product / features, of1, of2))
            return tuple(total + value for total, value in zip(totals, found, strict=True))

        zeros = tuple(jnp.zeros((side1, side2), mean.dtype) for mean in means)
        for mean, total in zip(means, lax.fori_loop(0, pixels**2, add, zeros), strict=True):
            mean[0] = total * weight

    def of_all(array: Any) -> Any:
        return pl.BlockSpec(array.shape, lambda p, i, j: (0,) * array.ndim)

    def of_images(array: Array, axis: int, block: int, which: int) -> Any:
        shape = tuple(block if a == axis else size for a, size in enumerate(array.shape))
        return pl.BlockSpec(shape, lambda *at: tuple(at[which] if a == axis else 0 for a in range(array.ndim)))

    table, row = jnp.asarray(cells), jnp.stack(stds)
    padded1, padded2 = patches1.shape[2], patches2.shape[2]
    dtype = planes1.dtype
    one = jax.ShapeDtypeStruct((1, 1), dtype)
    known = [one] * known1.shape[2]
    values, of_values = jax.tree.flatten(jax.eval_shape(at, layers, one, known, known))
    # Triton's parameters choose Triton; their name depends on the version of JAX.
    parameters = vars(triton).get("CompilerParams") or vars(triton)["TritonCompilerParams"]
    found = pl.pallas_call(
        program,
        out_shape=[jax.ShapeDtypeStruct((len(cells), padded1, padded2), dtype) for _ in values],
        grid=(len(cells), padded1 // side1, padded2 // side2),
        in_specs=[
            of_all(table),
            of_all(row),
            of_images(patches1, 2, side1, 1),
            of_images(known1, 3, side1, 1),
            of_images(patches2, 2, side2, 2),
            of_images(known2, 3, side2, 2),
        ],
        out_specs=[pl.BlockSpec((1, side1, side2), lambda p, i, j: (p, i, j)) for _ in values],
        interpret=jax.default_backend() != "gpu",
        compiler_params=parameters(),
        name="first_stage",
    )(table, row, patches1, known1, patches2, known2)
    # A further row, of zeros, is for what nothing asks for.
    filled = (jnp.pad(mean[:, :n1, :n2], ((0, 1), (0, 0), (0, 0)))[rows] for mean in found)
    return jax.tree.unflatten(of_values, [jnp.moveaxis(mean, (-2, -1), (2, 3)) for mean in filled])


def _by_cells(stage: Stage, window: tuple[int, int], channels: int, planes: Array, side: int) -> tuple[Array, Array]:
    """Give patches (cells, pixels of a cell, n, features) and further planes (cells, pixels of a cell, planes, n).

    n is filled up to a multiple of `side`, and features to a power of two: Triton's blocks are.
    """
    planes = jnp.pad(planes, ((0, -len(planes) % side), (0, 0), (0, 0), (0, 0)))
    images = jnp.pad(planes[:, :channels], ((0, 0), (0, 0), *(((n - 1) // 2, n // 2) for n in window)))
    height, width = planes.shape[2:]
    shifted = [images[:, :, y : y + height, x : x + width] for y in range(window[0]) for x in range(window[1])]
    patches = jnp.concatenate(shifted, axis=1)
    features = max(16, 1 << (patches.shape[1] - 1).bit_length())
    patches = jnp.pad(patches, ((0, 0), (0, features - patches.shape[1]), (0, 0), (0, 0)))

    def divided(a: Array) -> Array:
        for dim, axis in zip((2, 4), stage.axes, strict=True):
            positions = _members(axis.cells)
            a = jnp.take(a, positions.ravel(), axis=dim).reshape(*a.shape[:dim], *positions.shape, *a.shape[dim + 1 :])
        n, planes, rows, above, columns, left = a.shape
        return a.transpose(2, 4, 3, 5, 0, 1).reshape(rows * columns, above * left, n, planes)

    return divided(patches), divided(planes[:, channels:]).swapaxes(2, 3)


def _members(cells: Cells) -> np.ndarray:
    """Give the positions in each cell of an axis, (count, width)."""
    return cells.start + cells.step * np.arange(cells.count)[:, None] + np.arange(cells.width)


def _pairs_of_cells(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Give the pairs of cells that the next stage needs, (pairs, 2).

    With them, of which pair each of its covariances is: (horizontal displacements, vertical displacements, height,
    width), and the number of pairs where it is of none.
    """
    down, right = (_pairs_along(axis) for axis in stage.axes)
    height, width = (axis.cells.count for axis in stage.axes)
    cells = np.array([(a * width + c, b * width + d) for _, a, b in down for _, c, d in right], np.int32)
    shape = (*(axis.following for axis in reversed(stage.axes)), height, width)
    rows = np.full(shape, len(cells), np.int32)
    places = [(horizontal, vertical, a, c) for vertical, a, _ in down for horizontal, c, _ in right]
    rows[tuple(np.array(places).T)] = np.arange(len(cells))
    return cells, rows


def _pairs_along(axis: Axis) -> np.ndarray:
    """Give all (displacement of the next stage, cell, other cell) that are needed along an axis."""
    found = set()
    for displacement, targets, weights in zip(axis.displacements, axis.targets, axis.weights, strict=True):
        for target, counted in zip(targets, weights, strict=True):
            for position in np.flatnonzero(counted):
                other = (position + displacement) % axis.size
                found.add((int(target), axis.cells.of(int(position)), axis.cells.of(int(other))))
    return np.array(sorted(found))
