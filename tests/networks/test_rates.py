import flax.linen as nn
import jax
import numpy as np
import pytest

import ntkit
from ntkit import networks, plot
from ntkit.data import Standardize, of_pixels

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.uniform(size=(20, 6)).astype(np.float32)
Y = RNG.normal(size=(20, 3)).astype(np.float32)
STEPS = (0, 1, 2, 10, 40)


def test_a_linear_model_is_as_predicted_and_as_plain_numpy() -> None:
    preprocessing = Standardize.fit(X)
    found = networks.convergence(
        of_pixels(nn.Dense(3), preprocessing), X, Y, key=KEY, at=STEPS[::-1], learning_rate=0.5
    )
    assert found.steps == STEPS
    shown = np.asarray(preprocessing.transform(X), np.float64)
    rows = np.concatenate([shown, np.ones((20, 1))], axis=1)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    np.testing.assert_allclose(found.eigenvalues, values[::-1], atol=1e-4)
    weights, left = np.zeros((7, 3)), {}
    for step in range(41):
        residual = Y - rows @ weights
        left[step] = np.linalg.norm(residual)
        top = np.linalg.norm(vectors[:, -1] @ residual)
        if step in STEPS:
            np.testing.assert_allclose(found.measured[STEPS.index(step), 0], top, rtol=1e-3, atol=1e-4)
        weights += 0.5 / 20 * rows.T @ residual
    expected = [left[step] / left[0] for step in STEPS]
    np.testing.assert_allclose(found.left(found.measured), expected, rtol=1e-4)
    np.testing.assert_allclose(found.left(found.predicted), expected, rtol=1e-4)
    np.testing.assert_allclose(found.predicted, found.measured, rtol=1e-3, atol=1e-4)
    assert np.sum(found.shares) == pytest.approx(1)


@pytest.mark.slow
def test_wider_networks_are_nearer_to_the_prediction_of_the_infinitely_wide_one() -> None:
    def off(width: int, kernel: ntkit.Kernel | None) -> float:
        module = ntkit.fc(1).flax(3, width)
        found = networks.convergence(module, X, Y, key=KEY, at=(0, 5, 20), kernel=kernel)
        return np.abs(found.left(found.predicted) - found.left(found.measured)).max()

    infinite = ntkit.ntk(ntkit.fc(1))
    assert off(4096, infinite) < 0.02 < off(8, infinite)
    assert off(4096, None) < 0.01


@pytest.mark.slow
def test_true_labels_are_learned_faster_than_random_ones_and_as_predicted() -> None:
    digits = ntkit.data.load("digits")
    images = digits.train.images[:60]
    true = np.where(digits.train.labels[:60] < 5, 1.0, -1.0)[:, None].astype("f")
    left, shares = [], []
    for y in (true, np.random.default_rng(0).permutation(true)):
        found = networks.convergence(
            ntkit.fc(1).flax(1, 4096), images, y, key=KEY, at=(0, 10, 40), kernel=ntkit.ntk(ntkit.fc(1))
        )
        np.testing.assert_allclose(found.measured, found.predicted, atol=0.05 * np.linalg.norm(y))
        left.append(found.left(found.measured)[-1])
        shares.append(np.sum(found.shares[:10]))
    assert left[0] < 0.8 * left[1]
    assert shares[0] > 2 * shares[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e3}, r"learning_rate: got 1000.0, expected a number above 0 and below"),
        ({"learning_rate": 0.0}, r"learning_rate: got 0.0, expected a finite number above 0"),
        ({"at": (0,)}, r"at: got \(0,\), expected"),
        ({"targets": Y[:5]}, "targets: got"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    given = {"images": X, "targets": Y, "key": KEY, "at": (0, 2)} | change
    with pytest.raises(ValueError, match=message):
        networks.convergence(nn.Dense(3), **given)


def test_is_drawn() -> None:
    found = networks.convergence(nn.Dense(3), X, Y, key=KEY, at=(0, 2, 4))
    figure = plot.convergence({"true": found, "random": found}, components=3, title="title")
    each, whole, spread = figure.axes
    drawn = {line.get_label(): line.get_xydata() for line in whole.lines}
    np.testing.assert_allclose(drawn["true"], np.stack([(0, 2, 4), found.left(found.measured)], axis=1))
    np.testing.assert_allclose(drawn["random, predicted"], np.stack([(0, 2, 4), found.left(found.predicted)], axis=1))
    assert len(each.lines) == 6
    assert spread.lines[0].get_ydata()[-1] == pytest.approx(1)
    for bad, message in ((({}, 3), r"found: got \{\}, expected"), (({"true": found}, 0), "components: got 0")):
        with pytest.raises(ValueError, match=message):
            plot.convergence(bad[0], components=bad[1])
