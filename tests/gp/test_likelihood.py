"""The likeliest hyper-parameters, against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF as TheirRBF
from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel

import ntkit
from ntkit import gp
from tests.distill.small import RBF
from tests.gp.test_posterior import KERNEL, KEY, NOISE, RATE, SCALE, X, Y


def test_finds_what_scikit_learn_finds(x64):
    found = gp.maximize(KERNEL, X, Y, NOISE, key=KEY, steps=30)
    kernel = ConstantKernel(SCALE) * TheirRBF(1 / RATE) + WhiteKernel(NOISE)
    theirs = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0).fit(X, Y)
    np.testing.assert_allclose(found.log_marginal_likelihood, theirs.log_marginal_likelihood_value_, rtol=1e-6)
    assert found.reached.shape == (3,)
    assert found.log_marginal_likelihood == np.nanmax(found.reached)
    np.testing.assert_allclose(found.noise, theirs.kernel_.k2.noise_level, rtol=1e-3)
    rate, scale = jax.tree.leaves(found.kernel)
    np.testing.assert_allclose(
        [1 / rate, scale], [theirs.kernel_.k1.k2.length_scale, theirs.kernel_.k1.k1.constant_value], rtol=1e-3
    )
    again = gp.log_marginal_likelihood(found.kernel, X, Y, found.noise)
    np.testing.assert_allclose(again, found.log_marginal_likelihood, rtol=1e-12)


def test_stays_within_bounds_and_leaves_zeros_alone():
    kernel = ntkit.nngp(ntkit.fc(1, b_std=0.0))
    x, y = X.astype("f"), Y.astype("f")
    found = gp.maximize(kernel, x, y, 1.0, key=KEY, starts=2, within=2.0, steps=8)
    before, after = (np.array([float(leaf) for leaf in jax.tree.leaves(each)]) for each in (kernel, found.kernel))
    assert (after[before == 0] == 0).all()
    assert (before == 0).any()
    ratios = after[before > 0] / before[before > 0]
    assert ((ratios >= 0.499) & (ratios <= 2.001)).all()
    assert 0.499 < float(found.noise) < 0.51  # it would go further
    assert found.log_marginal_likelihood > gp.log_marginal_likelihood(kernel, x, y, 1.0)


def test_any_optimizer_and_the_same_key():
    x, y = jnp.asarray(X, "float32"), jnp.asarray(Y, "float32")
    options = {"key": KEY, "starts": 2, "steps": 20, "optimizer": optax.adam(0.1)}
    one, other = (gp.maximize(RBF(RATE), x, y, NOISE, **options) for _ in range(2))
    assert one.log_marginal_likelihood > gp.log_marginal_likelihood(RBF(RATE), x, y, NOISE)
    np.testing.assert_array_equal(one.reached, other.reached)


def test_bad_input():
    for change, message in (
        ({"noise": 0}, "noise: got 0, expected a number above 0"),
        ({"starts": 0}, "starts: got 0"),
        ({"steps": 0}, "steps: got 0"),
        ({"within": 1}, "within: got 1, expected a finite number above 1"),
        ({"optimizer": "lbfgs"}, "optimizer: got 'lbfgs', expected an optax.GradientTransformation"),
        ({"key": 0}, "key: got 0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            gp.maximize(**{"kernel": KERNEL, "x": X, "y": Y, "noise": NOISE, "key": KEY} | change)
    with pytest.raises(FloatingPointError, match="log_marginal_likelihood: not finite"):
        gp.log_marginal_likelihood(KERNEL, np.full_like(X, np.inf), Y, NOISE)
    with pytest.raises(FloatingPointError, match="maximize: not finite at any start"):
        gp.maximize(KERNEL, np.full_like(X, np.inf), Y, NOISE, key=KEY, steps=1)
