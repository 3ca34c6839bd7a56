"""Neither the scale of the logits nor a softmax at their end protects a model; what does is said."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit import attacks
from ntkit.attacks import FGSM, L2, Linf, MaskedGradientsWarning
from ntkit.attacks.losses import cross_entropy, log_odds
from tests.attacks.models import ALL, FOUR, IMAGES, OFFSETS, WEIGHTS, distances, predicted

KEY = jax.random.key(0)
ENDS = {"logits": lambda z: z, "softmax": jax.nn.softmax, "log_softmax": jax.nn.log_softmax}


def centred(weights, x):
    return (x.reshape(len(x), -1) - 0.5) @ weights


def scaled(scale, end, x):
    return end(scale * (x.reshape(len(x), -1) @ WEIGHTS + OFFSETS))


SCALES = [("logits", 1e-6), ("logits", 1e4), ("logits", 1e6), ("softmax", 20), ("log_softmax", 1e4)]
SLOW = [
    pytest.param(name, *case, marks=pytest.mark.slow)
    for name in ("fgsm", "apgd", "apgd-t", "fab")
    for case in SCALES[3:]
]
CASES = [(name, *case) for name in ("fgsm", "pgd", "apgd", "fab") for case in SCALES[:3]]


@pytest.mark.parametrize(
    ("name", "end", "scale"), [*CASES, *(("pgd", *case) for case in SCALES[3:]), *SLOW, ("apgd-t", *SCALES[1])]
)
def test_the_scale_of_the_logits_is_no_defence(name, end, scale) -> None:
    labels, ball = predicted(FOUR, IMAGES), Linf(0.02)
    model = jax.tree_util.Partial(scaled, scale, jax.tree_util.Partial(ENDS[end]))
    distance = distances(ball, FOUR, IMAGES, labels)
    near, far = distance < 0.98 * ball.radius, distance > 1.001 * ball.radius
    assert 5 < near.sum() < 35
    wrong = predicted(FOUR, ALL[name](model, IMAGES, labels, ball)) != labels
    assert wrong[near].mean() > (0.99 if name in ("apgd-t", "fab") else 0.8)
    assert not wrong[far].any()


@pytest.mark.parametrize("ball", [Linf(0.02), pytest.param(L2(0.15), marks=pytest.mark.slow)], ids=["linf", "l2"])
def test_two_classes_are_solved_at_any_scale(ball) -> None:
    # There is only one direction to go: each attack is the closed form.
    two = WEIGHTS[:, :2]
    values = (IMAGES.reshape(len(IMAGES), -1) - 0.5) @ two.astype(np.float64)
    labels = values.argmax(axis=1)
    normal = (two[:, 1] - two[:, 0]).astype(np.float64)
    size = np.abs(normal).sum() if isinstance(ball, Linf) else np.linalg.norm(normal)
    distance = np.abs(values[:, 1] - values[:, 0]) / size
    clear = np.abs(distance / ball.radius - 1) > 0.01
    for scale in (1e-6, 1, 1e6):
        model = jax.tree_util.Partial(centred, jnp.asarray(scale * two))
        for name in ("fgsm", "pgd", "apgd"):
            wrong = predicted(model, ALL[name](model, IMAGES, labels, ball)) != labels
            np.testing.assert_array_equal(wrong[clear], (distance < ball.radius)[clear])


def test_odds_are_the_cross_entropy_by_another_name() -> None:
    z, classes = 3 * np.random.default_rng(0).normal(size=(50, 6)), np.resize(np.arange(6), 50)
    # log(1 + (K − 1) eᵘ), in double precision.
    entropy = np.log(np.exp(z).sum(axis=1)) - z[np.arange(50), classes]
    odds = np.asarray(log_odds(jnp.asarray(z, jnp.float32), classes), np.float64)
    np.testing.assert_allclose(np.log1p(5 * np.exp(odds)), entropy, rtol=1e-5)

    def direction(loss):
        slope = jax.grad(lambda z: jnp.sum(loss(z, classes)))(jnp.asarray(z, jnp.float32))
        return slope / jnp.linalg.norm(slope, axis=1, keepdims=True)

    np.testing.assert_allclose(direction(log_odds), direction(cross_entropy), atol=1e-4)


def test_odds_of_far_and_close_logits() -> None:
    for scale in (1e-30, 1e-6, 1e6, 1e30):
        z = jnp.asarray([[3.0, 1.0, 2.0], [3.0, 3.0, 3.0]], jnp.float32) * scale
        slope = np.asarray(jax.grad(lambda z: jnp.sum(log_odds(z, jnp.array([0, 0]))))(z))
        # Toward the likelier of the others; where all are equal toward both.
        np.testing.assert_allclose(slope, [[-1, 0, 1], [-1, 0.5, 0.5]], atol=0.01)


def test_evaluate_says_that_gradients_carry_no_signal() -> None:
    @jax.custom_vjp
    def backwards(x):
        return x

    backwards.defvjp(lambda x: (x, None), lambda _, slope: (-slope,))
    labels, against = predicted(FOUR, IMAGES), FGSM(Linf(0.02))
    for model, sign in (
        (lambda x: jnp.round(FOUR(x)), "exactly zero at 100%"),
        (lambda x: jax.nn.softmax(1e4 * FOUR(x)), "exactly zero at"),
        (lambda x: FOUR(backwards(x)), "no step along the gradient of the cross-entropy, .* increases it at 100%"),
    ):
        with pytest.warns(MaskedGradientsWarning, match=sign):
            attacks.evaluate(model, IMAGES, predicted(model, IMAGES), against)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (1e-6, 1.0, 1e6):
            attacks.evaluate(
                jax.tree_util.Partial(scaled, scale, jax.tree_util.Partial(ENDS["logits"])), IMAGES, labels, against
            )
