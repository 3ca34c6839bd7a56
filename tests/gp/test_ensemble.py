"""Ensembles of trained wide networks, against neural-tangents and against networks that are really trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import _neural_tangents as nt
from ntkit import gp, regression
from tests.gp.test_posterior import KEY, NEW, X, Y

ARCHITECTURE = ntkit.fc(2)
NTK, NNGP = ntkit.ntk(ARCHITECTURE), ntkit.nngp(ARCHITECTURE)


@pytest.mark.parametrize("get", ["ntk", "nngp"])
def test_equals_neural_tangents(get, x64):
    pytest.importorskip("neural_tangents")
    _, _, kernel_fn = ARCHITECTURE.stax()
    theirs = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, jnp.asarray(X), jnp.asarray(Y), learning_rate=0.7, diag_reg=0
    )
    for time in (0.0, 50.0, None):
        expected = theirs(t=time, x_test=jnp.asarray(NEW), get=get, compute_cov=True)
        found = gp.ensemble(
            NTK if get == "ntk" else NNGP, NNGP, X, Y, np.inf if time is None else time, learning_rate=0.7
        )
        np.testing.assert_allclose(found(NEW), expected.mean, atol=1e-10)
        np.testing.assert_allclose(found.covariance(NEW), expected.covariance, atol=1e-10)
        np.testing.assert_allclose(found.covariance(NEW[:3], NEW[3:]), expected.covariance[:3, 3:], atol=1e-10)
        np.testing.assert_allclose(found.variance(NEW), np.diag(expected.covariance), atol=1e-10)


def test_the_last_layer_alone_is_a_posterior(x64):
    found, expected = gp.ensemble(NNGP, NNGP, X, Y), gp.condition(NNGP, X, Y, 0.0)
    np.testing.assert_allclose(found(NEW), expected(NEW), atol=1e-8)
    np.testing.assert_allclose(found.covariance(NEW), expected.covariance(NEW), atol=1e-8)


def test_the_mean_is_that_of_flow():
    x, y, new = X.astype("f"), Y.astype("f"), NEW.astype("f")
    found, expected = gp.ensemble(NTK, NNGP, x, y, 30.0), regression.flow(NTK, x, y, 30.0)
    np.testing.assert_allclose(found(new), expected(new), atol=1e-4)
    assert (np.asarray(found.variance(x)) >= 0).all()
    np.testing.assert_allclose(gp.ensemble(NTK, NNGP, x, y, 0.0).variance(new), NNGP.diagonal(new), rtol=1e-6)


@pytest.mark.slow
def test_networks_that_are_trained_have_this_distribution():
    """One hidden layer of width 512, 200 networks, full gradient descent, half way: mean and variance."""
    architecture, rate, steps = ntkit.fc(1), 0.5, 60
    x, y, new = X[:12].astype("f"), Y[:12].astype("f"), NEW.astype("f")
    module = architecture.flax(2, width=512)

    @jax.jit
    def trained(key):
        def loss(variables):
            return 0.5 * jnp.mean((module.apply(variables, x) - y) ** 2)

        def step(variables, _):
            gradient = jax.grad(loss)(variables)
            return jax.tree.map(lambda v, g: v - rate * g, variables, gradient), None

        variables, _ = jax.lax.scan(step, module.init(key, x), None, length=steps)
        return module.apply(variables, new)

    outputs = np.asarray(jax.lax.map(trained, jax.random.split(KEY, 200)))
    expected = gp.ensemble(ntkit.ntk(architecture), ntkit.nngp(architecture), x, y, rate * steps)
    deviation = np.sqrt(np.asarray(expected.variance(new)))[:, None]
    # Standard errors of 200 draws: of a mean 0.07 deviations, of a deviation 5 %; and of width 512.
    assert np.abs((outputs.mean(0) - expected(new)) / deviation).max() < 0.3
    assert np.abs(outputs.std(0) / deviation - 1).mean() < 0.1


def test_bad_input():
    for change, message in (
        ({"ntk": len}, "ntk: got"),
        ({"nngp": None}, "nngp: got None"),
        ({"time": -1}, "time: got -1"),
        ({"learning_rate": -1}, "learning_rate: got -1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            gp.ensemble(**{"ntk": NTK, "nngp": NNGP, "x": X, "y": Y} | change)
    with pytest.raises(FloatingPointError, match="ensemble: not finite"):
        gp.ensemble(NTK, NNGP, np.full_like(X, np.inf), Y)
