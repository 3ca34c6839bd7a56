import numpy as np
import pytest

from ntkit import attacks, features, plot
from ntkit.data import one_hot
from tests.features.test_eigen import KERNEL, data


def test_gradient_of_a_linear_model_is_the_difference_of_its_weights() -> None:
    weights = np.random.default_rng(0).normal(size=(16, 3)).astype("f")
    x, labels = data(6)
    found = features.gradient_images(lambda x: x.reshape(len(x), -1) @ weights, x, labels)
    outputs = x.reshape(6, -1) @ weights
    outputs[np.arange(6), labels] = -np.inf
    expected = (weights[:, labels] - weights[:, outputs.argmax(1)]).T
    np.testing.assert_allclose(found.reshape(6, -1), expected, rtol=1e-4)


def test_fgsm_steps_against_it() -> None:
    x, labels = data(20, 2)
    labels = 2 * labels - 1
    feature = features.eigenfeatures(KERNEL, x, labels[:, None].astype("f"))[1]
    gradient = features.gradient_images(feature, x, labels)
    moved = attacks.FGSM(attacks.Linf(0.01))(feature, x, labels)
    inside = (x > 0.02) & (x < 0.98)
    np.testing.assert_array_equal(np.sign(moved - x)[inside], -np.sign(gradient)[inside])


@pytest.mark.slow
def test_is_drawn() -> None:
    x, labels = data(4)
    found = features.eigenfeatures(KERNEL, x, one_hot(labels, 3))
    swept = features.sweep(found, x, labels, attacks.Linf(0.1))
    figure = plot.features(swept, title="four")
    along, across = figure.axes[:2]
    np.testing.assert_array_equal(along.collections[0].get_offsets()[:, 1], swept.accuracy)
    np.testing.assert_array_equal(across.collections[0].get_offsets()[:, 1], swept.robust_accuracy)


def test_a_model_that_is_not_differentiable() -> None:
    x, labels = data(4)
    with pytest.raises(ValueError, match="model: got one that cannot be differentiated"):
        features.gradient_images(lambda x: np.asarray(x).reshape(len(x), -1)[:, :3], x, labels)
