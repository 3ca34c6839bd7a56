"""Losses against plain NumPy."""

import numpy as np

from ntkit.attacks.losses import cross_entropy, fooled, margin, mse, targeted_dlr


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
