from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit.data import check_images, check_labels


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("shape", [(3, 4, 4, 1), (3, 5)])
def test_good_images_pass(xp: Any, shape: tuple[int, ...]) -> None:
    check_images("x", xp.zeros(shape, "float32"))
    check_images("x", jnp.zeros(shape, jnp.bfloat16))


def bad_images() -> list[tuple[object, str]]:
    nan = np.zeros((4, 2, 2, 1), np.float32)
    nan[2, 0, 1, 0] = np.nan
    nan[3] = np.inf
    return [
        (nan, r"NaN or infinity in 2 of 4 images, the first at index 2"),
        (jnp.asarray(nan), r"NaN or infinity in 2 of 4 images, the first at index 2"),
        (np.zeros((4, 2, 2, 1), np.uint8), r"got dtype uint8, expected floats"),
        (np.zeros((2, 2, 1)), r"got shape \(2, 2, 1\), expected \(n, height, width, channels\) or \(n, d\)"),
        (np.zeros((0, 3)), r"got shape \(0, 3\), expected at least one"),
        (np.zeros((3, 0)), r"got shape \(3, 0\), expected at least one"),
        ([[1.0], [1.0, 2.0]], r"got \[\[1.0\], .*, expected an array"),
        ("images", r"got .images., expected an array"),
    ]


@pytest.mark.parametrize(("images", "message"), bad_images())
def test_bad_images_are_named(images: object, message: str) -> None:
    with pytest.raises(ValueError, match="^target: .*" + message) as caught:
        check_images("target", images)
    assert "\n" not in str(caught.value)


def test_labels_of_another_length() -> None:
    check_labels("labels", np.array([0, 1]), 2, 2)
    check_labels("labels", [0, 1], None, 2)
    with pytest.raises(ValueError, match=r"^labels: got 2 labels, expected 3, one for each image"):
        check_labels("labels", np.array([0, 1]), 3, 2)


def test_traced_values_are_not_looked_at() -> None:
    @jax.jit
    def f(x: jax.Array, y: jax.Array) -> jax.Array:
        check_images("x", x)
        check_labels("y", y, 2, 3)
        return x

    f(jnp.full((2, 3), jnp.nan), jnp.array([0, 9]))
    with pytest.raises(ValueError, match="x: got shape"):
        f(jnp.zeros((2, 3, 1)), jnp.array([0, 1]))
