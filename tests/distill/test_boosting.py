import jax
import numpy as np
import pytest

import ntkit
from ntkit import data, distill, networks, regression

from .small import RBF, clouds

IMAGES, LABELS = clouds()
KEY = jax.random.key(0)
LEARNER = distill.KIP(RBF(), ridge=1e-3)


def test_fixed_images_and_labels_stay_and_the_others_do_not():
    start = distill.distill(LEARNER, IMAGES, LABELS, per_class=3, steps=5, key=KEY)
    for batch in (None, 6):
        support = distill.Support(init=start, fixed=2, batch=batch)
        made = distill.distill(LEARNER, IMAGES, LABELS, per_class=3, steps=5, key=KEY, support=support)
        stays = np.arange(9) % 3 < 2
        np.testing.assert_array_equal(made.images[stays], start.images[stays])
        np.testing.assert_array_equal(made.labels[stays], start.labels[stays])
        assert (made.images[~stays] != start.images[~stays]).any(axis=1).all()


def test_a_set_is_gone_on_from():
    whole = distill.distill(LEARNER, IMAGES, LABELS, per_class=2, steps=0, key=KEY)
    again = distill.distill(LEARNER, IMAGES, LABELS, per_class=2, steps=0, key=KEY, support=distill.Support(init=whole))
    np.testing.assert_array_equal(again.images, whole.images)
    np.testing.assert_array_equal(again.labels, whole.labels)


@pytest.mark.slow
def test_the_first_images_of_a_boosted_set_are_a_good_set():
    digits = data.load("digits")
    pixels = data.Standardize.fit(digits.train.images)
    train, test = pixels.transform(digits.train.images), pixels.transform(digits.test.images)
    kernel = ntkit.ntk(ntkit.fc(1))
    options = {"targets": distill.Targets(batch=400), "optimizer": networks.adam(0.03, decay_over=150)}

    def accuracy(images, targets):
        return data.accuracy(regression.fit(kernel, images, targets), test, digits.test.labels)

    small, large = distill.boost(
        distill.KIP(kernel), train, digits.train.labels, stages=(1, 2), steps=150, key=KEY, **options
    )
    first = np.arange(30) % 3 == 0
    np.testing.assert_array_equal(large.images[first], small.images)
    np.testing.assert_array_equal(large.labels[first], small.labels)
    at_once = distill.distill(
        distill.KIP(kernel), train, digits.train.labels, per_class=3, steps=150, key=KEY, **options
    )
    found = [accuracy(each.images[first], each.labels[first]) for each in (large, at_once)]
    whole = [accuracy(each.images, each.labels) for each in (large, at_once)]
    print(found, whole)
    assert found[0] > found[1] + 0.05
    assert whole[0] >= found[0]


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ({"fixed": 3}, "fixed: got 3, expected an integer from 0 to 2"),
        ({"init": distill.Distilled(IMAGES[:3], np.ones((3, 3)))}, r"init: got a set of shape \(3, 4\) with 3 classes"),
        ({"init": distill.Distilled(IMAGES[:6], np.ones((6, 2)))}, r"init: got a set of shape \(6, 4\) with 2 classes"),
    ],
)
def test_bad_supports(support, message):
    with pytest.raises(ValueError, match=message):
        distill.distill(LEARNER, IMAGES, LABELS, per_class=2, steps=1, key=KEY, support=distill.Support(**support))


def test_bad_arguments():
    with pytest.raises(ValueError, match="fixed: got -1"):
        distill.Support(fixed=-1)
    with pytest.raises(ValueError, match="stages: got"):
        distill.boost(LEARNER, IMAGES, LABELS, stages=(), steps=1, key=KEY)
