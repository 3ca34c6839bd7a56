"""Gaussian processes after noisy observations, against scikit-learn, really leaving out, and NumPy in float64."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF as TheirRBF
from sklearn.gaussian_process.kernels import ConstantKernel

import ntkit
from ntkit import gp, regression
from tests.distill.small import RBF

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(30, 3)), RNG.normal(size=(7, 3))
Y = np.sin(X[:, :2]) + 0.1 * RNG.normal(size=(30, 2))
SCALE, RATE, NOISE = 2.0, 0.7, 0.05
KERNEL = SCALE * RBF(RATE)
NTK = ntkit.ntk(ntkit.fc(2))


def sklearn(noise=NOISE, x=X, y=Y):
    return GaussianProcessRegressor(ConstantKernel(SCALE) * TheirRBF(1 / RATE), alpha=noise, optimizer=None).fit(x, y)


@pytest.mark.parametrize("noise", [NOISE, np.linspace(0.01, 0.2, 30)], ids=["one", "of each"])
def test_equals_scikit_learn(noise, x64):
    posterior = gp.condition(KERNEL, X, Y, noise)
    theirs = sklearn(noise)
    mean, covariance = theirs.predict(NEW, return_cov=True)
    np.testing.assert_allclose(posterior.mean(NEW), mean, atol=1e-12)
    np.testing.assert_array_equal(posterior(NEW), posterior.mean(NEW))
    np.testing.assert_allclose(posterior.covariance(NEW), covariance[..., 0], atol=1e-12)
    np.testing.assert_allclose(posterior.covariance(NEW[:4], NEW[4:]), covariance[:4, 4:, 0], atol=1e-12)
    np.testing.assert_allclose(posterior.variance(NEW), np.diag(covariance[..., 0]), atol=1e-12)
    expected = theirs.log_marginal_likelihood_value_
    np.testing.assert_allclose(posterior.log_marginal_likelihood, expected, rtol=1e-12)
    np.testing.assert_allclose(gp.log_marginal_likelihood(KERNEL, X, Y, noise), expected, rtol=1e-12)


def test_the_mean_is_that_of_regression(x64):
    posterior = gp.condition(NTK, X, Y, NOISE)
    ridge = NOISE / np.mean(np.asarray(NTK.diagonal(X)))
    np.testing.assert_allclose(posterior(NEW), regression.fit(NTK, X, Y, ridge)(NEW), atol=1e-10)


def test_leave_one_out_is_leaving_out(x64):
    found = gp.condition(KERNEL, X, Y, NOISE).leave_one_out()
    for i in (0, 11, 29):
        keep = np.arange(30) != i
        without = gp.condition(KERNEL, X[keep], Y[keep], NOISE)
        mean, variance = np.asarray(without(X[i : i + 1])[0]), float(without.variance(X[i : i + 1])[0]) + NOISE
        np.testing.assert_allclose(found.mean[i], mean, atol=1e-12)
        np.testing.assert_allclose(found.variance[i], variance, rtol=1e-12)
        density = -0.5 * np.log(2 * np.pi * variance) - (Y[i] - mean) ** 2 / (2 * variance)
        np.testing.assert_allclose(found.log_density[i], density, rtol=1e-10)


def test_samples_have_mean_and_covariance():
    posterior = gp.condition(KERNEL, X.astype("f"), Y.astype("f"), NOISE)
    # Two of them are equal: a singular covariance.
    new = np.concatenate([NEW, NEW[:1]]).astype("f")
    drawn = np.asarray(posterior.sample(new, key=KEY, count=20_000))
    assert drawn.shape == (20_000, 8, 2)
    np.testing.assert_allclose(drawn[:3], posterior.sample(new, key=KEY, count=3), atol=1e-6)
    np.testing.assert_allclose(drawn[:, 7], drawn[:, 0], atol=5e-3)
    np.testing.assert_allclose(drawn.mean(0), posterior(new), atol=0.03)
    for output in (0, 1):
        np.testing.assert_allclose(np.cov(drawn[..., output].T), posterior.covariance(new), atol=0.03)
    assert abs(np.mean((drawn[..., 0] - drawn[..., 0].mean(0)) * (drawn[..., 1] - drawn[..., 1].mean(0)))) < 0.01


def test_derivatives_are_finite_differences(x64):
    def likelihood(noise, scale, rate, x):
        return gp.log_marginal_likelihood(scale * RBF(rate), x, Y, noise)

    def variance(noise, scale, rate, x):
        return gp.condition(scale * RBF(rate), x, Y, noise).variance(NEW[:2]).sum()

    at, step = (NOISE, SCALE, RATE, X), 1e-5
    direction = RNG.normal(size=X.shape)
    for function in (likelihood, variance):
        gradients = jax.grad(function, (0, 1, 2, 3))(*at)
        for i, gradient in enumerate(gradients):
            move = direction if i == 3 else 1.0
            ends = [function(*at[:i], at[i] + sign * step * move, *at[i + 1 :]) for sign in (1, -1)]
            np.testing.assert_allclose(np.sum(gradient * move), (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
    ends = [jax.grad(likelihood, 2)(NOISE, SCALE, RATE + sign * step, X) for sign in (1, -1)]
    second = jax.grad(jax.grad(likelihood, 2), 2)(*at)
    np.testing.assert_allclose(second, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_in_float32_as_in_float64():
    single = gp.condition(NTK, X.astype("f"), Y.astype("f"), NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, variance = single(NEW.astype("f")), single.variance(NEW.astype("f"))
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        double = gp.condition(NTK, X, Y, NOISE)
        np.testing.assert_allclose(mean, double(NEW), atol=1e-4)
        np.testing.assert_allclose(variance, double.variance(NEW), rtol=1e-4)
        np.testing.assert_allclose(
            single.log_marginal_likelihood, double.log_marginal_likelihood.astype("f"), rtol=1e-5
        )


def test_no_variance_is_negative_and_what_float32_cannot_tell_is_said():
    # On a line, interpolated: next to nothing of the variance is left.
    x = np.linspace(0, 1, 60, dtype="f")[:, None]
    with pytest.warns(regression.RidgeWarning, match=r"noise: the covariance could not be factorized .* was added"):
        posterior = gp.condition(RBF(1.0), x, np.sin(5 * x), 0.0)
    assert posterior.noise > 0
    between = (x[1:] + x[:-1]) / 2
    with pytest.warns(regression.RoundingWarning, match="variance: float32 does not resolve this"):
        variance = posterior.variance(between)
    assert np.isfinite(variance).all()
    assert (np.asarray(variance) >= 0).all()
    assert np.isfinite(posterior.sample(between, key=KEY)).all()
    loo = posterior.leave_one_out()
    assert all(np.isfinite(part).all() for part in loo)


def test_is_compiled_and_batched():
    @jax.jit
    def score(noise, x):
        posterior = gp.condition(KERNEL, x, Y.astype("f"), noise)
        return posterior.log_marginal_likelihood, posterior.variance(NEW.astype("f"))

    x, noises = jnp.asarray(X, "float32"), jnp.array([0.05, 0.1])
    both = jax.vmap(score, (0, None))(noises, x)
    for i, noise in enumerate(noises):
        for found, expected in zip(both, score(noise, x), strict=True):
            np.testing.assert_allclose(found[i], expected, rtol=1e-4)


def test_many_inputs_are_looked_at_in_parts(monkeypatch):
    from ntkit.kernels import memory

    posterior = gp.condition(KERNEL, X.astype("f"), Y.astype("f"), NOISE)
    whole = posterior.variance(NEW.astype("f"))
    monkeypatch.setattr(memory, "HELD", 4 * 30 * 3)
    jax.clear_caches()
    np.testing.assert_allclose(posterior.variance(NEW.astype("f")), whole, rtol=1e-5)
    jax.clear_caches()


def test_bad_input():
    for change, message in (
        ({"noise": -1}, "noise: got -1"),
        ({"noise": np.ones(29)}, r"noise: got shape \(29,\), expected a number or one for each of 30 observations"),
        ({"noise": -np.ones(30)}, "noise: got -1, expected variances of at least 0"),
        ({"noise": "x"}, "noise: got 'x'"),
        ({"y": Y[:29]}, "y: "),
        ({"kernel": len}, "kernel: got"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            gp.condition(**{"kernel": KERNEL, "x": X, "y": Y, "noise": NOISE} | change)
    with pytest.raises(FloatingPointError, match="condition: not finite"):
        gp.condition(KERNEL, np.full_like(X, np.inf), Y, NOISE)
    posterior = gp.condition(KERNEL, X, Y, NOISE)
    for method in (posterior, posterior.variance, posterior.covariance, lambda x: posterior.sample(x, key=KEY)):
        with pytest.raises(ValueError, match=r"^x1?: got inputs of shape \(2,\), expected \(3,\) as those that were"):
            method(NEW[:, :2])
