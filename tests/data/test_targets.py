from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkit.data import one_hot


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_centred_targets_are_one_hot_less_their_mean(labels: list[int]) -> None:
    targets = one_hot(np.array(labels), 7)
    expected = np.eye(7)[labels] - 1 / 7
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(targets, expected, atol=1e-7)
    np.testing.assert_array_equal(one_hot(np.array(labels), 7, centred=False), np.eye(7)[labels])


def test_under_jit() -> None:
    labels = jnp.array([2, 0, 1])
    np.testing.assert_array_equal(jax.jit(lambda y: one_hot(y, 3))(labels), one_hot(labels, 3))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32])
def test_any_integer_dtype(dtype: type) -> None:
    np.testing.assert_array_equal(one_hot(np.array([1, 0], dtype), 2, centred=False), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 3, 1], 3, r"labels: got 3 at index 1, expected classes from 0 to 2"),
        ([0, -1], 3, r"labels: got -1 at index 1"),
        ([0.0, 1.0], 3, r"labels: got dtype float64, expected integers"),
        ([True, False], 2, r"labels: got dtype bool"),
        ([[0, 1]], 3, r"labels: got shape \(1, 2\)"),
        (1, 3, r"labels: got shape \(\)"),
        ([[0], [1, 2]], 3, r"labels: got \[\[0\], .*, expected integer classes"),
        ([0], 0, r"num_classes: got 0, expected an integer of at least 1"),
        ([0], 2.5, r"num_classes: got 2.5"),
    ],
)
def test_bad_input_is_named(labels: Any, num_classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        one_hot(labels, num_classes)
    assert "\n" not in str(caught.value)
