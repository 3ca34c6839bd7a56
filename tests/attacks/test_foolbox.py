"""The same attacks by Foolbox, on the same models."""

import foolbox
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit.attacks import FGSM, L2, PGD, AutoAttack, Linf
from tests.attacks.models import attacked, digits, predicted


def by_foolbox(attack, radius):
    network, x, labels = digits()
    model = foolbox.JAXModel(network, bounds=(0, 1))
    _, adversarial, _ = attack(model, jnp.asarray(x), jnp.asarray(labels), epsilons=radius)
    return np.mean(predicted(network, adversarial) == labels)


def by_us(kind, ball, **options):
    network, x, labels = digits()
    return np.mean(predicted(network, attacked(kind, network, x, labels, ball, **options)) == labels)


CASES = {
    "FGSM": (foolbox.attacks.LinfFastGradientAttack(), Linf, 0.04, FGSM, {}),
    "L2 FGM": (foolbox.attacks.L2FastGradientAttack(), L2, 0.4, FGSM, {}),
    "Linf PGD": (
        foolbox.attacks.LinfPGD(rel_stepsize=0.1, steps=20, random_start=False),
        Linf,
        0.04,
        PGD,
        {"random_start": False, "step_size": 0.004, "stop_early": False},
    ),
    "L2 PGD": (
        foolbox.attacks.L2PGD(rel_stepsize=0.1, steps=20, random_start=False),
        L2,
        0.3,
        PGD,
        {"random_start": False, "step_size": 0.03, "stop_early": False},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_robust_accuracy(name) -> None:
    theirs, ball, radius, ours, options = CASES[name]
    expected = by_foolbox(theirs, radius)
    assert 0.1 < expected < 0.9
    assert by_us(ours, ball(radius), **options) == pytest.approx(expected, abs=0.0101)


@pytest.mark.slow
@pytest.mark.parametrize("ball", [Linf(0.04), L2(0.3)], ids=["linf", "l2"])
def test_autoattack_is_never_weaker(ball) -> None:
    found = foolbox.attacks
    of_norm = {
        Linf: [found.LinfPGD(steps=40), found.LinfBasicIterativeAttack(), found.LinfDeepFoolAttack()],
        L2: [found.L2PGD(), found.L2DeepFoolAttack(), found.L2CarliniWagnerAttack(binary_search_steps=4, steps=60)],
    }
    ours = by_us(AutoAttack, ball, queries=300)
    assert 0.05 < ours < 0.9
    for theirs in of_norm[type(ball)]:
        assert ours <= by_foolbox(theirs, ball.radius)
