"""Models that draw at random, in expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit import attacks
from ntkit.attacks import PGD, Linf, Randomized
from tests.attacks.models import FOUR, IMAGES, KEY, digits, predicted


def noisy(x, key):
    return FOUR(x + 0.5 * jax.random.normal(key, x.shape))


def test_outputs_are_means_over_draws() -> None:
    # Of a linear model the mean is the model itself, and the spread falls with the root of the draws.
    spread = {}
    for samples in (4, 400):
        found = np.asarray(Randomized(noisy, KEY, samples)(IMAGES)) - np.asarray(FOUR(IMAGES))
        spread[samples] = found.std()
        assert abs(found.mean()) < 4 * found.std() / np.sqrt(found.size)
    assert spread[4] / spread[400] == pytest.approx(10, rel=0.25)


def test_draws_depend_on_the_image_and_not_on_its_batch() -> None:
    model = Randomized(noisy, KEY, 3)
    whole = np.asarray(model(IMAGES))
    np.testing.assert_allclose(model(IMAGES[5:9]), whole[5:9], atol=1e-4)
    np.testing.assert_allclose(model(IMAGES[::-1]), whole[::-1], atol=1e-4)
    # A change of the last bit of one pixel draws anew.
    other = IMAGES.copy()
    other[:, 3, 2, 1] = np.nextafter(other[:, 3, 2, 1], 1)
    assert (np.abs(np.asarray(model(other)) - whole).max(axis=1) > 1e-3).all()


def test_its_gradient_is_that_of_the_mean() -> None:
    model = Randomized(lambda x, key: FOUR(x) * (1 + 0.1 * jax.random.normal(key)), KEY, 50)
    gradient = jax.grad(lambda x: jnp.sum(model(x)[:, 0]))(jnp.asarray(IMAGES))
    exact = jax.grad(lambda x: jnp.sum(FOUR(x)[:, 0]))(jnp.asarray(IMAGES))
    np.testing.assert_allclose(gradient / exact, 1, atol=0.1)


@pytest.mark.slow
def test_noise_is_not_robustness() -> None:
    network, x, labels = digits()
    ball = Linf(0.06)

    def model(x, key):
        return network(x + 0.15 * jax.random.normal(key, x.shape))

    averaged = Randomized(model, KEY, 32)
    found = attacks.evaluate(averaged, x, labels, PGD(ball, steps=20, stop_early=False), key=KEY)
    # One set of noise, which an attack that knows nothing of it takes for the model.
    blind = PGD(ball, steps=20, stop_early=False)(lambda x: model(x, KEY), x, labels, key=KEY)
    judge = Randomized(model, jax.random.key(7), 32)
    still = np.mean((predicted(judge, blind) == labels) & (predicted(judge, x) == labels))
    assert found.clean > 0.4
    assert found.robust["pgd"] < found.clean - 0.2
    assert found.robust["pgd"] <= still


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model": 3}, "model: got 3"), ({"key": 0}, "key: got 0"), ({"samples": 0}, "samples: got 0")],
)
def test_bad_input(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        Randomized(**{"model": noisy, "key": KEY} | change)
