"""Images and models in half precision: searched in float32, given back in their own, inside the ball exactly."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit import attacks
from ntkit.attacks import L2, PGD, Linf
from tests.attacks.models import ALL, IMAGES, OFFSETS, WEIGHTS, distances, predicted

KEY = jax.random.key(0)
HALVES = [jnp.bfloat16, jnp.float16]
SLOW = {name: pytest.param(name, marks=pytest.mark.slow) for name in ("apgd-t", "autoattack", "pgd, several starts")}


def exactly_inside(ball, x, found, bounds=(0, 1)):
    """Whether it is, in rational arithmetic."""
    low, high = map(Fraction, bounds)
    for image, other in zip(np.asarray(x, np.float64), np.asarray(found, np.float64), strict=True):
        pairs = [(Fraction(a), Fraction(b)) for a, b in zip(image.flat, other.flat, strict=True)]
        if not all(low <= b <= high for _, b in pairs):
            return False
        changes = [abs(b - a) for a, b in pairs]
        size = max(changes) ** 2 if isinstance(ball, Linf) else sum(change**2 for change in changes)
        if size > Fraction(ball.radius) ** 2:
            return False
    return True


def strict(x):
    """A model that takes one dtype, as convolutions do."""
    weights = jnp.asarray(WEIGHTS, x.dtype)
    return jax.lax.dot(x.reshape(len(x), -1), weights) + jnp.asarray(OFFSETS, x.dtype)


@pytest.mark.parametrize("name", [*(name for name in ALL if name not in SLOW), *SLOW.values()])
@pytest.mark.parametrize(
    ("ball", "dtype"),
    [(Linf(0.1), HALVES[0]), pytest.param(L2(0.8), HALVES[1], marks=pytest.mark.slow)],
    ids=["linf-bfloat16", "l2-float16"],
)
def test_half_images(name, ball, dtype) -> None:
    x = jnp.asarray(IMAGES, dtype).at[0].set(0).at[1].set(1)
    labels = predicted(strict, x)
    found = ALL[name](strict, x, labels, ball)
    assert found.dtype == dtype
    assert exactly_inside(ball, x, found)
    # Nearly all are within reach; half precision only blurs where the boundary is.
    assert (distances(ball, lambda x: np.asarray(strict(x)), x, labels) < 0.8 * ball.radius).mean() > 0.8
    assert (predicted(strict, found) != labels).mean() > (0.5 if name in ("fgsm", "square") else 0.8)


@pytest.mark.parametrize("of_images", [jnp.float32, jnp.bfloat16])
def test_images_and_logits_of_different_dtypes(of_images) -> None:
    logits = jnp.float32 if of_images == jnp.bfloat16 else jnp.bfloat16
    x, ball = jnp.asarray(IMAGES, of_images), Linf(0.1)

    def model(x):
        return strict(x.astype(jnp.float32)).astype(logits)

    labels = predicted(model, x)
    for name in ("pgd, several starts", "apgd"):
        found = ALL[name](model, x, labels, ball)
        assert found.dtype == of_images
        assert exactly_inside(ball, x, found)
        assert (predicted(model, found) != labels).mean() > 0.5


def test_half_in_compiled_code_and_in_evaluate() -> None:
    x, ball = jnp.asarray(IMAGES, jnp.bfloat16), Linf(0.1)
    labels = jnp.asarray(predicted(strict, x))
    adversary = PGD(ball, steps=5)
    found = jax.jit(lambda x: adversary(strict, x, labels, key=KEY))(x)
    assert found.dtype == jnp.bfloat16
    assert exactly_inside(ball, x, found)
    assert attacks.evaluate(strict, x, labels, adversary).worst < 0.5


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("ball", [Linf(1 / 3), Linf(1e-4), L2(0.5), L2(1e-3)], ids=str)
def test_settled_is_inside_and_uses_the_ball(ball, dtype) -> None:
    x = np.random.default_rng(0).random((4, 40)).astype(dtype)
    x[0], x[1] = 0, 1
    there = ball.project(jnp.asarray(x, jnp.float32), 3 - 6 * jnp.asarray(x, jnp.float32))
    for settle in (ball.settle, jax.jit(ball.settle)):
        found = settle(jnp.asarray(x), there)
        assert found.dtype == dtype
        assert exactly_inside(ball, x, found)
    if ball.radius > 0.1:
        assert float(ball.size(found.astype(jnp.float32) - x.astype(np.float32))[2:].min()) > 0.95 * ball.radius
