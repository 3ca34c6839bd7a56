import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import ntkit
from ntkit import attacks, data, distill, networks
from ntkit.data import one_hot
from ntkit.runs import Session

from .small import check_resumption, clouds

IMAGES, LABELS = clouds()
KEY = jax.random.key(0)
MODULE = ntkit.fc(1, activation="erf").flax(3, 7)
SGD = optax.sgd(0.5)
LEARNER = distill.RaTBPTT(MODULE, unroll=6, window=3)


def rat(learner=LEARNER, **options):
    return distill.distill(
        **{"learner": learner, "images": IMAGES, "labels": LABELS, "per_class": 1, "steps": 7, "key": KEY}
        | {"optimizer": SGD, "session": Session(log_every=3)}
        | options
    )


@pytest.mark.parametrize("window", [pytest.param(5, marks=pytest.mark.slow), 2])
def test_the_gradient_is_that_of_the_window(window, x64):
    """Plain unrolling where the window is all; else with what comes before as a constant."""
    images = IMAGES.astype(np.float64)
    all_targets = np.asarray(one_hot(LABELS, 3), np.float64)
    trainer = optax.sgd(0.2, momentum=0.5)
    learner = distill.RaTBPTT(MODULE, unroll=5, window=window, optimizer=trainer)
    made = rat(learner, images=images, steps=1, support=distill.Support(init=images[:3]), session=Session(log_every=1))
    key = jax.random.fold_in(jax.random.split(KEY)[1], 2**31 - 1)
    key_init, key_length = jax.random.split(jax.random.fold_in(key, 0))
    before = int(jax.random.randint(key_length, (), 0, 5 - window + 1))
    assert (before > 0) == (window == 2)

    def trained(network, x, y, steps):
        for _ in range(steps):
            params, state = network

            def loss(params):
                return 0.5 * jnp.mean(jnp.sum((MODULE.apply({"params": params}, x) - y) ** 2, axis=1))

            updates, state = trainer.update(jax.grad(loss)(params), state, params)
            network = optax.apply_updates(params, updates), state
        return network

    x, y = images[:3], np.asarray(one_hot(np.arange(3), 3), np.float64)
    params = MODULE.init(key_init, x[:1])["params"]
    start = trained((params, trainer.init(params)), x, y, before)

    @jax.jit
    def loss(x, y):
        params, _ = trained(start, x, y, window)
        return 0.5 * jnp.mean(jnp.sum((MODULE.apply({"params": params}, images) - all_targets) ** 2, axis=1))

    slopes = jax.grad(loss, (0, 1))(x, y)
    # The network's parameters are of float32.
    np.testing.assert_allclose(made.history["loss"][0], loss(x, y), rtol=1e-6)
    np.testing.assert_allclose(made.images, x - 0.5 * slopes[0], atol=1e-6)
    np.testing.assert_allclose(made.labels, y - 0.5 * slopes[1], atol=1e-6)
    assert np.abs(slopes[0]).max() > 1e-2


@pytest.mark.slow
def test_interrupted_and_resumed_equals_undisturbed(tmp_path):
    options = {"steps": 8, "targets": distill.Targets(batch=12), "adversary": attacks.FGSM(attacks.Linf(0.1))}
    options["images"] = images = np.clip(IMAGES / 8 + 0.5, 0, 1)
    check_resumption(functools.partial(rat, **options), images, tmp_path)


def test_beats_real_images_on_digits():
    """By a network that is trained on the set as those were."""
    digits = data.load("digits")
    pixels = data.Standardize.fit(digits.train.images)
    train, test = pixels.transform(digits.train.images), pixels.transform(digits.test.images)
    trainer = optax.sgd(0.1)

    class FromZero(nn.Module):
        @nn.compact
        def __call__(self, x):
            hidden = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
            return nn.Dense(10, kernel_init=nn.initializers.zeros)(hidden)

    module = FromZero()

    def accuracy(steps):
        made = distill.distill(
            distill.RaTBPTT(module, unroll=40, window=15, optimizer=trainer),
            train,
            digits.train.labels,
            per_class=1,
            steps=steps,
            key=KEY,
            optimizer=networks.adam(0.03, decay_over=250),
            targets=distill.Targets(batch=256),
        )
        trained = networks.train(module, made.images, made.labels, key=KEY, steps=40, optimizer=trainer)
        return data.accuracy(trained, test, digits.test.labels)

    real, distilled = accuracy(0), accuracy(250)
    print(real, distilled)
    assert distilled > real + 0.15
    assert distilled > 0.8


def test_convolutions():
    module = networks.standard_convnet(3, width=4, depth=1)
    made = rat(distill.RaTBPTT(module, unroll=3, window=2), images=IMAGES.reshape(-1, 2, 2, 1), steps=2)
    assert np.isfinite(made.images).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": ntkit.fc(1)}, "module: got .*, expected a flax.linen module"),
        ({"unroll": 0}, "unroll: got 0, expected"),
        ({"unroll": 10, "window": 11}, "window: got 11, expected an integer from 1 to 10"),
        ({"optimizer": "adam"}, "optimizer: got 'adam', expected an optax"),
    ],
)
def test_bad_fields(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        distill.RaTBPTT(**{"module": MODULE} | change)


def test_another_number_of_outputs():
    with pytest.raises(ValueError, match="module: got one of 4 outputs, expected 3"):
        rat(distill.RaTBPTT(ntkit.fc(1).flax(4, 5)))
