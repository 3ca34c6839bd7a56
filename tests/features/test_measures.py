"""Usefulness and robustness of single features, and of all at once."""

import numpy as np
import pytest

import ntkit
from ntkit import attacks, features
from ntkit.data import one_hot
from ntkit.kernels import memory
from tests.features.test_eigen import KERNEL, data

BALL = attacks.Linf(0.05)
FGSM = attacks.FGSM(BALL)


def linear(weights):
    return lambda x: x.reshape(len(x), -1) @ weights


def test_of_a_linear_model_by_hand() -> None:
    x = np.array([[0.6, 0.5], [0.4, 0.5], [0.52, 0.5], [0.9, 0.1]], "f")
    labels = np.array([1, -1, 1, -1])
    model = linear(np.array([[1.0], [-1.0]], "f"))
    # Outputs 0.1, −0.1, 0.02, 0.8: right, right, right, wrong; a step of 0.05 takes 0.1 from each margin.
    found = features.usefulness(model, x, labels)
    assert found.accuracy == 0.75
    size = np.sqrt(0.1**2 + 0.1**2 + 0.02**2 + 0.8**2) * 2
    np.testing.assert_allclose(found.correlation, (0.1 + 0.1 + 0.02 - 0.8) / size, rtol=1e-5)
    robust = features.robustness(model, x, labels, attacks.FGSM(attacks.Linf(0.04)))
    assert robust.accuracy == 0.5
    np.testing.assert_allclose(robust.correlation, (0.02 + 0.02 - 0.06 - 0.88) / size, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_the_sweep_is_each_feature_alone(classes, monkeypatch) -> None:
    x, labels = data(24, classes)
    if classes == 2:
        labels = 2 * labels - 1
        y = labels[:, None].astype("f")
    else:
        y = one_hot(labels, 3)
    found = features.eigenfeatures(KERNEL, x[:12], y[:12])
    whole = features.sweep(found, x, labels, BALL)
    alone = [(*features.usefulness(one, x, labels), *features.robustness(one, x, labels, FGSM)) for one in found]
    columns = np.asarray(alone).T
    for values, expected in zip(
        (whole.accuracy, whole.correlation, whole.robust_accuracy, whole.robust_correlation), columns, strict=True
    ):
        np.testing.assert_allclose(values, expected, atol=1e-3)
    np.testing.assert_allclose(whole.eigenvalues, found.eigenvalues)
    # Blocks of features and of images, and of features alone.
    for bytes_ in (4 * 12 * 7, 4 * 12 * 24 * 5)[: 4 - classes]:
        monkeypatch.setattr(memory, "TILE", bytes_)
        parts = features.sweep(found, x, labels, BALL)
        np.testing.assert_allclose(parts.robust_accuracy, whole.robust_accuracy, atol=1e-6)
        np.testing.assert_allclose(parts.robust_correlation, whole.robust_correlation, atol=1e-4)


@pytest.mark.slow
def test_robust_features_are_at_the_top_and_useful_ones_below_them_too() -> None:
    """Tsilivis & Kempe 2022, figure 4, on digits, with bounds that leave room for another seed."""
    digits = ntkit.data.load("digits")
    x, labels = digits.train.images[:400], digits.train.labels[:400]
    found = features.eigenfeatures(ntkit.ntk(ntkit.fc(2)), x, one_hot(labels, 10))
    new, truth = digits.test.images[:150], digits.test.labels[:150]
    swept = features.sweep(found, new, truth, attacks.Linf(0.1))
    assert (swept.robust_accuracy <= swept.accuracy).all()
    top, below = slice(0, 10), slice(30, 200)
    assert swept.robust_accuracy[top].max() > 0.12
    assert swept.robust_correlation[top].mean() > swept.robust_correlation[below].mean() + 0.05
    # Together the features below the top are useful, and not robust at all.
    rest = found[10:]
    assert features.usefulness(rest, new, truth).accuracy > 0.6
    assert (
        features.robustness(rest, new, truth, FGSM).accuracy
        < features.robustness(found[:30], new, truth, FGSM).accuracy
    )


def test_bad_input() -> None:
    x, labels = data(12)
    found = features.eigenfeatures(KERNEL, x, one_hot(labels, 3))
    with pytest.raises(ValueError, match="attack: got 'pgd'"):
        features.robustness(found[0], x, labels, "pgd")
    with pytest.raises(ValueError, match="features: got Predictor"):
        features.sweep(found[0], x, labels, BALL)
    with pytest.raises(ValueError, match="labels"):
        features.sweep(found, x, labels[:5], BALL)
    with pytest.raises(ValueError, match="x: got values"):
        features.sweep(found, x + 1, labels, BALL)
