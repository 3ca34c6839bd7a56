import dataclasses
import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import data, distill, regression
from ntkit.attacks import L2, Linf
from ntkit.data import Standardize, one_hot
from ntkit.poison.ntga import _blocks
from ntkit.runs import Interrupted, Run
from tests import flat
from tests.distill.small import RBF, clouds, gaussian

IMAGES, LABELS = clouds()
# Of the clouds' coordinates, which are no pixels.
BOUNDS = (-5.0, 6.0)
KEY = jax.random.key(0)
BALLS = [Linf(0.3, BOUNDS), L2(0.5, BOUNDS)]


def ntga(ball=BALLS[0], **options):
    arguments = {"kernel": RBF(), "images": IMAGES, "labels": LABELS, "ball": ball}
    return flat.ntga(**arguments | {"key": KEY, "time": 50.0, "steps": 4} | options)


def squared_error(support, labels, images, targets, time):
    """The loss on images of a network trained on a support set to time t, in NumPy."""
    y = np.eye(3)[labels] - 1 / 3
    distances = np.sum((support[:, None] - support[None]) ** 2, axis=-1)
    eigenvalues, vectors = np.linalg.eigh(np.exp(-distances / 2))
    phi = (1 - np.exp(-eigenvalues * time / y.size)) / eigenvalues
    distances = np.sum((images[:, None] - support[None]) ** 2, axis=-1)
    predictions = np.exp(-distances / 2) @ (vectors * phi) @ vectors.T @ y
    return 0.5 * np.mean(np.sum((predictions - (np.eye(3)[targets] - 1 / 3)) ** 2, axis=1))


def test_a_step_is_along_the_gradient_by_finite_differences(x64):
    images, labels = clouds(12, np.float64)
    validation = clouds(40, np.float64)
    loss = functools.partial(squared_error, images=validation[0], targets=validation[1], time=50.0)
    gradient = np.empty_like(images)
    for at in np.ndindex(images.shape):
        step = np.zeros_like(images)
        step[at] = 1e-6
        gradient[at] = (loss(images + step, labels) - loss(images - step, labels)) / 2e-6
    poisoned = ntga(L2(1.0, BOUNDS), images=images, labels=labels, validation=validation, steps=1, step_size=1e-3)
    unit = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose((poisoned - images) / 1e-3, unit, rtol=1e-6, atol=1e-6)
    assert poisoned.dtype == np.float64


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"block_size": 25, "target_batch": 20}, {"time": np.inf, "loss": "cross_entropy", "steps": 1}],
    ids=["one block", "blocks", "infinite time"],
)
def test_the_loss_grows_inside_the_balls(ball, options):
    images = np.clip(IMAGES, -1, 2)
    poisoned = ntga(dataclasses.replace(ball, bounds=(-1, 2)), images=images, **options)
    assert poisoned.shape == images.shape
    assert poisoned.dtype == np.float32
    assert poisoned.min() >= -1
    assert poisoned.max() <= 2
    # The difference of two float32 is exact in float64.
    change = poisoned.astype(np.float64) - images
    sizes = np.abs(change).max(axis=1) if isinstance(ball, Linf) else np.linalg.norm(change, axis=1)
    assert sizes.max() <= ball.radius
    assert sizes.min() > 0
    time = options.get("time", 50.0)
    before, after = (
        squared_error(x.astype(np.float64), LABELS, *clouds(90, np.float64), time) for x in (images, poisoned)
    )
    assert after > 1.1 * before


def test_one_step_of_the_whole_radius_reaches_the_surface():
    change = ntga(Linf(0.25, BOUNDS), steps=1) - IMAGES
    np.testing.assert_allclose(np.abs(change), 0.25, rtol=1e-5)


@pytest.mark.slow
def test_networks_trained_on_the_poison_fail_where_noise_does_not_matter():
    digits = ntkit.data.load("digits")
    images, labels = digits.train.images[:500], digits.train.labels[:500]
    kernel, ball = ntkit.ntk(ntkit.fc(1)), Linf(0.25)
    poisoned = flat.ntga(kernel, images, labels, ball, key=KEY, time=100.0, block_size=250, steps=3)
    noise = np.clip(images + ball.radius * np.asarray(jax.random.rademacher(KEY, images.shape, np.float32)), 0, 1)

    def accuracy(x):
        # As long as networks are trained, far beyond the time of the attack.
        model = regression.fit(kernel, x, one_hot(labels, 10), 1e-3)
        return data.accuracy(model, digits.test.images, digits.test.labels)

    assert accuracy(images) > 0.9
    assert accuracy(noise) > 0.8
    assert accuracy(poisoned) < 0.3


class RBFOfImages(RBF):
    def gram(self, x1, x2):
        x2 = x1 if x2 is None else x2
        return gaussian(x1.reshape(len(x1), -1), x2.reshape(len(x2), -1), self.scale)


jax.tree_util.register_dataclass(RBFOfImages, ["scale"], [])


def test_the_ball_is_of_pixels_under_preprocessing():
    images = (IMAGES.reshape(-1, 2, 2, 1) - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0])
    preprocessing = Standardize.fit(images)
    ball, options = Linf(0.05), {"images": images, "block_size": 30}
    behind = ntga(ball, kernel=RBFOfImages(0.5), preprocessing=preprocessing, **options)
    # The distance of standardized images of one channel is that of the pixels, divided by the standard deviation.
    plain = ntga(ball, kernel=RBFOfImages(0.5 / float(preprocessing.std[0])), **options)
    np.testing.assert_allclose(behind, plain, atol=1e-6)
    assert np.abs(behind.astype(np.float64) - images).max() <= ball.radius


def test_the_key_decides_and_all_blocks_share_one_compilation():
    traced = []

    def loss(predictions, targets):
        traced.append(predictions.shape)
        return distill.mse(predictions, targets)

    options = {"block_size": 17, "target_batch": 12, "loss": loss}
    first = ntga(**options)
    np.testing.assert_array_equal(first, ntga(**options))
    assert np.any(first != ntga(**options, key=jax.random.key(1)))
    ntga(**options, time=20.0, steps=3, step_size=0.1)
    assert traced == [(2, 3), (12, 3)]  # at the door, and compiled


def test_blocks_have_one_size_and_their_share_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [500, 300, 203]))
    blocks = _blocks(labels, 3, 100, KEY)
    assert blocks.shape == (11, 92)
    indices, counts = np.unique(blocks, return_counts=True)
    np.testing.assert_array_equal(indices, np.arange(1003))
    assert np.sum(counts == 2) == 11 * 92 - 1003
    shares = np.stack([np.bincount(labels[block], minlength=3) for block in blocks])
    assert np.abs(shares - 92 * np.bincount(labels) / 1003).max() <= 2
    assert np.any(blocks != _blocks(labels, 3, 100, jax.random.key(1)))
    assert _blocks(labels, 3, 2000, KEY).shape == (1, 1003)


def test_goes_on_after_an_interruption_to_the_same_bits(tmp_path, monkeypatch):
    options = {"block_size": 20, "target_batch": 30}
    whole = ntga(**options)
    log = Run.log

    def log_and_stop(self, step, **metrics):
        log(self, step, **metrics)
        if step == 6:
            signal.raise_signal(signal.SIGINT)

    run = Run.create(tmp_path / "run", {})
    monkeypatch.setattr(Run, "log", log_and_stop)
    with pytest.raises(Interrupted, match="stopped after 6 of 12 steps, saved in"):
        ntga(**options, run=run)
    monkeypatch.undo()
    run = Run.resume(tmp_path / "run", {})
    np.testing.assert_array_equal(ntga(**options, run=run), whole)
    assert [record["step"] for record in run.metrics()] == list(range(1, 13))


@ntkit.pytree_dataclass
class Broken(RBF):
    def gram(self, x1, x2):
        return jnp.sqrt(-super().gram(x1, x2))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": Broken()},
        {"loss": lambda predictions, targets: jnp.sum(predictions) * jnp.inf},
        {"loss": lambda predictions, targets: jnp.mean(predictions > 0, dtype=predictions.dtype)},
    ],
    ids=["NaN in the kernel", "infinite loss", "no gradient"],
)
def test_what_cannot_be_ascended_is_an_error(options):
    with pytest.raises(FloatingPointError, match="poisoning failed: the loss is nan by step 1; "):
        ntga(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": gaussian}, "kernel: got <function"),
        ({"images": np.full((60, 4), np.nan)}, "images: got NaN"),
        ({"labels": LABELS[:5]}, "labels: got 5 labels, expected 60"),
        ({"ball": Linf(0.3)}, r"images: got values from -\d.* to \d.*, expected pixels within the bounds \(0, 1\)"),
        ({"ball": 0.1}, "ball: got 0.1"),
        ({"key": 0}, "key: got 0"),
        ({"time": 0.0}, "time: got 0.0, expected a number above 0"),
        ({"time": np.nan}, "time: got nan"),
        ({"steps": 0}, "steps: got 0"),
        ({"block_size": 1.5}, "block_size: got 1.5"),
        ({"step_size": -1.0}, "step_size: got -1.0"),
        ({"target_batch": 0}, "target_batch: got 0"),
        ({"loss": "hinge"}, "loss: got 'hinge', expected one of 'mse', 'cross_entropy'"),
        ({"preprocessing": np.log}, "preprocessing: got"),
        ({"checkpoint_every": -1}, "checkpoint_every: got -1"),
        ({"validation": IMAGES}, r"validation: got float32 of shape .*, expected \(images, labels\)"),
        ({"validation": (IMAGES[:, :3], LABELS)}, r"validation: got images of shape \(3,\), expected \(4,\)"),
        ({"validation": (IMAGES, LABELS[:5])}, "validation: got 5 labels, expected 60"),
        ({"validation": (IMAGES + 9, LABELS)}, "validation: got values from"),
        ({"validation": (IMAGES[:2], LABELS[:2])}, "validation: got no examples of class 2 of 3"),
        ({"validation": (IMAGES, LABELS + 1)}, "validation: got 3 at index 2, expected classes from 0 to 2"),
    ],
)
def test_bad_input_is_one_line_that_names_it(options, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        ntga(**options)
    assert "\n" not in str(caught.value)
