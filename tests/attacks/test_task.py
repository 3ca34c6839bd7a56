"""Targets, masks and radii: what every attack serves without a word on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from ntkit import attacks
from ntkit.attacks import FAB, FGSM, L2, PGD, Goal, Linf
from ntkit.attacks.losses import cross_entropy
from tests.attacks.models import ALL, BALLS, FOUR, IMAGES, KEY, ONE, WEIGHTS, attacked, predicted
from tests.attacks.test_balls import exact_size

SLOW = ("pgd, several starts", "apgd-t", "autoattack")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ALL]
MASK = np.zeros(IMAGES.shape[1:], bool)
MASK[1:4, 2:] = True


def reachable(ball, target, images=IMAGES):
    """By how much a linear model can be made to prefer a class inside of each ball: a linear program for each image."""
    w = WEIGHTS.astype(np.float64)
    outputs = np.asarray(FOUR(images), np.float64)
    others = [k for k in range(4) if k != target]
    found = []
    for z in outputs:
        # The largest t with (w_target − w_k) · δ + z_target − z_k ≥ t for all k.
        gap = np.stack([w[:, target] - w[:, k] for k in others])
        sides = np.concatenate([-gap, np.ones((3, 1))], axis=1)
        limits = np.array([z[target] - z[k] for k in others])
        box = [(-ball.radius, ball.radius)] * len(w) + [(None, None)]
        found.append(-optimize.linprog(np.append(np.zeros(len(w)), -1), sides, limits, bounds=box).fun)
    return np.array(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_is_named_wherever_it_can_be(name) -> None:
    ball, target = Linf(0.02), 1
    keep = predicted(FOUR, IMAGES) != target
    margins = reachable(ball, target)[keep]
    x, labels = IMAGES[keep], predicted(FOUR, IMAGES)[keep]
    named = predicted(FOUR, ALL[name](FOUR, x, labels, ball, target=target)) == target
    assert 3 < (margins > 0.02).sum() < len(x) - 3
    assert not named[margins < 0].any()
    assert named[margins > (0.1 if name in ("fgsm", "square") else 0.02)].mean() >= (0.4 if name == "square" else 0.8)


def test_targets_of_each_image_are_in_the_terms_of_the_labels() -> None:
    labels = predicted(FOUR, IMAGES)
    target = (labels + 1 + np.arange(len(labels)) % 3) % 4
    found = PGD(Linf(0.3), steps=40)(FOUR, IMAGES, labels, key=KEY, target=target)
    assert np.mean(predicted(FOUR, found) == target) > 0.9
    signs = predicted(ONE, IMAGES)
    ball = Linf(0.2)
    np.testing.assert_array_equal(
        PGD(ball)(ONE, IMAGES, signs, key=KEY, target=-signs), PGD(ball)(ONE, IMAGES, signs, key=KEY)
    )


def test_one_step_toward_a_target_is_down_its_loss() -> None:
    labels = predicted(FOUR, IMAGES)
    target = (labels + 1) % 4
    gradient = jax.grad(lambda x: jnp.sum(cross_entropy(FOUR(x), target)))(jnp.asarray(IMAGES))
    by_hand = IMAGES - np.float32(0.01) * np.sign(gradient)
    found = FGSM(Linf(0.01))(FOUR, IMAGES, labels, target=target)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)


def test_fab_reaches_a_target_from_where_it_is_just_reachable() -> None:
    labels = predicted(FOUR, IMAGES)
    keep = np.flatnonzero(labels != 1)[:12]
    # The radius from which each can be reached, by halving.
    low, high = np.full(12, 1e-4), np.full(12, 0.3)
    for _ in range(12):
        middle = (low + high) / 2
        across = np.array([reachable(Linf(r), 1, IMAGES[i : i + 1])[0] > 0 for i, r in zip(keep, middle, strict=True)])
        low, high = np.where(across, low, middle), np.where(across, middle, high)
    for share, reached in ((1.05, True), (0.95, False)):
        found = FAB(Linf(0.3), steps=30)(FOUR, IMAGES[keep], labels[keep], key=KEY, target=1, radius=share * high)
        np.testing.assert_array_equal(predicted(FOUR, found) == 1, reached)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
def test_only_what_the_mask_allows_changes(name, ball) -> None:
    labels = predicted(FOUR, IMAGES)
    wide = type(ball)(4 * ball.radius)
    found = np.asarray(ALL[name](FOUR, IMAGES, labels, wide, mask=MASK))
    assert (found[:, ~MASK] == IMAGES[:, ~MASK]).all()
    wrong = predicted(FOUR, found) != labels
    assert wrong.sum() > 5


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "fab"])
@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
def test_a_masked_attack_is_one_on_these_values_alone(name, ball) -> None:
    # All images have the same values outside of the mask, so that a model of those inside knows the rest.
    x = np.where(MASK, IMAGES, IMAGES[0])
    labels, wide = predicted(FOUR, x), type(ball)(4 * ball.radius)

    def of_part(values):
        return FOUR(jnp.asarray(x[:1]).repeat(len(values), 0).at[:, MASK].set(values))

    found, alone = ALL[name](FOUR, x, labels, wide, mask=MASK), ALL[name](of_part, x[:, MASK], labels, wide)
    fooled = predicted(FOUR, found) != labels, predicted(of_part, alone) != labels
    # Random starts are other ones.
    assert np.mean(fooled[0] == fooled[1]) >= 0.9
    if name in ("fgsm", "fab"):
        np.testing.assert_allclose(np.asarray(found)[:, MASK], alone, atol=1e-4)


def test_a_mask_of_one_image_and_of_each() -> None:
    labels = predicted(FOUR, IMAGES)
    own = np.random.default_rng(0).random((len(IMAGES), 6, 5, 1)) < 0.5
    found = np.asarray(PGD(Linf(0.1))(FOUR, IMAGES, labels, key=KEY, mask=own))
    assert (found == IMAGES)[~np.broadcast_to(own, IMAGES.shape)].all()
    assert (found != IMAGES)[np.broadcast_to(own, IMAGES.shape)].mean() > 0.9
    nothing = PGD(L2(0.5))(FOUR, IMAGES, labels, key=KEY, mask=False)
    np.testing.assert_array_equal(nothing, IMAGES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
def test_every_image_has_its_own_radius(name, ball) -> None:
    labels = predicted(FOUR, IMAGES)
    radii = np.where(np.arange(len(IMAGES)) % 2, 1.0, 3.0) * ball.radius
    found = np.asarray(ALL[name](FOUR, IMAGES, labels, ball, radius=radii))
    assert (exact_size(ball, found.astype(np.float64) - IMAGES) <= radii).all()
    if name == "autoattack" or (name == "square" and isinstance(ball, L2)):
        return  # the draws are for the images that stand; and a last bit decides which of two squares is kept
    for rows, radius in ((slice(1, None, 2), ball.radius), (slice(0, None, 2), 3 * ball.radius)):
        alone = np.asarray(ALL[name](FOUR, IMAGES, labels, type(ball)(radius)))
        np.testing.assert_allclose(found[rows], alone[rows], atol=2e-4)


def test_in_compiled_code_and_in_batches() -> None:
    labels = predicted(FOUR, IMAGES)
    target = (labels + 1) % 4
    radii = np.linspace(0.02, 0.2, len(IMAGES)).astype(np.float32)
    attack = PGD(Linf(0.1), steps=5)
    given = {"key": KEY, "target": target, "mask": MASK, "radius": radii}
    whole = attack(FOUR, IMAGES, labels, **given)
    np.testing.assert_allclose(attack(FOUR, IMAGES, labels, batch_size=16, **given), whole, atol=1e-6)
    compiled = jax.jit(lambda x, labels, given: attack(FOUR, x, labels, **given))(IMAGES, labels, given)
    np.testing.assert_allclose(compiled, whole, atol=1e-6)


def test_evaluate_takes_them_too() -> None:
    labels = predicted(FOUR, IMAGES)
    target, radii = (labels + 1) % 4, np.full(len(labels), 0.05)
    attack = PGD(Linf(0.02), steps=10)
    found = attacks.evaluate(FOUR, IMAGES, labels, attack, key=KEY, target=target, radius=radii, mask=MASK)
    by_hand = attack(
        FOUR, IMAGES, labels, key=jax.random.fold_in(KEY, 0), target=target, radius=radii, mask=MASK, batch_size=40
    )
    np.testing.assert_array_equal(found.correct, predicted(FOUR, by_hand) != target)
    assert 0.2 < found.worst < 1


def test_goals() -> None:
    outputs = jnp.array([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])
    classes, targets = jnp.array([1, 0]), jnp.array([2, 2])
    away, toward = Goal(classes), Goal(classes, targets)
    np.testing.assert_allclose(away.margin(outputs), [-1, -4])
    np.testing.assert_allclose(toward.margin(outputs), [-1, -4])
    np.testing.assert_array_equal(toward.rivals(outputs), [1, 0])
    np.testing.assert_array_equal(toward.reached(jnp.array([[0.0, 1, 2], [3, 1, 2]])), [True, False])
    np.testing.assert_allclose(toward.loss(cross_entropy, outputs), -cross_entropy(outputs, targets))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": 4}, "target: got 4 at index 0, expected classes from 0 to 3"),
        ({"target": 0}, "target: got the true class for 40 of 40 images, expected other classes"),
        ({"target": [1, 2]}, "target: got 2 labels, expected 40"),
        ({"target": 1.5}, "target: got dtype float64, expected integers"),
        ({"mask": np.ones((6, 5))}, "mask: got float64 of shape"),
        ({"mask": np.ones((6, 5), bool)}, "mask: got shape"),
        ({"mask": "all"}, "mask: got 'all'"),
        ({"radius": 0.1}, "radius: got shape"),
        ({"radius": np.zeros(40)}, "radius: got values from 0 to 0, expected a number above 0 for each image"),
        ({"radius": np.full(40, np.nan)}, "radius: got values from nan"),
        ({"radius": np.full(40, 8.0)}, "radius: got 8, expected at most 1"),
    ],
)
def test_bad_input(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        attacked(PGD, FOUR, IMAGES, np.zeros(40, int), Linf(0.1), **given)
