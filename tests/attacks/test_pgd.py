"""FGSM and PGD against what is known of linear models, and steps by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntkit.attacks import FGSM, PGD, Linf
from ntkit.attacks.losses import cross_entropy
from tests.attacks.models import ALL, IMAGES, ONE, SLOW_L2, WEIGHTS, predicted


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "margin"])
@pytest.mark.parametrize("ball", SLOW_L2)
def test_one_output_is_moved_by_the_dual_norm(ball, loss) -> None:
    labels = predicted(ONE, IMAGES)
    weights = 0.1 * WEIGHTS[:, 0].astype(np.float64)
    slope = np.abs(weights).sum() if isinstance(ball, Linf) else np.linalg.norm(weights)
    before = np.asarray(ONE(IMAGES))[:, 0] * labels
    # The squared error grows on either side of the target: only beyond it is away from it.
    keep = before < 1 - ball.radius * slope if loss == "mse" else np.ones(len(IMAGES), bool)
    assert keep.sum() > 5
    options = {"loss": loss, "stop_early": False, "step_size": ball.radius}
    found = [FGSM(ball, loss=loss)(ONE, IMAGES, labels), ALL["pgd"](ONE, IMAGES, labels, ball, **options)]
    for adversarial in found:
        after = np.asarray(ONE(adversarial))[:, 0] * labels
        np.testing.assert_allclose((before - after)[keep], ball.radius * slope, rtol=1e-3)


def test_who_is_fooled_is_left_alone() -> None:
    # After one step all are across; a second one would go on.
    labels = predicted(ONE, IMAGES)
    found = PGD(Linf(0.2), step_size=0.1, steps=10, random_start=False)(ONE, IMAGES, labels)
    np.testing.assert_allclose(np.abs(found - IMAGES).max(axis=(1, 2, 3)), 0.1, rtol=1e-5)


def test_convolutions_are_attacked_as_by_hand() -> None:
    weights = np.random.default_rng(1).normal(size=(3, 3, 2, 4)).astype(np.float32)

    def model(x):
        layout = ("NHWC", "HWIO", "NHWC")
        hidden = lax.conv_general_dilated(x, weights, (2, 1), "SAME", dimension_numbers=layout)
        return jnp.mean(jnp.tanh(hidden), axis=(1, 2))

    labels, ball, steps = predicted(model, IMAGES), Linf(0.05), 6
    by_hand = jnp.asarray(IMAGES)
    for _ in range(steps):
        gradient = jax.grad(lambda x: jnp.sum(cross_entropy(model(x), labels)))(by_hand)
        by_hand = jnp.clip(by_hand + 0.01 * jnp.sign(gradient), IMAGES - ball.radius, IMAGES + ball.radius)

    def attacked(x):
        return PGD(ball, steps=steps, step_size=0.01, random_start=False, stop_early=False)(model, x, labels)

    for found in (attacked(IMAGES), jax.jit(attacked)(IMAGES)):
        np.testing.assert_allclose(found, by_hand, atol=1e-6)
