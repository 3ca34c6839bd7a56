import jax
import numpy as np

from ntkit.data import Split


def test_a_choice_is_of_whole_pairs_in_their_order():
    labels = np.arange(50, dtype=np.int32)
    split = Split(np.broadcast_to(labels[:, None, None, None] / 50, (50, 2, 2, 1)).astype(np.float32), labels)
    chosen = split.choice(20, jax.random.key(1))
    assert len(chosen) == 20
    assert np.all(np.diff(chosen.labels) > 0)
    np.testing.assert_array_equal(chosen.images, split.images[chosen.labels])
    np.testing.assert_array_equal(chosen.labels, split.choice(20, jax.random.key(1)).labels)
    assert not np.array_equal(chosen.labels, split.choice(20, jax.random.key(2)).labels)
    np.testing.assert_array_equal(split.choice(100, jax.random.key(1)).labels, labels)
