import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ntkit.data import Augmentation
from ntkit.data.augment import rotate_shift_flip, shift_flip

KEY = jax.random.key(3)


def pictures(n: int = 6, height: int = 9, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, height, width, channels)).astype(np.float32)


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """np.roll, with what came around the border replaced by the nearest pixel."""
    padded = np.pad(image, ((8, 8), (8, 8), (0, 0)), mode="edge")
    return np.roll(padded, (down, right), axis=(0, 1))[8:-8, 8:-8]


def warp(images: np.ndarray, angle: float, down: int = 0, right: int = 0, flip: bool = False) -> np.ndarray:
    n = len(images)
    return np.asarray(
        rotate_shift_flip(
            jnp.asarray(images),
            jnp.full(n, angle),
            jnp.tile(jnp.array([[down, right]]), (n, 1)),
            jnp.full(n, flip),
        )
    )


def test_zero_strength_is_the_identity() -> None:
    images = pictures()
    np.testing.assert_array_equal(Augmentation()(KEY, images), images)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(-7, 7), st.integers(-7, 7), st.booleans())
def test_shifts_and_flips_move_whole_pixels(down: int, right: int, flip: bool) -> None:
    images = pictures(2, 8, 10)
    expected = np.stack([moved(image[:, ::-1] if flip else image, down, right) for image in images])
    shift = jnp.array([[down, right]] * 2)
    np.testing.assert_array_equal(shift_flip(jnp.asarray(images), shift, jnp.full(2, flip)), expected)
    np.testing.assert_allclose(warp(images, 0.0, down, right, flip), expected, atol=1e-6)


def test_random_shift_is_one_of_the_shifts() -> None:
    images = pictures(64)
    out = np.asarray(Augmentation(shift=1)(KEY, images))
    seen = set()
    for image, result in zip(images, out, strict=True):
        matches = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if np.array_equal(moved(image, i, j), result)]
        assert len(matches) == 1
        seen.add(matches[0])
    # 64 draws of 9 moves: all are seen but for a chance of 1 in 200, and the key is fixed.
    assert len(seen) >= 8


def test_random_flip_is_a_flip_or_nothing() -> None:
    images = pictures(64)
    out = np.asarray(Augmentation(flip=True)(KEY, images))
    flipped = np.array([np.array_equal(r, i[:, ::-1]) for r, i in zip(out, images, strict=True)])
    same = np.array([np.array_equal(r, i) for r, i in zip(out, images, strict=True)])
    assert (flipped ^ same).all()
    assert 16 < flipped.sum() < 48


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 9])
def test_quarter_turns(turns: int, size: int) -> None:
    images = pictures(height=size, width=size)
    expected = np.rot90(images, turns, axes=(1, 2))
    np.testing.assert_allclose(warp(images, turns * math.pi / 2), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 9), (8, 11)])
@pytest.mark.parametrize("degrees", [-31.0, 7.5])
def test_any_rotation_against_scipy(shape: tuple[int, int], degrees: float) -> None:
    images = pictures(3, *shape)
    expected = ndimage.rotate(images.astype(np.float64), degrees, axes=(1, 2), reshape=False, order=1, mode="nearest")
    # SciPy turns from the first axis to the second, which for rows that run downwards is counterclockwise.
    np.testing.assert_allclose(warp(images, math.radians(degrees)), expected, atol=1e-4)


def test_channel_shift_adds_one_number_to_an_image_and_keeps_its_range() -> None:
    images = pictures(32)
    out = np.asarray(Augmentation(channel_shift=0.25)(KEY, images))
    low, high = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))
    amounts = []
    for image, result, lo, hi in zip(images, out, low, high, strict=True):
        assert result.min() >= lo
        assert result.max() <= hi
        inside = (result > lo) & (result < hi)
        difference = (result - image)[inside]
        np.testing.assert_allclose(difference, difference[0], atol=1e-6)
        amounts.append(difference[0])
    assert max(np.abs(amounts)) <= 0.25
    assert np.std(amounts) > 0.08
    assert len(set(np.round(amounts, 6))) == 32


FULL = Augmentation(rotation=15.0, shift=2, flip=True, channel_shift=0.1)


def test_deterministic_in_the_key_and_compiled() -> None:
    images = pictures()
    first = FULL(KEY, images)
    np.testing.assert_array_equal(first, FULL(KEY, images))
    compiled = jax.jit(FULL)
    np.testing.assert_array_equal(compiled(KEY, images), compiled(KEY, images))
    np.testing.assert_allclose(compiled(KEY, images), first, atol=1e-5)
    assert not np.array_equal(first, FULL(jax.random.key(4), images))


@pytest.mark.slow
def test_every_image_is_changed_in_its_own_way() -> None:
    image = pictures(1)
    out = np.asarray(FULL(KEY, np.tile(image, (16, 1, 1, 1))))
    assert len({result.tobytes() for result in out}) == 16


@pytest.mark.slow
def test_never_leaves_the_range_of_values() -> None:
    images = pictures(32)
    out = FULL(KEY, images)
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert (out.min(axis=(1, 2, 3)) >= images.min(axis=(1, 2, 3)) - 1e-6).all()
    assert (out.max(axis=(1, 2, 3)) <= images.max(axis=(1, 2, 3)) + 1e-6).all()


def test_is_differentiable_and_linear_up_to_the_clip() -> None:
    images = jnp.asarray(pictures())
    augment = partial(Augmentation(rotation=15.0, shift=2, flip=True), KEY)
    _, tangent = jax.jvp(augment, (images,), (2 * images,))
    np.testing.assert_allclose(tangent, 2 * augment(images), rtol=1e-5, atol=1e-5)
    assert jnp.isfinite(jax.grad(lambda x: FULL(KEY, x).sum())(images)).all()


def test_is_a_static_value() -> None:
    assert Augmentation.digits() == Augmentation(rotation=10.0, shift=2)
    assert hash(Augmentation.objects()) == hash(Augmentation.objects())
    assert not Augmentation.digits().flip
    assert jax.tree.leaves(FULL) == []
    augmented = jax.jit(lambda augmentation, x: augmentation(KEY, x))(FULL, pictures())
    assert augmented.shape == (6, 9, 9, 3)


@pytest.mark.parametrize(
    "strength",
    [
        {"rotation": -1.0},
        {"rotation": 181.0},
        {"rotation": math.nan},
        {"shift": -1},
        {"shift": 0.5},
        {"shift": True},
        {"flip": 1},
        {"channel_shift": -0.1},
        {"channel_shift": math.inf},
    ],
)
def test_bad_strengths_are_named(strength: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(strength))}: got"):
        Augmentation(**strength)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 4)), r"images: got shape \(3, 4\), expected"),
        (np.zeros((1, 9, 9, 3), np.uint8), r"images: got dtype uint8"),
        (np.zeros((1, 2, 9, 3)), r"images: got 2×9 pixels, expected more than the shift of 2 pixels"),
    ],
)
def test_bad_images_are_named(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FULL(KEY, images)
