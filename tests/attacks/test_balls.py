"""Points of a ball are inside to the last float: distances are taken in double precision, in which they are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ntkit.attacks import L2, Linf

PIXELS = st.floats(0, 1, width=32)
ANYTHING = st.floats(-4, 4, width=32)
RADII = st.sampled_from([8 / 255, 1 / 3, 1e-3, 1e-7, 0.5, 1.0])


@functools.partial(jax.jit, static_argnums=0)
def project(ball, x, candidate):
    return ball.project(jnp.asarray(x), candidate)


def exact_size(ball, change):
    flat = np.abs(np.asarray(change, np.float64)).reshape(len(change), -1)
    return flat.max(axis=1) if isinstance(ball, Linf) else np.sqrt((flat**2).sum(axis=1))


def inside(ball, x, found):
    change = np.asarray(found, np.float64) - np.asarray(x, np.float64)
    return (exact_size(ball, change) <= ball.radius).all() and np.min(found) >= 0 and np.max(found) <= 1


@pytest.mark.parametrize("norm", [Linf, L2])
@settings(max_examples=60, deadline=None)
@given(x=hnp.arrays(np.float32, (3, 7), elements=PIXELS), to=hnp.arrays(np.float32, (3, 7), elements=ANYTHING), r=RADII)
def test_projected_is_inside_to_the_last_float(norm, x, to, r) -> None:
    ball = norm(r)
    found = np.asarray(project(ball, x, to))
    assert found.dtype == np.float32
    assert inside(ball, x, found)


@pytest.mark.parametrize(
    "ball", [Linf(8 / 255), *(pytest.param(ball, marks=pytest.mark.slow) for ball in (Linf(0.3), L2(0.5))), L2(3.0)]
)
def test_of_images(ball) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((50, 32, 32, 3), np.float32)
    x[:5], x[5:10] = 0, 1
    keys = jax.random.split(jax.random.key(0), 50)
    for points in (ball.random(keys, x), ball.surface(keys, x), project(ball, x, 3 - x * 6)):
        assert inside(ball, x, points)
    # It uses the ball up to a few roundings where the bounds allow.
    middle = np.full_like(x, 0.5)
    reached = exact_size(ball, np.asarray(project(ball, middle, middle + (x - 0.5) * 0.6), np.float64) - middle)
    wanted = np.minimum(ball.radius, exact_size(ball, (x - 0.5).astype(np.float64) * 0.6))
    np.testing.assert_allclose(reached, wanted, rtol=1e-5)


@pytest.mark.parametrize("ball", [Linf(0.25), L2(0.5)])
def test_a_point_of_the_ball_stays(ball) -> None:
    x = np.full((2, 4, 4, 1), 0.5, np.float32)
    np.testing.assert_array_equal(ball.project(x, x + 2**-4), x + 2**-4)


def test_steepest_and_sizes() -> None:
    gradient = np.array([[3.0, -4.0, 0.0], [0, 0, 0], [1e-30, 0, 0]], np.float32)
    np.testing.assert_array_equal(Linf(1).steepest(gradient), np.sign(gradient))
    np.testing.assert_allclose(L2(1).steepest(gradient), [[0.6, -0.8, 0], [0, 0, 0], [1, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(Linf(1).size(gradient)[:2], [4, 0])
    np.testing.assert_allclose(L2(1).size(gradient)[:2], [5, 0])
    np.testing.assert_allclose(Linf(1).dual_size(gradient)[:2], [7, 0])


def test_random_points_fill_the_ball() -> None:
    x = np.full((4000, 2), 0.5, np.float32)
    keys = jax.random.split(jax.random.key(0), len(x))
    change = np.asarray(L2(0.4).random(keys, x)) - x
    # Uniform in a disk: the mean of the squared radius is half of the largest.
    assert np.mean(np.sum(change**2, axis=1)) == pytest.approx(0.08, rel=0.05)
    change = np.asarray(Linf(0.4).random(keys, x)) - x
    assert np.mean(change**2) == pytest.approx(0.16 / 3, rel=0.05)


def test_every_image_has_its_own_radius() -> None:
    rng = np.random.default_rng(5)
    x = rng.uniform(0.3, 0.7, (30, 4, 4, 3)).astype(np.float32)
    radii = rng.uniform(0.01, 0.2, 30).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 30)
    for ball in (Linf(0.5), L2(0.5)):
        for found in (
            ball.random(keys, x, radii),
            ball.surface(keys, x, radii),
            ball.project(x, 3 - 6 * x, radii),
            ball.settle(x, ball.project(x, 3 - 6 * x, radii), radii),
        ):
            sizes = exact_size(ball, np.asarray(found, np.float64) - x)
            assert (sizes <= radii.astype(np.float64)).all()
            assert (sizes > 0.1 * radii).all()
        for i in (0, 7):
            one = type(ball)(float(radii[i]))
            rows = slice(i, i + 1)
            np.testing.assert_allclose(ball.surface(keys, x, radii)[rows], one.surface(keys[rows], x[rows]), atol=1e-6)


def test_random_points_fill_the_ball_of_what_may_change() -> None:
    x = np.full((4000, 5), 0.5, np.float32)
    keys, mask = jax.random.split(jax.random.key(0), len(x)), np.zeros((4000, 5), bool)
    mask[:, [1, 3]] = True
    change = np.asarray(L2(0.4).random(keys, x, mask=mask)) - x
    assert (change[:, [0, 2, 4]] == 0).all()
    # Uniform in a disk of two dimensions.
    assert np.mean(np.sum(change**2, axis=1)) == pytest.approx(0.08, rel=0.05)
    np.testing.assert_allclose(exact_size(L2(0.4), np.asarray(L2(0.4).surface(keys, x, mask=mask)) - x), 0.4, rtol=1e-5)


def test_balls_are_values() -> None:
    assert Linf(0.1) == Linf(0.1) != L2(0.1)
    assert len({Linf(0.1), Linf(np.float64(0.1)), L2(0.1)}) == 2


@pytest.mark.parametrize("radius", [-1, 0, np.inf, np.nan, "1", None, True])
def test_bad_radius(radius) -> None:
    with pytest.raises(ValueError, match="radius: got"):
        Linf(radius)


@pytest.mark.parametrize("bounds", [(1, 0), 1, (0, np.nan), (0, 1, 2), None, ("a", 1)], ids=str)
def test_bad_bounds(bounds) -> None:
    with pytest.raises(ValueError, match=r"bounds: got .*, expected \(lowest, highest\)"):
        L2(0.1, bounds)


def test_a_radius_in_other_units() -> None:
    with pytest.raises(ValueError, match=r"radius: got 8, expected at most 1, .* in units of 255"):
        Linf(8)
    assert Linf(8, bounds=(0, 255)).bounds == (0.0, 255.0)
