import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkit.distill.batches import ClassIndex

draw = jax.jit(ClassIndex.draw, static_argnums=2)


# One set of classes and a few sizes: each new shape is a compilation.
COUNTS = (1, 3, 4, 9)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from([1, 8, 11, 30]), seed=st.integers(0, 2**32 - 1))
def test_batches_are_balanced(size, seed):
    chosen = np.asarray(draw(ClassIndex.of(LABELS, 4), jax.random.key(seed), size))
    assert chosen.shape == (size,)
    per_class = np.bincount(LABELS[chosen], minlength=4)
    assert set(per_class) <= {size // 4, -(-size // 4)}
    for label, count in enumerate(COUNTS):
        # No member twice before all were drawn once, and so on.
        times = np.bincount(chosen, minlength=len(LABELS))[label == LABELS]
        assert set(times) <= {per_class[label] // count, -(-per_class[label] // count)}


def test_every_member_and_every_class_has_the_same_chance():
    index = ClassIndex.of(LABELS, 4)
    batches = jax.vmap(lambda key: index.draw(key, 6))(jax.random.split(jax.random.key(0), 4000))
    per_class = np.bincount(LABELS[np.asarray(batches).ravel()], minlength=4) / 4000
    np.testing.assert_allclose(per_class, 1.5, atol=0.05)
    members = np.bincount(np.asarray(batches).ravel(), minlength=len(LABELS))[LABELS == 3] / 4000
    np.testing.assert_allclose(members, 1.5 / 9, atol=0.03)


def test_the_key_decides():
    index = ClassIndex.of(LABELS, 4)
    first, again, other = (np.asarray(draw(index, jax.random.key(seed), 8)) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_labels_of_any_integer_type(dtype):
    assert (ClassIndex.of(LABELS.astype(dtype), 4).counts == np.array(COUNTS)).all()
