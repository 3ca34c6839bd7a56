"""Images that are done are left out of a batch, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit.attacks import Linf, shrinking_loop
from tests.attacks.models import ALL, FOUR, IMAGES, predicted


@pytest.mark.parametrize("halve", [True, False])
@pytest.mark.parametrize(
    ("n", "parts"), [(1, [1]), (40, [40]), (64, [64, 32]), (101, [101, 51]), (300, [300, 150, 75])]
)
def test_every_image_takes_its_steps(n, parts, halve) -> None:
    wanted, sizes = np.random.default_rng(n).integers(0, 12, n), []

    def done(state):
        left, _ = state
        return left <= 0

    def step(i, fixed, state):
        left, last = state
        sizes.append(len(fixed))
        return jnp.where(done(state), left, left - 1), jnp.where(done(state), last, i + fixed)

    @jax.jit
    def run(fixed, state):
        return shrinking_loop(step, done, fixed, state, 10, first=2, halve=halve)

    left, last = run(jnp.arange(n) * 100, (jnp.asarray(wanted), jnp.zeros(n, int)))
    # Steps 2 to 9 are eight; some ask for more.
    taken = np.minimum(wanted, 8)
    np.testing.assert_array_equal(left, wanted - taken)
    np.testing.assert_array_equal(last, np.where(taken > 0, np.arange(n) * 100 + taken + 1, 0))
    assert sizes == (parts if halve else [n])


SLOW = ("apgd", "apgd-t", "fab", "square")


@pytest.mark.parametrize("name", ["pgd", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_attacks_find_the_same_without_those_that_are_done(name) -> None:
    # Batches of 16 are too small to leave any out; every image has its own key, whatever its batch.
    x = np.concatenate([IMAGES, 1 - IMAGES])
    labels = predicted(FOUR, x)
    ball = Linf(0.02)
    whole, batched = (ALL[name](FOUR, x, labels, ball, batch_size=size) for size in (80, 16))
    wrong = predicted(FOUR, whole) != labels
    assert 0.1 < wrong.mean() < 0.9
    np.testing.assert_array_equal(predicted(FOUR, batched) != labels, wrong)
    np.testing.assert_allclose(batched, whole, atol=1e-5)
