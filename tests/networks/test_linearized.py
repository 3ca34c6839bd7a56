"""A linearized network against neural-tangents' expansion and gradient descent on its tangent kernel."""

import jax
import numpy as np
import pytest

import ntkit
from ntkit import _neural_tangents as nt
from ntkit import networks
from tests import flat

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype("f")
Y = np.sin(X[:, :2])
TEST = RNG.normal(size=(9, 3)).astype("f")
KEY = jax.random.key(0)
MODULE = ntkit.fc(1, activation="erf").flax(2, 16)


@pytest.mark.slow
def test_the_expansion_is_that_of_neural_tangents() -> None:
    pytest.importorskip("neural_tangents")
    network = flat.train(MODULE, X, Y, key=KEY, steps=5)
    linear = networks.linearize(network)
    np.testing.assert_allclose(linear(TEST), network(TEST), rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(lambda leaf: leaf + 0.3 * RNG.normal(size=leaf.shape), network.variables)
    expected = nt.linearize(MODULE.apply, network.variables)(moved, TEST)
    found = linear.module.apply(linear.variables | {"params": moved["params"]}, TEST)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, MODULE.apply(moved, TEST), atol=1e-2)


def test_a_centred_network_s_expansion() -> None:
    network = flat.train(MODULE, X, Y, key=KEY, steps=5, learning_rate=0.05, centred=True)
    np.testing.assert_allclose(networks.linearize(network)(TEST), network(TEST), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_its_training_is_gradient_descent_on_a_constant_kernel() -> None:
    steps, rate = 40, 0.05
    linear = networks.Linearized(MODULE)
    network = flat.train(linear, X, Y, key=KEY, steps=steps, optimizer="sgd", learning_rate=rate, schedule="constant")
    origin = network.variables["origin"]
    start, unravel = jax.flatten_util.ravel_pytree(origin)

    def jacobian(x):
        return np.float64(jax.jacobian(lambda p: MODULE.apply(unravel(p), x).reshape(-1))(start))

    at_train, at_test = jacobian(X), jacobian(TEST)
    gram = at_train @ at_train.T
    residual = np.float64(MODULE.apply(origin, X)).reshape(-1) - Y.reshape(-1)
    dual = np.zeros_like(residual)
    for _ in range(steps):
        dual -= rate / len(X) * residual
        residual = residual - rate / len(X) * gram @ residual
    expected = np.float64(MODULE.apply(origin, TEST)).reshape(-1) + at_test @ at_train.T @ dual
    np.testing.assert_allclose(network(TEST).reshape(-1), expected, rtol=1e-3, atol=1e-4)
    initial = MODULE.init(jax.random.split(KEY)[0], X[:1])
    for one, other in zip(jax.tree.leaves(origin), jax.tree.leaves(initial), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
