import jax
import numpy as np
import pytest

from ntkit import features, regression
from ntkit.data import one_hot


def test_by_hand() -> None:
    gram = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    found = features.scores(gram, np.array([0, 0, 1]))
    np.testing.assert_allclose(found.condition_number, 3)
    np.testing.assert_allclose(found.norm, np.sqrt(11) / 3)
    np.testing.assert_allclose(found.mean, 7 / 9)
    same = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    np.testing.assert_allclose(found.label_alignment, np.corrcoef(gram.ravel(), same.ravel())[0, 1])
    np.testing.assert_allclose(features.scores(3.0 * same + 5, np.array([0, 0, 1])).label_alignment, 1)


def test_nngp_accuracy_of_random_features_is_that_of_their_kernel() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (rng.normal(size=(60, 5)) + 1.5 * np.eye(3, 5)[labels]).astype("f")

    def draw(key, x):
        return x @ jax.random.normal(key, (5, 2))

    found = features.nngp_accuracy(
        draw, x[:40], labels[:40], x[40:], labels[40:], key=jax.random.key(0), num_classes=3, samples=2000
    )
    # In the limit of many samples the kernel is that of centred inputs.
    z = x - x.mean(0)
    weights, _ = regression.solve(z[:40] @ z[:40].T, one_hot(labels[:40], 3), 1e-3)
    expected = np.mean(np.argmax(z[40:] @ z[:40].T @ weights, 1) == labels[40:])
    np.testing.assert_allclose(found, expected, atol=0.051)
    assert found > 0.6


@pytest.mark.parametrize(
    ("gram", "labels", "message"),
    [
        (np.ones((2, 3)), [0, 1], r"gram: got shape \(2, 3\)"),
        (np.full((2, 2), np.nan), [0, 1], "gram: got NaN"),
        (np.eye(2), [0, 0], "labels: got shape"),
        (np.eye(2), [0], "labels: got shape"),
    ],
)
def test_bad_input(gram, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        features.scores(gram, labels)


def test_bad_samples() -> None:
    with pytest.raises(ValueError, match="samples: got 0"):
        features.nngp_accuracy(lambda key, x: x, [[1.0]], [0], [[1.0]], [0], key=None, num_classes=2, samples=0)
