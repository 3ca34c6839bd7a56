"""What is left of a model's accuracy, and when not to believe it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit import attacks, data, fc, ntk, regression
from ntkit.attacks import FGSM, L2, PGD, AutoAttack, Linf, MaskedGradientsWarning, Square
from tests.attacks.models import FOUR, IMAGES, digits, predicted
from tests.attacks.test_balls import exact_size, inside

KEY = jax.random.key(0)


def small(ball, *names):
    """Attacks that take little time."""
    of_name = {
        "fgsm": FGSM(ball),
        "pgd": PGD(ball, steps=20),
        "square": Square(ball, queries=200),
        "autoattack": AutoAttack(ball, steps=10, queries=200),
    }
    return [attack for name, attack in of_name.items() if not names or name in names]


def masked(x):
    """Sees only steps of 1/16, whose gradient is zero: it looks robust to whoever follows gradients."""
    network, _, _ = digits()
    return network(jnp.round(x * 16) / 16)


@pytest.mark.slow
def test_numbers_are_those_of_the_attacks_themselves() -> None:
    network, x, labels = digits()
    ball = Linf(0.05)
    found = attacks.evaluate(network, x, labels, small(ball), key=KEY)
    right = predicted(network, x) == labels
    assert found.clean == np.mean(right)
    assert {"fgsm", "pgd", "square", "autoattack"} <= set(found.robust)
    by_hand = attacks.FGSM(ball)(network, x, labels)
    assert found.robust["fgsm"] == np.mean(right & (predicted(network, by_hand) == labels))
    stages = [found.robust[f"autoattack after {name}"] for name in ("apgd-ce", "apgd-t", "fab-t", "square")]
    assert [found.clean, *stages] == sorted([found.clean, *stages], reverse=True)
    assert stages[-1] == found.robust["autoattack"]
    assert found.worst == np.mean(found.correct) <= min(found.robust.values())
    assert 0 < found.worst < found.clean


@pytest.mark.slow
def test_masked_gradients_are_reported() -> None:
    _, x, labels = digits()
    ball = Linf(0.1)
    three = small(ball, "fgsm", "pgd", "square")
    with pytest.warns(MaskedGradientsWarning) as caught:
        found = attacks.evaluate(masked, x, labels, three)
    # Gradients find nothing, and Square does.
    assert found.robust["fgsm"] == found.clean
    assert found.robust["square"] < found.clean - 0.3
    assert found.worst == found.robust["square"]
    assert len(caught) == len(found.signs) == 2
    assert "exactly zero at 100% of the images" in found.signs[0]
    assert "square, which sees no gradient, fools the model at" in found.signs[1]


@pytest.mark.slow
def test_one_step_better_than_many_is_reported() -> None:
    network, x, labels = digits()
    # Many steps that go nowhere.
    both = [FGSM(Linf(0.1)), PGD(Linf(0.1), steps=2, step_size=1e-5, random_start=False)]
    with pytest.warns(MaskedGradientsWarning, match="fgsm, a single step, leaves .* correct, pgd, with many, "):
        attacks.evaluate(network, x, labels, both)


@pytest.mark.slow
def test_an_honest_model_gets_no_warning() -> None:
    network, x, labels = digits()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.evaluate(network, x, labels, small(Linf(0.1), "fgsm", "pgd", "square"))


def test_a_model_without_gradients_can_be_evaluated() -> None:
    network, x, labels = digits()
    found = attacks.evaluate(lambda x: np.asarray(network(np.asarray(x))), x, labels, Square(Linf(0.1), queries=100))
    assert found.robust["square"] < found.clean


@pytest.mark.parametrize("ball", [Linf(8 / 255), L2(0.5)], ids=["linf", "l2"])
@pytest.mark.parametrize(
    "fit",
    [
        pytest.param(data.Standardize.fit, id="standardize"),
        pytest.param(lambda x: data.ZCA.fit(x, 0.1), id="zca", marks=pytest.mark.slow),
    ],
)
def test_the_ball_is_one_of_pixels_under_any_preprocessing(fit, ball) -> None:
    _, x, labels = digits()
    split = data.load("digits").train
    preprocessing = fit(split.images)
    rows = slice(0, 100)
    model = regression.fit(
        ntk(fc(1)), preprocessing.transform(split.images[rows]), data.one_hot(split.labels[rows], 10)
    )
    of_pixels = data.of_pixels(model, preprocessing)
    found = attacks.FGSM(ball)(of_pixels, x, labels)
    assert inside(ball, x, found)
    # Of most images the bounds cut off a part.
    assert exact_size(ball, np.asarray(found) - x).max() > 0.9 * ball.radius
    by_hand = model(preprocessing.transform(found))
    np.testing.assert_allclose(of_pixels(found), by_hand, atol=1e-5)
    result = attacks.evaluate(of_pixels, x, labels, FGSM(ball))
    right = predicted(of_pixels, x) == labels
    assert result.robust["fgsm"] == np.mean(right & (np.argmax(np.asarray(by_hand), axis=1) == labels))


def test_models_can_be_compiled_as_functions() -> None:
    network, x, _ = digits()
    predictor = regression.fit(ntk(fc(1)), x, np.asarray(network(x)))
    for model in (network, predictor, data.of_pixels(network, data.Standardize.fit(x))):
        np.testing.assert_allclose(jax.jit(model)(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.evaluate(FOUR, IMAGES, np.zeros(40, int), PGD), "attacks: got the class PGD"),
        (lambda: attacks.evaluate(FOUR, IMAGES, np.zeros(40, int), []), r"attacks: got \[\]"),
        (
            lambda: attacks.evaluate(FOUR, IMAGES, np.zeros(40, int), [FGSM(Linf(r)) for r in (0.1, 0.2)]),
            "attacks: got several of one name, expected a mapping",
        ),
        (
            lambda: attacks.evaluate(FOUR, IMAGES * 3 - 1, np.zeros(40, int), FGSM(Linf(0.1))),
            "x: got values from -0.",
        ),
    ],
)
def test_bad_input(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
