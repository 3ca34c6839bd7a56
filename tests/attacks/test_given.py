"""The model that is attacked is the one that was given, as it is now; bounds and images are taken as they come."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit import attacks, data
from ntkit.attacks import L2, PGD, Linf
from tests.attacks.models import ALL, FOUR, IMAGES, predicted
from tests.attacks.test_half import exactly_inside

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
ONE, OTHER = RNG.normal(size=(2, 6, 4)).astype(np.float32)
X = RNG.uniform(0.3, 0.7, (20, 6)).astype(np.float32)
BALL = Linf(0.05)
SLOW = ("pgd", "apgd", "fab", "autoattack")


@dataclasses.dataclass(frozen=True)
class ByField:
    weights: np.ndarray

    def __call__(self, x):
        return x @ self.weights


@dataclasses.dataclass(frozen=True)
class ByName:
    name: str
    weights: np.ndarray = dataclasses.field(compare=False)

    def __call__(self, x):
        return x @ self.weights


class Changing:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, x):
        return jax.nn.relu(x @ self.weights)

    def outputs(self, x):
        return self(x)


def attacked(model):
    return np.asarray(attacks.FGSM(BALL)(model, X, np.zeros(len(X), int)))


def along(weights, relu=False):
    """What a function of its own gives."""
    return attacked(lambda x: jax.nn.relu(x @ weights) if relu else x @ weights)


@pytest.mark.parametrize("make", [ByField, functools.partial(ByName, "model")])
def test_models_are_not_compared_by_value(make) -> None:
    for weights in (ONE, OTHER):
        np.testing.assert_array_equal(attacked(make(weights)), along(weights))
    assert (along(ONE) != along(OTHER)).any()


@pytest.mark.parametrize(
    "handed",
    [
        lambda model: model,
        lambda model: model.outputs,
        lambda model: lambda x: model(x),
        lambda model: functools.partial(Changing.outputs, model),
        lambda model: data.of_pixels(model, data.Standardize.fit(X)),
    ],
    ids=["object", "method", "closure", "partial", "preprocessed"],
)
def test_what_was_changed_is_attacked_as_it_is(handed) -> None:
    model = Changing(ONE.copy())
    given = handed(model)

    def fresh():
        return attacked(handed(Changing(model.weights.copy())))

    np.testing.assert_array_equal(attacked(given), fresh())
    model.weights = OTHER.copy()
    model.weights *= -1
    np.testing.assert_array_equal(attacked(given), fresh())


def test_what_was_not_changed_is_not_compiled_again() -> None:
    model, calls = Changing(ONE), []
    counted = functools.partial(lambda x: (calls.append(x), model(x))[1])
    attacked(counted)
    first = len(calls)
    attacked(counted)
    # Once for its outputs and once for its derivative.
    assert len(calls) - first <= 2 < first


@pytest.mark.parametrize(
    "bounds",
    [
        (jnp.float32(0), jnp.float32(1)),
        (np.float64(0), np.int64(1)),
        (jnp.asarray(0), 1.0),
        [0, 1],
        np.array([0.0, 1.0]),
        jnp.array([0, 1]),
    ],
    ids=str,
)
def test_bounds_of_any_kind(bounds) -> None:
    labels = predicted(FOUR, IMAGES)
    for name in ("fgsm", "pgd", "square"):
        found = ALL[name](FOUR, IMAGES, labels, Linf(0.02, bounds))
        np.testing.assert_array_equal(found, ALL[name](FOUR, IMAGES, labels, Linf(0.02)))
    assert PGD(Linf(0.02, bounds)) == PGD(Linf(0.02))


@pytest.mark.parametrize("name", ["fgsm", "square", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.parametrize("ball", [Linf(0.1), pytest.param(L2(0.5), marks=pytest.mark.slow)], ids=["linf", "l2"])
def test_pixels_that_are_beyond_by_rounding_are_clipped(name, ball) -> None:
    bounds = (0.1, 0.9)
    x = (0.1 + 0.8 * (IMAGES - 0.3) / 0.4).clip(0.1, 0.9)
    x[:3], x[3:6] = np.float32(0.9) + np.float32(1.2e-7), np.float32(0.1) - np.float32(1.2e-7)
    found = ALL[name](FOUR, x, predicted(FOUR, x), dataclasses.replace(ball, bounds=bounds))
    # Around the images as they were given.
    assert exactly_inside(ball, x, found, bounds)


def test_the_excess_is_said() -> None:
    x = IMAGES.copy()
    x[0, 0, 0, 0] = 1.00001
    message = (
        r"x: got values from 0\.3\d+ to 1\.00001001\d+, beyond by 1e-05, expected pixels within the bounds \(0, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        attacks.FGSM(Linf(0.1))(FOUR, x, np.zeros(40, int))
