"""Random rotations, shifts, flips and brightness, compiled into the loop that uses them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from ntkit._checks import check_batch, check_flag, check_integer, check_key, check_number


@jax.tree_util.register_static
@dataclass(frozen=True)
class Augmentation:
    """Random changes to images that keep their labels, drawn anew for each image.

    The four kinds of the KIP experiments (Nguyen, Novak, Xiao & Lee 2021, arXiv:2107.13034), which took them from
    Keras: rotation, shift, horizontal flip and channel shift. What comes into view at a border repeats the nearest
    pixel, so that no strange value appears whatever space the images are in.

    A value with no state: `augmentation(key, images)` can be called under `jit`, and two augmentations of equal
    strengths are equal. A strength of 0 costs nothing.

    **Fields:**

    - `rotation`: the largest rotation in degrees, at most 180; the angle is uniform on [−rotation, rotation] and
      pixels are interpolated bilinearly. Default 0.
    - `shift`: the largest shift in whole pixels; down and right are each uniform on {−shift, …, shift}. Default 0.
    - `flip`: mirror left to right with probability 1/2. Default False.
    - `channel_shift`: the largest change of brightness, in the units of the images; one number, uniform on
      [−channel_shift, channel_shift], is added to all channels of an image, which is then clipped to its own range of
      values, as in Keras. Default 0.

    **Raises:** `ValueError` if a strength is negative, not finite, or out of range.
    """

    rotation: float = 0.0
    shift: int = 0
    flip: bool = False
    channel_shift: float = 0.0

    def __post_init__(self) -> None:
        check_number("rotation", self.rotation, least=0, most=180, unit="degrees")
        check_integer("shift", self.shift, 0)
        check_flag("flip", self.flip)
        check_number("channel_shift", self.channel_shift, least=0)

    @classmethod
    def objects(cls) -> Augmentation:
        """For photographs of things at 32×32, such as CIFAR-10: 10 degrees, 3 pixels, flips, brightness 0.1."""
        return cls(rotation=10.0, shift=3, flip=True, channel_shift=0.1)

    @classmethod
    def digits(cls) -> Augmentation:
        """For written digits, such as MNIST: 10 degrees and 2 pixels, no flips: a mirrored digit is not one.

        scikit-learn's 8×8 digits fill their frame: use `shift=1` there.
        """
        return cls(rotation=10.0, shift=2)

    def __call__(
        self, key: PRNGKeyArray, images: Float[ArrayLike, "n height width channels"]
    ) -> Float[Array, "n height width channels"]:
        """Each image, changed at random.

        **Arguments:**

        - `key`: the randomness; the same key gives the same bits.
        - `images`: floats (n, height, width, channels) in whatever space the kernel is fed. Whitened images
          ([`ZCA`][]) are no pictures any more: augment pixels and transform after.

        **Returns:** images of the same shape and dtype.

        **Raises:** `ValueError` if `images` is not of rank 4, not float, or no larger than `shift`.
        """
        check_key("key", key)
        x: Array = jnp.asarray(check_batch("images", images))
        if x.ndim != 4:
            raise ValueError(f"images: got shape {x.shape}, expected (n, height, width, channels)")
        n, height, width, _ = x.shape
        if self.shift >= min(height, width):
            raise ValueError(
                f"images: got {height}×{width} pixels, expected more than the shift of {self.shift} pixels"
            )
        # One key per kind, whichever are on: turning one on does not change what the others draw.
        key_rotation, key_shift, key_flip, key_channel = jax.random.split(key, 4)
        if self.rotation or self.shift or self.flip:
            shift = jax.random.randint(key_shift, (n, 2), -int(self.shift), int(self.shift) + 1)
            flip = jax.random.bernoulli(key_flip, 0.5, (n,)) & self.flip
            if self.rotation:
                limit = math.radians(self.rotation)
                angle = jax.random.uniform(key_rotation, (n,), minval=-limit, maxval=limit)
                x = rotate_shift_flip(x, angle, shift, flip)
            else:
                x = shift_flip(x, shift, flip)
            # Without it XLA warps anew for each use of the images, inside its loops: ten times slower.
            x = jax.lax.optimization_barrier(x)
        if self.channel_shift:
            amount = jax.random.uniform(key_channel, (n, 1, 1, 1), x.dtype, -self.channel_shift, self.channel_shift)
            low, high = x.min(axis=(1, 2, 3), keepdims=True), x.max(axis=(1, 2, 3), keepdims=True)
            x = jnp.clip(x + amount, low, high)
        return x


def shift_flip(
    images: Float[Array, "n height width channels"], shift: Int[Array, "n 2"], flip: Bool[Array, " n"]
) -> Float[Array, "n height width channels"]:
    """Each image mirrored left to right where `flip`, then moved down and right by `shift` whole pixels.

    Pixels are moved, none is interpolated.
    """
    _, height, width, _ = images.shape
    row = jnp.clip(jnp.arange(height) - shift[:, :1], 0, height - 1)
    column = jnp.clip(jnp.arange(width) - shift[:, 1:], 0, width - 1)
    column = jnp.where(flip[:, None], width - 1 - column, column)
    return _pixels(images, row[:, :, None], column[:, None, :])


def rotate_shift_flip(
    images: Float[Array, "n height width channels"],
    angle: Float[Array, " n"],
    shift: Int[Array, "n 2"],
    flip: Bool[Array, " n"],
) -> Float[Array, "n height width channels"]:
    """Each image mirrored where `flip`, rotated counterclockwise about its centre by `angle` radians, then moved.

    One bilinear interpolation does all three.
    """
    # Written out, not `dm_pix.rotate` or `map_coordinates` under `vmap`: for 5,000 32×32×3 images on two CPU cores
    # those take 3 s and 0.3 s, this 0.1 s, as all channels of a pixel are read at once.
    _, height, width, _ = images.shape
    dtype = images.dtype
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    down = (jnp.arange(height)[None] - shift[:, :1] - middle_row)[:, :, None].astype(dtype)
    right = (jnp.arange(width)[None] - shift[:, 1:] - middle_column)[:, None, :].astype(dtype)
    cos, sin = jnp.cos(angle)[:, None, None].astype(dtype), jnp.sin(angle)[:, None, None].astype(dtype)
    row = jnp.clip(cos * down + sin * right + middle_row, 0, height - 1)
    column = jnp.clip(cos * right - sin * down + middle_column, 0, width - 1)
    column = jnp.where(flip[:, None, None], width - 1 - column, column)
    top, left = jnp.floor(row).astype(jnp.int32), jnp.floor(column).astype(jnp.int32)
    bottom, far = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    v, h = (row - top)[..., None].astype(dtype), (column - left)[..., None].astype(dtype)
    upper = (1 - h) * _pixels(images, top, left) + h * _pixels(images, top, far)
    lower = (1 - h) * _pixels(images, bottom, left) + h * _pixels(images, bottom, far)
    return (1 - v) * upper + v * lower


def _pixels(
    images: Float[Array, "n height width channels"],
    row: Int[Array, "n _ _"],
    column: Int[Array, "n _ _"],
) -> Float[Array, "n height width channels"]:
    """`images[i, row, column]` for each image i; the indices are known to be in bounds, which saves the checks."""
    image = jnp.arange(images.shape[0])[:, None, None]
    return images.at[image, row, column].get(mode="promise_in_bounds")
