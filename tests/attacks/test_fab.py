"""FAB: its projection against solvers of SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from ntkit.attacks import L2, Linf
from ntkit.attacks.fab import to_hyperplane
from tests.attacks.test_balls import exact_size


@pytest.mark.parametrize("ball", [Linf(1.0), L2(1.0)], ids=["linf", "l2"])
def test_to_hyperplane_is_the_least_change(ball) -> None:
    rng = np.random.default_rng(1)
    d = 7
    for scale in (1, 1e3):
        x = rng.random((12, d))
        w = rng.normal(size=(12, d)) * np.exp(scale**0.2 * rng.normal(size=(12, d)))
        z = rng.random((12, d))  # a point of each plane: they all meet the box
        b = -(w * z).sum(axis=1)
        found = np.asarray(to_hyperplane(ball, *(jnp.asarray(a, jnp.float32) for a in (x, w, b))), np.float64)
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
