"""PNG and JPEG images from anyone, decoded by Pillow."""

from __future__ import annotations

import os
from typing import IO

import numpy as np

# More pixels of an image are made up.
MAX_PIXELS = 2**26
# What a byte of a PNG can become, of the greatest redundancy (zlib's technical notes).
MOST_DEFLATED = 1032


def decoded(file: IO[bytes] | str | os.PathLike[str], channels: int | None, size: tuple[int, ...] | None) -> np.ndarray:
    """The pixels of an image, of shape (height, width, channels), decoded only if it has the size that is wanted.

    Pixels of 16 bits stay what they are, in one channel.
    """
    from PIL import Image

    # Named: Pillow would hand other formats to all its decoders, and one of them to Ghostscript.
    with Image.open(file, formats=("PNG", "JPEG")) as image:
        width, height = image.size
        if size is not None and (height, width) != size:
            raise Ragged((*size, channels), (height, width, channels))
        if width * height > MAX_PIXELS:
            raise ValueError(f"an image of {width}×{height} pixels, expected at most {MAX_PIXELS} of them")
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels or 0)
        # A grey JPEG in a colour set; 16-bit pixels ("I;16") stay what they are.
        converted = mode is not None and image.mode != mode and not image.mode.startswith("I")
        pixels = np.asarray(image.convert(mode) if converted else image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class Ragged(Exception):
    """An image has another shape than those before."""

    def __init__(self, first: tuple[int | None, ...], other: tuple[int | None, ...]) -> None:
        super().__init__()
        self.first, self.other = first, other
