"""adv-KIP: KIP whose target batches are attacked."""

import signal

import jax
import numpy as np
import optax
import pytest

import ntkit
from ntkit import attacks, data, regression
from ntkit.data import Standardize
from ntkit.runs import Interrupted, Run
from tests import flat

BALL = attacks.Linf(0.2)
KEY = jax.random.key(0)


@pytest.mark.slow
def test_it_is_more_robust_than_kip_on_digits() -> None:
    digits = ntkit.data.load("digits")
    preprocessing = Standardize.fit(digits.train.images)
    kernel = ntkit.ntk(ntkit.fc(1))
    x, labels = digits.test.images, digits.test.labels
    found = {}
    for adversary in (None, attacks.PGD(BALL, steps=10, stop_early=False)):
        learned = flat.kip(
            kernel, digits.train.images, digits.train.labels, per_class=1, steps=100, target_batch=400, key=KEY,
            optimizer=optax.adam(0.02), adversary=adversary, preprocessing=preprocessing,
        )  # fmt: skip
        model = data.of_pixels(regression.fit(kernel, learned.images, learned.labels), preprocessing)
        against = [attacks.PGD(BALL), attacks.Square(BALL, queries=300)]
        found[adversary is not None] = attacks.evaluate(model, x, labels, against)
    print(found[False], found[True])
    assert found[True].clean > 0.75
    assert found[True].robust["pgd"] > found[False].robust["pgd"] + 0.25
    # Not by masked gradients alone.
    assert found[True].worst > found[False].worst + 0.2


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(0.2, 0.8, (30, 6)).astype("f"), np.arange(30) % 3
    setting = {
        "kernel": ntkit.ntk(ntkit.fc(1)), "images": images, "labels": labels, "per_class": 2, "steps": 12, "key": KEY,
        "target_batch": 15, "support_batch": 3, "log_every": 4, "adversary": attacks.PGD(BALL, steps=3),
        "preprocessing": Standardize.fit(images),
    }  # fmt: skip
    undisturbed = flat.kip(**setting)
    run = Run.create(tmp_path / "run", {})

    def evaluate(model):
        signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted, match="stopped after 4 of 12 steps"):
        flat.kip(**setting, run=run, evaluate=evaluate)
    resumed = flat.kip(**setting, run=Run.resume(run.path))
    np.testing.assert_array_equal(resumed.images, undisturbed.images)
    np.testing.assert_array_equal(resumed.labels, undisturbed.labels)
