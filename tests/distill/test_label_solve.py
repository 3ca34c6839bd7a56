import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import distill
from ntkit.data import one_hot

from .small import RBF, clouds, gaussian

IMAGES, LABELS = clouds()
SUPPORT = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
def test_equals_the_pseudoinverse(ridge, x64):
    images, support = IMAGES.astype(np.float64), SUPPORT.astype(np.float64)
    targets = np.asarray(one_hot(LABELS, 3), np.float64)
    solved = distill.label_solve(RBF(), support, images, LABELS, ridge=ridge)
    gram = np.asarray(gaussian(support, support, 1.0))
    cross = np.asarray(gaussian(images, support, 1.0))
    regularized = gram + ridge * np.trace(gram) / 6 * np.eye(6)
    forward = cross @ np.linalg.inv(regularized)
    np.testing.assert_allclose(solved.labels, np.linalg.pinv(forward) @ targets, rtol=1e-7, atol=1e-9)

    def loss(labels):
        return 0.5 * jnp.mean(jnp.sum((forward @ labels - targets) ** 2, axis=1))

    at_optimum = jax.grad(loss)(jnp.asarray(solved.labels))
    assert np.abs(at_optimum).max() < 1e-10
    assert solved.history["loss"][0] == pytest.approx(float(loss(solved.labels)), rel=1e-9)
    accuracy = np.mean((forward @ solved.labels).argmax(axis=1) == LABELS)
    assert solved.history["accuracy"][0] == pytest.approx(accuracy)


def test_no_labels_of_kip_are_better():
    solved = distill.label_solve(RBF(), SUPPORT, IMAGES, LABELS)
    assert solved.images.dtype == solved.labels.dtype == np.float32
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-2, 1.0):
        labels = solved.labels + scale * rng.normal(size=solved.labels.shape)
        gram = np.asarray(RBF()(SUPPORT), np.float64) + 1e-6 * np.eye(6)
        predictions = np.asarray(RBF()(IMAGES, SUPPORT), np.float64) @ np.linalg.solve(gram, labels)
        loss = 0.5 * np.mean(np.sum((predictions - np.asarray(one_hot(LABELS, 3))) ** 2, axis=1))
        assert loss > solved.history["loss"][0]


def test_more_support_images_than_targets_interpolate():
    solved = distill.label_solve(RBF(), np.random.default_rng(1).normal(size=(20, 4)), IMAGES[:9], LABELS[:9])
    assert solved.history["accuracy"][0] == 1.0
    assert np.isfinite(solved.labels).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support_images": SUPPORT[:, :3]}, r"support_images: got images of shape \(3,\), expected \(4,\)"),
        ({"support_images": np.full((2, 4), np.nan)}, "support_images: got NaN or infinity"),
        ({"images": np.full((60, 4), np.inf, np.float32)}, "images: got NaN or infinity"),
        ({"labels": LABELS[:5]}, "labels: got 5 labels, expected 60"),
        ({"ridge": -1.0}, "ridge: got -1.0, expected a finite number of at least 0"),
        ({"kernel": [RBF()]}, r"kernel: got \[.*\], expected an ntkit.Kernel"),
    ],
)
def test_bad_input_is_one_line_that_names_it(options, message):
    arguments = {"kernel": RBF(), "support_images": SUPPORT, "images": IMAGES, "labels": LABELS} | options
    with pytest.raises(ValueError, match=f"^{message}"):
        distill.label_solve(**arguments)


def test_what_float32_cannot_hold_is_blamed_on_what_asks_for_it():
    with pytest.raises(ValueError, match=r"^ridge: got 3e\+38, expected less: float32 cannot hold the labels"):
        distill.label_solve(RBF(), SUPPORT, IMAGES, LABELS, ridge=3e38)
    with pytest.raises(FloatingPointError, match=r"^kernel: not finite in float32 on these images"):
        distill.label_solve(ntkit.ntk(ntkit.fc(1, W_std=1e20)), SUPPORT, IMAGES, LABELS)
