"""APGD: its checkpoints, and its strength beside PGD."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntkit.attacks import APGD, PGD, Linf
from ntkit.attacks.apgd import checkpoints
from ntkit.attacks.losses import cross_entropy
from tests.attacks.models import KEY, digits, predicted


def test_checkpoints_are_those_of_the_paper() -> None:
    # Croce & Hein 2020, section 3.2: 0.22, then 0.19, 0.16, … later, never less than 0.06.
    at = np.flatnonzero(checkpoints(100)) + 1
    np.testing.assert_array_equal(at, [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_array_equal(checkpoints(100)[at - 1], np.diff([0, *at]))
    assert checkpoints(1).tolist() == [1]


@pytest.mark.slow
def test_apgd_has_a_larger_loss_than_pgd_on_a_network() -> None:
    network, x, labels = digits()
    found = [
        attack(network, x, labels, key=KEY)
        for attack in (APGD(Linf(0.02), steps=20), PGD(Linf(0.02), steps=20, stop_early=False))
    ]
    right = [predicted(network, image) == labels for image in found]
    both = right[0] & right[1]
    assert both.sum() > 20
    assert right[0].sum() <= right[1].sum()
    losses = [float(jnp.mean(cross_entropy(network(image), labels)[both])) for image in found]
    assert losses[0] > losses[1] * 0.999
