import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntkit
from ntkit import attacks, data, distill, networks, regression
from ntkit.data import one_hot
from ntkit.runs import Session

from .small import check_resumption, clouds

IMAGES, LABELS = clouds()
KEY = jax.random.key(0)
ADAM = networks.adam(0.05)
LEARNER = distill.RFAD(ntkit.fc(1), width=24, redraw_every=3)


def rfad(learner=LEARNER, **options):
    return distill.distill(
        **{"learner": learner, "images": IMAGES, "labels": LABELS, "per_class": 1, "steps": 8, "key": KEY}
        | {"optimizer": ADAM, "session": Session(log_every=4)}
        | options
    )


def test_equals_plain_gradient_steps(x64):
    """With features, their draws and the solution written out, and gradients by finite differences."""
    images = IMAGES.astype(np.float64)
    targets = np.asarray(one_hot(LABELS, 3), np.float64)
    start = images[:3]
    learner = distill.RFAD(ntkit.fc(1, activation="erf"), width=24, redraw_every=2, ridge=1e-2)
    made = rfad(
        learner,
        images=images,
        steps=3,
        optimizer=optax.sgd(0.5),
        support=distill.Support(init=start, learn=("images",)),
        session=Session(log_every=1),
    )
    key = jax.random.fold_in(jax.random.split(KEY)[1], 2**31 - 1)

    @jax.jit
    def loss(support, step):
        kernel = ntkit.random_features(ntkit.fc(1, activation="erf"), key=jax.random.fold_in(key, step // 2), width=24)
        phi, psi = kernel.features(support), kernel.features(images)
        gram = phi @ phi.T
        weights = jnp.linalg.solve(
            gram + 1e-2 * jnp.trace(gram) / 3 * jnp.eye(3), jnp.asarray(one_hot(np.arange(3), 3))
        )
        return 0.5 * jnp.mean(jnp.sum((psi @ phi.T @ weights - targets) ** 2, axis=1))

    support, losses = start.copy(), []
    for step in range(3):
        losses.append(float(loss(support, step)))
        slopes = np.zeros_like(support)
        for at in np.ndindex(*support.shape):
            change = np.zeros_like(support)
            change[at] = 1e-5
            slopes[at] = (loss(support + change, step) - loss(support - change, step)) / 2e-5
        support -= 0.5 * slopes
    np.testing.assert_allclose(made.history["loss"], losses, rtol=1e-7)
    np.testing.assert_allclose(made.images, support, rtol=1e-6, atol=1e-7)


def test_beats_real_images_on_digits():
    digits = data.load("digits")
    pixels = data.Standardize.fit(digits.train.images)
    train, test = pixels.transform(digits.train.images), pixels.transform(digits.test.images)
    learner = distill.RFAD(ntkit.fc(1), width=256)
    kernel = ntkit.nngp(ntkit.fc(1))

    def accuracy(steps):
        made = distill.distill(
            learner,
            train,
            digits.train.labels,
            per_class=1,
            steps=steps,
            key=KEY,
            optimizer=networks.adabelief(0.03, decay_over=150),
            support=distill.Support(learn=("images", "labels", "temperature")),
            targets=distill.Targets(batch=256, loss="cross_entropy"),
        )
        # By the kernel of the infinitely wide network, which it has never met.
        model = regression.fit(kernel, made.images, made.labels, 1e-4)
        return data.accuracy(model, test, digits.test.labels)

    real, distilled = accuracy(0), accuracy(150)
    print(real, distilled)
    assert distilled > real + 0.2
    assert distilled > 0.88


@pytest.mark.parametrize("architecture", [ntkit.fc(1), ntkit.conv(1)], ids=lambda one: one.name)
def test_interrupted_and_resumed_equals_undisturbed(architecture, tmp_path):
    learner = distill.RFAD(architecture, width=6, redraw_every=3)
    images = IMAGES.reshape(-1, 2, 2, 1)
    options = {"images": images, "steps": 10, "targets": distill.Targets(batch=12)}
    check_resumption(functools.partial(rfad, learner, **options), images, tmp_path)


@pytest.mark.slow
def test_with_everything_beside_it():
    """An adversary in pixels, augmentation, support batches, two networks of the tangent kernel."""
    learner = distill.RFAD(ntkit.conv(1), width=6, networks=2, get="ntk")
    pixels = np.clip(IMAGES.reshape(-1, 2, 2, 1) / 8 + 0.5, 0, 1)
    options = {
        "images": pixels,
        "per_class": 2,
        "steps": 30,
        "support": distill.Support(batch=3, learn=("images", "labels", "temperature")),
        "targets": distill.Targets(
            batch=30,
            augment=data.Augmentation(flip=True),
            preprocessing=data.Standardize.fit(pixels),
            loss="cross_entropy",
        ),
        "adversary": attacks.FGSM(attacks.Linf(0.02)),
    }
    made, again = rfad(learner, **options), rfad(learner, **options)
    np.testing.assert_array_equal(made.images, again.images)
    assert made.history["loss"][-1] < made.history["loss"][0]
    assert made.kernel is None


@pytest.mark.slow
def test_a_learned_temperature_is_one_more_parameter(x64):
    """One step of gradient descent on its logarithm, by finite differences."""
    learner = distill.KIP(ntkit.nngp(ntkit.fc(1)), ridge=1e-2)
    images = IMAGES.astype(np.float64)
    options = {"images": images, "steps": 2, "session": Session(log_every=1), "optimizer": optax.sgd(0.3)}
    options |= {"targets": distill.Targets(loss="cross_entropy"), "support": distill.Support(init=images[:3])}
    fixed = rfad(learner, **options)
    options["support"] = distill.Support(init=images[:3], learn=("images", "labels", "temperature"))
    learned = rfad(learner, **options)
    assert learned.history["loss"][0] == pytest.approx(fixed.history["loss"][0], rel=1e-12)
    targets = one_hot(LABELS, 3)

    def loss(made, temperature):
        model = regression.fit(learner.kernel, made.images, made.labels, 1e-2)
        return float(distill.cross_entropy(model(images), targets, temperature=temperature))

    first = rfad(learner, **options | {"steps": 0})
    slope = (loss(first, 0.1 * np.exp(1e-5)) - loss(first, 0.1 * np.exp(-1e-5))) / 2e-5
    after = 0.1 * np.exp(-0.3 * slope)
    assert after != pytest.approx(0.1, rel=1e-3)
    once = rfad(learner, **options | {"steps": 1})
    np.testing.assert_allclose(learned.history["loss"][1], loss(once, after), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"learner": ntkit.ntk(ntkit.fc(1))},
            "learner: got .*, expected an ntkit.distill.Learner such as KIP",
        ),
        ({"learner": distill.KIP}, "learner: got the class KIP, expected"),
        (
            {"support": distill.Support(learn=("images", "kernel"))},
            "learn: got .*, expected no 'kernel'",
        ),
        (
            {"support": distill.Support(learn=("images", "temperature"))},
            "learn: got 'temperature' with the loss 'mse', expected the loss 'cross_entropy'",
        ),
        ({"images": IMAGES.reshape(-1, 2, 2, 1), "learner": distill.RFAD(ntkit.convnet(3))}, "x: got images of 2×2"),
    ],
)
def test_bad_input_is_one_line_that_names_it(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        rfad(**options)


def test_bad_fields():
    for change, message in (
        ({"architecture": "convnet"}, "architecture: got 'convnet', expected an ntkit.Architecture"),
        ({"width": 0}, "width: got 0, expected"),
        ({"networks": 1.5}, "networks: got 1.5, expected"),
        ({"redraw_every": 0}, "redraw_every: got 0, expected"),
        ({"ridge": -1}, "ridge: got -1, expected"),
        ({"get": "both"}, "get: got 'both', expected"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            distill.RFAD(**{"architecture": ntkit.fc(1)} | change)
