import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import networks, regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype("f")
Y = np.sin(X[:, :1] * np.array([1.0, 2.0], np.float32))
TEST = RNG.normal(size=(20, 3)).astype("f")
KEY = jax.random.key(0)


def test_it_learns() -> None:
    module = ntkit.fc(1).flax(2, 64)
    network = networks.train(module, X, Y, key=KEY, steps=300, learning_rate=0.1)
    assert network.losses.shape == (300,)
    assert network.initial is None
    assert network.losses[-1] < 1e-3 * network.losses[0]
    np.testing.assert_allclose(network(X), Y, atol=0.1)
    # The first loss is that of the network as initialized.
    again = networks.train(module, X, Y, key=KEY, steps=300, learning_rate=0.1)
    np.testing.assert_array_equal(network.losses, again.losses)
    np.testing.assert_allclose(jax.jit(lambda model, x: model(x))(network, TEST), network(TEST), rtol=1e-5, atol=1e-5)
    labels = np.asarray(Y.argmax(1))
    assert regression.accuracy(network, X, labels) == np.mean(network(X).argmax(1) == labels)


def test_batches() -> None:
    module = ntkit.fc(1).flax(2, 64)
    network = networks.train(module, X, Y, key=KEY, steps=300, learning_rate=0.1, batch_size=3)
    assert np.mean((network(X) - Y) ** 2) < 0.05
    assert len(np.unique(network.losses[:5])) == 5


def test_centred_starts_from_zero() -> None:
    module = ntkit.fc(1, b_std=1.0).flax(2, 64)
    network = networks.train(module, X, Y, key=KEY, steps=300, learning_rate=0.1, centred=True)
    np.testing.assert_allclose(network.losses[0], 0.5 * np.mean(np.sum(Y**2, 1)), rtol=1e-5)
    np.testing.assert_allclose(network(X), Y, atol=0.1)
    initial = module.apply(network.initial, TEST)
    np.testing.assert_allclose(network(TEST) + initial, module.apply(network.variables, TEST), atol=1e-4)
    assert len(jax.tree.leaves(network)) == 2 * len(jax.tree.leaves(network.variables)) + 1


def test_a_wide_centred_network_is_kernel_regression() -> None:
    architecture = ntkit.fc(1, b_std=0.5)
    expected = regression.fit(ntkit.ntk(architecture), X, Y)(TEST)
    module = architecture.flax(2, 1024)

    def error(centred: bool) -> float:
        network = networks.train(module, X, Y, key=KEY, steps=300, learning_rate=0.03, centred=centred)
        assert network.losses[-1] < 1e-4
        return float(jnp.sqrt(jnp.mean((network(TEST) - expected) ** 2)))

    centred, plain = error(True), error(False)
    print(centred, plain, float(jnp.std(expected)))
    assert centred < 0.2 * jnp.std(expected)
    assert centred < plain / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": X[0]}, r"images: got shape \(3,\)"),
        ({"images": np.full_like(X, np.nan)}, "images: got NaN or infinity"),
        ({"images": X.astype(int)}, "images: got dtype int64, expected floats"),
        ({"targets": Y[:5]}, r"targets: got shape \(5, 2\), expected \(8, outputs\)"),
        ({"targets": Y[:, :1]}, r"targets: got shape \(8, 1\), expected \(8, 2\) as the network's outputs"),
        ({"targets": np.where(X[:, :2] > 9, 0, np.inf)}, "targets: got NaN or infinity"),
        ({"steps": 0}, "steps: got 0, expected an integer of at least 1"),
        ({"steps": 1.5}, "steps: got 1.5"),
        ({"batch_size": 0}, "batch_size: got 0, expected an integer of at least 1"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0, expected a finite number above 0"),
        ({"learning_rate": np.nan}, "learning_rate: got nan"),
    ],
)
def test_bad_arguments(change, message: str) -> None:
    arguments = {"images": X, "targets": Y, "key": KEY, "steps": 1} | change
    with pytest.raises(ValueError, match=message) as caught:
        networks.train(ntkit.fc(1).flax(2, 64), **arguments)
    assert "\n" not in str(caught.value)


def test_divergence_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match=r"training diverged with learning_rate=1e\+30"):
        networks.train(ntkit.fc(1).flax(2, 64), X, Y, key=KEY, steps=50, learning_rate=1e30)
