import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import data, distill, regression
from ntkit.data import one_hot

from .small import clouds

KEY = jax.random.key(0)
IMAGES, LABELS = clouds(200)
TARGETS = np.asarray(one_hot(LABELS, 3))


@pytest.mark.parametrize("ridge", [1e-8, 1e-2])
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_a_few_images_stand_for_all(get, ridge, x64):
    kernel = ntkit.random_features(ntkit.fc(1), get, key=KEY, width=20)
    images, targets = IMAGES.astype(np.float64), TARGETS.astype(np.float64)
    whole = regression.fit(kernel, images, targets, ridge, solver=regression.Cholesky())
    few = distill.exact_set(kernel, images, targets, ridge=ridge)
    features = kernel.features(images).shape[1]
    assert len(few.images) <= features < len(images)
    model = regression.fit(kernel, few.images, few.labels, ridge)
    others = np.random.default_rng(1).normal(size=(50, 4))
    np.testing.assert_allclose(model(others), whole(others), atol=1e-5)
    # They are of the data.
    assert all((images == one).all(axis=1).any() for one in few.images)


def test_features_that_depend_on_each_other_need_fewer(x64):
    images, targets = IMAGES.astype(np.float64), TARGETS.astype(np.float64)
    kernel = ntkit.kernels.kernel_of_features(lambda _, x: jnp.concatenate([x, 2 * x[:, :1]], axis=1))
    few = distill.exact_set(kernel, images, targets, ridge=1e-3)
    assert len(few.images) == 4
    whole = regression.fit(kernel, images, targets, 1e-3)
    model = regression.fit(kernel, few.images, few.labels, 1e-3)
    np.testing.assert_allclose(model(images), whole(images), atol=1e-9)


def test_in_float32_on_digits():
    digits = data.load("digits")
    x = digits.train.images
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=64)
    few = distill.exact_set(kernel, x, one_hot(digits.train.labels, 10), ridge=1e-3)
    assert len(few.images) <= 65
    models = [
        regression.fit(kernel, *pair, 1e-3)
        for pair in ((x, np.asarray(one_hot(digits.train.labels, 10))), (few.images, few.labels))
    ]
    outputs = [np.asarray(model(digits.test.images)) for model in models]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.05)
    assert (outputs[0].argmax(1) == outputs[1].argmax(1)).mean() > 0.98


def test_degrees_of_freedom():
    gram = np.diag([3.0, 1.0, 0.0])
    shift = 0.3 * 4 / 3
    assert distill.degrees_of_freedom(gram, 0.3) == pytest.approx(3 / (3 + shift) + 1 / (1 + shift))
    assert distill.degrees_of_freedom(gram, 0) == pytest.approx(2)
    kernel = ntkit.nngp(ntkit.fc(1))
    found = [distill.degrees_of_freedom(kernel(IMAGES), ridge) for ridge in (1e-4, 1e-2, 1.0)]
    gram = np.asarray(kernel(IMAGES), np.float64)
    for ridge, degrees in zip((1e-4, 1e-2, 1.0), found, strict=True):
        shift = ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        assert degrees == pytest.approx(np.trace(gram @ np.linalg.inv(gram + shift)), rel=1e-6)


def test_bad_arguments():
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=4)
    for change, message in (
        ({"kernel": ntkit.ntk(ntkit.fc(1))}, "kernel: got a FusedKernel, expected one of finitely many features"),
        ({"kernel": 3}, "kernel: got 3, expected"),
        ({"targets": TARGETS[:5]}, "targets: got shape"),
        ({"ridge": -1}, "ridge: got -1, expected"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            distill.exact_set(**{"kernel": kernel, "images": IMAGES, "targets": TARGETS} | change)
    with pytest.raises(ValueError, match="gram: got shape"):
        distill.degrees_of_freedom(np.ones((2, 3)))


@pytest.mark.slow
def test_excess_risks_and_their_bound():
    result = distill.excess_risks(ntkit.fc(1), IMAGES, TARGETS, widths=[4, 30, 400], key=KEY, ridge=0.03)
    rows = result.tables["sizes"]
    gram = np.asarray(ntkit.nngp(ntkit.fc(1))(IMAGES), np.float64)
    shift = 0.03 * np.trace(gram) / len(gram)
    resolvent = np.linalg.inv(gram + shift * np.eye(len(gram)))
    risk = np.mean((shift * resolvent @ TARGETS) ** 2)
    objective = shift * np.trace(TARGETS.T @ resolvent @ TARGETS) / TARGETS.size
    assert result.summary["risk of the kernel"] == pytest.approx(risk, rel=1e-4)
    assert result.summary["degrees of freedom"] == pytest.approx(np.trace(gram @ resolvent), rel=1e-4)
    assert result.summary["degrees of freedom"] == pytest.approx(distill.degrees_of_freedom(gram, 0.03), rel=1e-4)
    assert [row["images"] for row in rows] == sorted({row["images"] for row in rows})
    for row, width in zip(rows, (4, 30, 400), strict=True):
        # By the regression on all images with these features, and without eigenvectors.
        features = np.asarray(ntkit.random_features(ntkit.fc(1), key=KEY, width=width).features(IMAGES), np.float64)
        sampled = features @ features.T + shift * np.eye(len(gram))
        found = np.mean((shift * np.linalg.solve(sampled, TARGETS)) ** 2) - risk
        assert row["excess risk"] == pytest.approx(found, rel=1e-2, abs=1e-4)
        least = np.linalg.eigvals(resolvent @ sampled).real.min()
        assert row["Δ"] == pytest.approx(1 - least, rel=1e-3)
        assert row["bound"] == pytest.approx(objective / least - risk, rel=1e-3)
        assert row["excess risk"] <= row["bound"]
    excess = [row["excess risk"] for row in rows]
    assert excess[0] > 10 * abs(excess[2])


def test_excess_risks_need_a_ridge():
    with pytest.raises(ValueError, match="ridge: got 0, expected a number above 0"):
        distill.excess_risks(ntkit.fc(1), IMAGES, TARGETS, widths=[4], key=KEY, ridge=0)
