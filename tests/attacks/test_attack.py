"""What all attacks are: strong on linear models, inside the ball, deterministic, and strict about arguments."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit._pytrees import as_pytree
from ntkit.attacks import APGD, FAB, FGSM, PGD, Attack, AutoAttack, Linf, Square
from tests.attacks.models import ALL, BALLS, FOUR, IMAGES, KEY, ONE, SHAPE, SLOW_L2, attacked, distances, predicted
from tests.attacks.test_balls import inside

SLOW = pytest.param("autoattack", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["pgd", "apgd", "apgd-t", "fab", SLOW])
@pytest.mark.parametrize("ball", SLOW_L2)
def test_finds_all_that_there_are(name, ball) -> None:
    classes = predicted(FOUR, IMAGES)
    distance = distances(ball, FOUR, IMAGES, classes)
    # Where the boundary is nearer than the radius by 2 % an attack must reach it, and beyond nothing can.
    near, far = distance < 0.98 * ball.radius, distance > 1.0001 * ball.radius
    assert 5 < near.sum() < 35
    found = ALL[name](FOUR, IMAGES, classes, ball)
    wrong = predicted(FOUR, found) != classes
    if name in ("pgd", "apgd"):
        # Cross-entropy goes for all other classes at once.
        assert wrong[near].mean() > 0.8
    else:
        assert wrong[near].all()
    assert not wrong[far].any()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ball", SLOW_L2)
def test_inside_the_ball_and_the_bounds_to_the_last_float(name, ball) -> None:
    # As many as elsewhere: what is compiled there serves here.
    x = np.concatenate([IMAGES[:36], np.zeros((2, *SHAPE), np.float32), np.ones((2, *SHAPE), np.float32)])
    found = ALL[name](FOUR, x, predicted(FOUR, x), ball)
    assert found.shape == x.shape
    assert found.dtype == np.float32
    assert inside(ball, x, found)


@pytest.mark.parametrize("name", [*(name for name in ALL if name != "autoattack"), SLOW])
def test_the_same_key_gives_the_same_bits_whatever_the_batches(name) -> None:
    labels = predicted(FOUR, IMAGES)
    whole, again, batched = (ALL[name](FOUR, IMAGES, labels, BALLS[0], batch_size=b) for b in (500, 500, 16))
    np.testing.assert_array_equal(whole, again)
    if name != "autoattack":
        # Its draws are for the images that stand, of which there are fewer after each attack.
        np.testing.assert_allclose(batched, whole, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd", "apgd", "fab", "square"])
def test_vectors(name) -> None:
    x = IMAGES.reshape(len(IMAGES), -1)
    found = ALL[name](FOUR, x, predicted(FOUR, x), Linf(0.2))
    assert found.shape == x.shape
    assert np.mean(predicted(FOUR, found) != predicted(FOUR, x)) > 0.9


def test_in_the_middle_of_compiled_code() -> None:
    labels = jnp.asarray(predicted(FOUR, IMAGES))

    @jax.jit
    def attacked(model, x, key):
        return PGD(Linf(0.02))(model, x, labels, key=key)

    np.testing.assert_allclose(attacked(FOUR, IMAGES, KEY), ALL["pgd"](FOUR, IMAGES, labels, Linf(0.02)), atol=1e-6)


def test_plain_functions_are_compiled_once() -> None:
    calls = []

    def model(x):
        calls.append(x)
        return FOUR(x)

    FGSM(Linf(0.02))(model, IMAGES, predicted(FOUR, IMAGES))
    shapes_looked_at = len(calls)
    FGSM(Linf(0.02))(model, IMAGES, predicted(FOUR, IMAGES))
    # Only its outputs' shape and its gradient's are looked at again.
    assert len(calls) - shapes_looked_at < shapes_looked_at
    assert as_pytree(FOUR) is FOUR
    assert as_pytree(model) == as_pytree(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": IMAGES + 0.5},
            r"x: got values from .* to 1.19\d+, beyond by 0.2, expected .* within the bounds \(0, 1\)",
        ),
        ({"x": IMAGES.astype(int)}, "x: got dtype int"),
        ({"x": np.full_like(IMAGES, np.nan)}, "x: got NaN"),
        ({"labels": np.full(40, 4)}, "labels: got 4 at index 0, expected classes from 0 to 3"),
        ({"labels": np.zeros(39, int)}, "labels: got 39 labels, expected 40"),
        ({"labels": np.zeros(40)}, "labels: got dtype float64, expected integers"),
        ({"model": ONE, "labels": np.zeros(40, int)}, "labels: got others than −1 and"),
        ({"model": "a network"}, "model: got 'a network', expected a callable"),
        ({"model": lambda x: x}, "model: got outputs of shape"),
        ({"model": lambda x: jnp.zeros((3, 4))}, "model: got outputs of shape"),
        ({"model": lambda x: jnp.argmax(FOUR(x), axis=1, keepdims=True)}, "model: got outputs of dtype int32"),
        ({"ball": 0.1}, "ball: got 0.1, expected ntkit.attacks.Linf"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
@pytest.mark.parametrize("name", ["fgsm", "square", "autoattack"])
def test_bad_input(name, change, message) -> None:
    arguments = {"model": FOUR, "x": IMAGES, "labels": np.zeros(40, int), "ball": Linf(0.1)} | change
    given = [arguments.pop(of) for of in ("model", "x", "labels", "ball")]
    with pytest.raises(ValueError, match=message):
        ALL[name](*given, **arguments)


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (PGD, {"steps": 0}, "steps: got 0, expected an integer of at least 1"),
        (PGD, {"restarts": 1.5}, "restarts: got 1.5"),
        (PGD, {"step_size": -1}, "step_size: got -1"),
        (PGD, {"loss": "hinge"}, r"loss: got 'hinge', expected one of 'cross_entropy', 'mse', 'margin'"),
        (PGD, {"key": None}, "key: got None, expected jax.random.key"),
        (PGD, {"random_start": False, "restarts": 2}, "restarts: got 2 with random_start=False"),
        (APGD, {"loss": "dlr"}, "loss: got 'dlr', expected 'cross_entropy' or 'targeted_dlr'"),
        (APGD, {"targets": 0}, "targets: got 0"),
        (FAB, {"steps": True}, "steps: got True"),
        (Square, {"queries": 0}, "queries: got 0"),
        (Square, {"share": 0}, "share: got 0"),
        (AutoAttack, {"key": 3}, "key: got 3"),
    ],
)
def test_bad_options(attack, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        attacked(attack, FOUR, IMAGES, np.zeros(40, int), Linf(0.1), **options)


def test_attacks_are_values_and_pytrees_without_leaves() -> None:
    attack = PGD(Linf(0.01), steps=3)
    assert attack == PGD(Linf(0.01), steps=3) != PGD(Linf(0.01), steps=4)
    assert attack != PGD(Linf(0.01, bounds=(0, 2)), steps=3)
    leaves, tree = jax.tree.flatten(attack)
    assert leaves == []
    assert jax.tree.unflatten(tree, leaves) == attack
    assert [kind.name for kind in (FGSM, PGD, APGD, FAB, Square, AutoAttack)] == [
        *("fgsm", "pgd", "apgd", "fab", "square", "autoattack")
    ]


@dataclasses.dataclass(frozen=True)
class Darker(Attack):
    """An attack that is written elsewhere: the darkest image of the ball."""

    needs_gradient: ClassVar[bool] = False

    def perturb(self, model, task):
        return task.project(task.x - 1), jnp.zeros_like(task.done)


@dataclasses.dataclass(frozen=True)
class AsItIs(Attack):
    """One that promises what is not so."""

    name: ClassVar[str] = "nothing"

    def perturb(self, model, task):
        return task.x, jnp.ones_like(task.done)


def test_a_new_attack_is_one_method() -> None:
    attack, labels = Darker(Linf(0.1)), predicted(ONE, IMAGES)
    found = attack(lambda x: np.asarray(ONE(x)), IMAGES, labels, key=KEY)
    dark = ONE(IMAGES - 0.1)[:, 0] * labels < ONE(IMAGES)[:, 0] * labels
    # What is less harmful than the image itself is not kept.
    np.testing.assert_allclose(
        found, np.where(np.asarray(dark)[:, None, None, None], IMAGES - np.float32(0.1), IMAGES), atol=1e-6
    )
    assert (Darker.name, AsItIs.name) == ("darker", "nothing")
    np.testing.assert_array_equal(AsItIs(Linf(0.1))(FOUR, IMAGES, predicted(FOUR, IMAGES), key=KEY), IMAGES)


def test_models_that_return_nan() -> None:
    with pytest.raises(FloatingPointError, match="model: got NaN or infinity for the images as they are"):
        FGSM(Linf(0.1))(lambda x: FOUR(x) * jnp.nan, IMAGES, np.zeros(40, int))

    def no_slope(x):
        # Its value is finite, and its derivative at 0 is not.
        return FOUR(x) + jnp.sqrt(jnp.sum(x - x, axis=(1, 2, 3)))[:, None]

    with pytest.raises(FloatingPointError, match=r"model: its gradient is NaN or infinite at .* of 40 images"):
        PGD(Linf(0.1))(no_slope, IMAGES, predicted(FOUR, IMAGES), key=KEY)
