"""Attacks on linear models, whose strongest perturbation is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import optimize

from ntkit import attacks
from ntkit._pytrees import as_pytree
from ntkit.attacks import L2, Linf
from ntkit.attacks.apgd import checkpoints
from ntkit.attacks.fab import to_hyperplane
from ntkit.attacks.losses import cross_entropy, fooled, margin, mse, targeted_dlr
from ntkit.attacks.square import shares
from tests.attacks.models import FOUR, IMAGES, OFFSETS, ONE, SHAPE, WEIGHTS, digits, predicted
from tests.attacks.test_balls import exact_size, inside

KEY = jax.random.key(0)
BALLS = [Linf(0.02), L2(0.15)]
ALL = {
    "fgsm": attacks.fgsm,
    "pgd": lambda *a, **o: attacks.pgd(*a, key=KEY, **o),
    "pgd, several starts": lambda *a, **o: attacks.pgd(*a, key=KEY, restarts=3, steps=5, **o),
    "apgd": lambda *a, **o: attacks.apgd(*a, key=KEY, steps=20, **o),
    "apgd-t": lambda *a, **o: attacks.apgd(*a, key=KEY, steps=20, loss="targeted_dlr", **o),
    "fab": lambda *a, **o: attacks.fab(*a, key=KEY, steps=10, **o),
    "square": lambda *a, **o: attacks.square(*a, key=KEY, queries=100, **o),
    "autoattack": lambda *a, **o: attacks.autoattack(*a, key=KEY, steps=20, queries=100, **o),
}


def distances(ball, model, x, classes):
    """How far each image is from the nearest other class of a linear model, without bounds."""
    outputs = np.asarray(model(x), np.float64)
    w = WEIGHTS.astype(np.float64)
    nearest = []
    for out, y in zip(outputs, classes, strict=True):
        others = [t for t in range(4) if t != y]
        normals = [w[:, y] - w[:, t] for t in others]
        sizes = [np.abs(n).sum() if isinstance(ball, Linf) else np.linalg.norm(n) for n in normals]
        nearest.append(min((out[y] - out[t]) / s for t, s in zip(others, sizes, strict=True)))
    return np.array(nearest)


SLOW = pytest.param("autoattack", marks=pytest.mark.slow)
# The other norm differs by what test_balls.py has of it.
SLOW_L2 = [pytest.param(BALLS[0], id="linf"), pytest.param(BALLS[1], id="l2", marks=pytest.mark.slow)]


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
    found = [attacks.fgsm(ONE, IMAGES, labels, ball, loss=loss), ALL["pgd"](ONE, IMAGES, labels, ball, **options)]
    for adversarial in found:
        after = np.asarray(ONE(adversarial))[:, 0] * labels
        np.testing.assert_allclose((before - after)[keep], ball.radius * slope, rtol=1e-3)


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


def test_who_is_fooled_is_left_alone() -> None:
    # After one step all are across; a second one would go on.
    labels = predicted(ONE, IMAGES)
    found = attacks.pgd(ONE, IMAGES, labels, Linf(0.2), step_size=0.1, steps=10, random_start=False)
    np.testing.assert_allclose(np.abs(found - IMAGES).max(axis=(1, 2, 3)), 0.1, rtol=1e-5)
    already = attacks.autoattack(ONE, IMAGES, -labels, Linf(0.2), key=KEY)
    np.testing.assert_array_equal(already, IMAGES)


def test_in_the_middle_of_compiled_code() -> None:
    labels = jnp.asarray(predicted(FOUR, IMAGES))

    @jax.jit
    def attacked(model, x, key):
        return attacks.pgd(model, x, labels, Linf(0.02), key=key)

    np.testing.assert_allclose(attacked(FOUR, IMAGES, KEY), ALL["pgd"](FOUR, IMAGES, labels, Linf(0.02)), atol=1e-6)


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
        return attacks.pgd(model, x, labels, ball, steps=steps, step_size=0.01, random_start=False, stop_early=False)

    for found in (attacked(IMAGES), jax.jit(attacked)(IMAGES)):
        np.testing.assert_allclose(found, by_hand, atol=1e-6)


@pytest.mark.slow
def test_apgd_has_a_larger_loss_than_pgd_on_a_network() -> None:
    network, x, labels = digits()
    found = [
        attack(network, x, labels, Linf(0.02), key=KEY, steps=20, **options)
        for attack, options in ((attacks.apgd, {}), (attacks.pgd, {"stop_early": False}))
    ]
    right = [predicted(network, image) == labels for image in found]
    both = right[0] & right[1]
    assert both.sum() > 20
    assert right[0].sum() <= right[1].sum()
    losses = [float(jnp.mean(cross_entropy(network(image), labels)[both])) for image in found]
    assert losses[0] > losses[1] * 0.999


def test_checkpoints_are_those_of_the_paper() -> None:
    # Croce & Hein 2020, section 3.2: 0.22, then 0.19, 0.16, … later, never less than 0.06.
    at = np.flatnonzero(checkpoints(100)) + 1
    np.testing.assert_array_equal(at, [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_array_equal(checkpoints(100)[at - 1], np.diff([0, *at]))
    assert checkpoints(1).tolist() == [1]


def test_shares_are_those_of_the_paper() -> None:
    found = shares(10_000, 0.8)
    for i in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        assert found[i + 1] == found[i] / 2
    assert found[0] == 0.8
    np.testing.assert_allclose(shares(5000, 0.8), found[::2])


def test_losses_against_plain_numpy() -> None:
    z, y = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32), np.array([0, 3, 5, 2, 2])
    rows, t = np.arange(5), np.array([1, 1, 1, 1, 1])
    others = np.where(np.eye(6, dtype=bool)[y], -np.inf, z)
    np.testing.assert_allclose(margin(z, y), others.max(axis=1) - z[rows, y], rtol=1e-6)
    np.testing.assert_allclose(
        cross_entropy(z, y), np.log(np.exp(z.astype(np.float64)).sum(axis=1)) - z[rows, y], rtol=1e-5
    )
    np.testing.assert_allclose(mse(z, y), 0.5 * ((z - np.eye(6)[y] + 1 / 6) ** 2).sum(axis=1), rtol=1e-5)
    s = np.sort(z, axis=1)
    expected = (z[rows, t] - z[rows, y]) / (s[:, -1] - (s[:, -3] + s[:, -4]) / 2)
    np.testing.assert_allclose(targeted_dlr(z, y, t), expected, rtol=1e-5)
    np.testing.assert_allclose(targeted_dlr(10 * z + 7, y, t), expected, rtol=1e-4)
    f, sign = z[:, :1], np.array([1, 0, 1, 1, 0])
    np.testing.assert_allclose(
        cross_entropy(f, sign), np.log1p(np.exp(-2.0 * (2 * sign - 1) * f[:, 0])), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(mse(f, sign), 0.5 * (f[:, 0] - (2 * sign - 1)) ** 2, rtol=1e-5)
    np.testing.assert_array_equal(fooled(f, sign), (margin(f, sign) > 0))


@pytest.mark.parametrize("ball", [Linf(1.0), L2(1.0)], ids=["linf", "l2"])
def test_to_hyperplane_is_the_least_change(ball) -> None:
    rng = np.random.default_rng(1)
    d = 7
    for scale in (1, 1e3):
        x = rng.random((12, d))
        w = rng.normal(size=(12, d)) * np.exp(scale**0.2 * rng.normal(size=(12, d)))
        z = rng.random((12, d))  # a point of each plane: they all meet the box
        b = -(w * z).sum(axis=1)
        found = np.asarray(to_hyperplane(ball, *(jnp.asarray(a, jnp.float32) for a in (x, w, b)), (0, 1)), np.float64)
        scale_of = np.abs(w).sum(axis=1)
        assert (np.abs((w * (x + found)).sum(axis=1) + b) < 1e-5 * scale_of).all()
        assert ((x + found > -1e-6) & (x + found < 1 + 1e-6)).all()
        for i in range(12):
            least = (least_linf if isinstance(ball, Linf) else least_l2)(x[i], w[i], b[i], z[i])
            assert exact_size(ball, found[i : i + 1])[0] == pytest.approx(least, rel=1e-3, abs=1e-5)


def least_linf(x, w, b, start):
    """The smallest t of −t ≤ δ ≤ t, as a linear program."""
    d = len(x)
    sides = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
    ranges = [*zip(-x, 1 - x, strict=True), (0, None)]
    plane = np.append(w, 0)[None], [-(b + w @ x)]
    return optimize.linprog(np.append(np.zeros(d), 1), sides, np.zeros(2 * d), *plane, ranges).fun


def least_l2(x, w, b, start):
    found = optimize.minimize(
        lambda v: ((v - x) ** 2).sum(),
        start,
        jac=lambda v: 2 * (v - x),
        bounds=[(0.0, 1.0)] * len(x),
        constraints={"type": "eq", "fun": lambda v: (w @ v + b) / np.abs(w).max()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.fun**0.5


def test_square_needs_no_derivative_nor_jax() -> None:
    def on_numpy(x):
        return np.asarray(x).reshape(len(x), -1) @ WEIGHTS + OFFSETS

    labels = predicted(FOUR, IMAGES)
    on_host = attacks.square(on_numpy, IMAGES, labels, Linf(0.1), key=KEY, queries=100)
    compiled = attacks.square(FOUR, IMAGES, labels, Linf(0.1), key=KEY, queries=100)
    np.testing.assert_allclose(on_host, compiled, atol=1e-6)
    with pytest.raises(ValueError, match=r"model: .* cannot be differentiated .*; ntkit.attacks.square needs no"):
        attacks.pgd(on_numpy, IMAGES, labels, Linf(0.1), key=KEY)


def test_plain_functions_are_compiled_once() -> None:
    calls = []

    def model(x):
        calls.append(x)
        return FOUR(x)

    attacks.fgsm(model, IMAGES, predicted(FOUR, IMAGES), Linf(0.02))
    shapes_looked_at = len(calls)
    attacks.fgsm(model, IMAGES, predicted(FOUR, IMAGES), Linf(0.02))
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
        ({"ball": Linf(8)}, "ball: got a radius of 8, expected at most 1, .* in units of 255"),
        ({"bounds": (1, 0)}, r"bounds: got \(1, 0\), expected \(lowest, highest\)"),
        ({"bounds": 1}, "bounds: got 1"),
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
        (attacks.pgd, {"steps": 0}, "steps: got 0, expected an integer of at least 1"),
        (attacks.pgd, {"restarts": 1.5}, "restarts: got 1.5"),
        (attacks.pgd, {"step_size": -1}, "step_size: got -1"),
        (attacks.pgd, {"loss": "hinge"}, r"loss: got 'hinge', expected one of 'cross_entropy', 'mse', 'margin'"),
        (attacks.pgd, {"key": None}, "key: got None, expected jax.random.key"),
        (attacks.pgd, {"random_start": False, "restarts": 2}, "restarts: got 2 with random_start=False"),
        (attacks.apgd, {"loss": "dlr"}, "loss: got 'dlr', expected 'cross_entropy' or 'targeted_dlr'"),
        (attacks.apgd, {"targets": 0}, "targets: got 0"),
        (attacks.fab, {"steps": True}, "steps: got True"),
        (attacks.square, {"queries": 0}, "queries: got 0"),
        (attacks.square, {"share": 0}, "share: got 0"),
        (attacks.autoattack, {"key": 3}, "key: got 3"),
    ],
)
def test_bad_options(attack, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        attack(FOUR, IMAGES, np.zeros(40, int), Linf(0.1), **{"key": KEY} | options)


def test_models_that_return_nan() -> None:
    with pytest.raises(FloatingPointError, match="model: got NaN or infinity for the images as they are"):
        attacks.fgsm(lambda x: FOUR(x) * jnp.nan, IMAGES, np.zeros(40, int), Linf(0.1))

    def no_slope(x):
        # Its value is finite, and its derivative at 0 is not.
        return FOUR(x) + jnp.sqrt(jnp.sum(x - x, axis=(1, 2, 3)))[:, None]

    with pytest.raises(FloatingPointError, match=r"model: its gradient is NaN or infinite at .* of 40 images"):
        attacks.pgd(no_slope, IMAGES, predicted(FOUR, IMAGES), Linf(0.1), key=KEY)
