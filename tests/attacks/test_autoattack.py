"""AutoAttack: whom it leaves alone."""

import numpy as np

from ntkit.attacks import AutoAttack, Linf
from tests.attacks.models import IMAGES, KEY, ONE, predicted


def test_who_is_fooled_from_the_beginning_stays_as_it_is() -> None:
    labels = predicted(ONE, IMAGES)
    found = AutoAttack(Linf(0.2))(ONE, IMAGES, -labels, key=KEY)
    np.testing.assert_array_equal(found, IMAGES)
