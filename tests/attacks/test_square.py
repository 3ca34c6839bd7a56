"""Square: its schedule, and models without derivatives."""

import numpy as np
import pytest

from ntkit.attacks import PGD, Linf, Square
from ntkit.attacks.square import shares
from tests.attacks.models import FOUR, IMAGES, KEY, OFFSETS, WEIGHTS, predicted


def test_shares_are_those_of_the_paper() -> None:
    found = shares(10_000, 0.8)
    for i in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        assert found[i + 1] == found[i] / 2
    assert found[0] == 0.8
    np.testing.assert_allclose(shares(5000, 0.8), found[::2])


def test_square_needs_no_derivative_nor_jax() -> None:
    def on_numpy(x):
        return np.asarray(x).reshape(len(x), -1) @ WEIGHTS + OFFSETS

    labels = predicted(FOUR, IMAGES)
    on_host = Square(Linf(0.1), queries=100)(on_numpy, IMAGES, labels, key=KEY)
    compiled = Square(Linf(0.1), queries=100)(FOUR, IMAGES, labels, key=KEY)
    np.testing.assert_allclose(on_host, compiled, atol=1e-6)
    with pytest.raises(ValueError, match=r"model: .* cannot be differentiated .*; ntkit.attacks.Square needs no"):
        PGD(Linf(0.1))(on_numpy, IMAGES, labels, key=KEY)
