import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import data, kernels, regression
from ntkit.regression import Cholesky, Primal

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4)).astype(np.float32)
IMAGES = RNG.uniform(size=(3, 6, 5, 2)).astype(np.float32)
ARCHITECTURES = {
    "fc2": (ntkit.fc(2), X),
    "erf": (ntkit.fc(1, activation="erf"), X),
    "no bias": (ntkit.fc(1, b_std=None), X),
    "conv": (ntkit.conv(2), IMAGES),
    "convnet": (ntkit.convnet(1), IMAGES),
    "standard": (ntkit.fc(1, parameterization="standard"), X),
}
EXACT = {"nngp": ntkit.nngp, "ntk": ntkit.ntk}


def errors(architecture, get, x, width, draws):
    """Give the errors of sampled kernels, relative to the largest value of the exact one."""
    exact = np.asarray(EXACT[get](architecture)(x))

    @jax.jit
    def sampled(keys):
        return jax.lax.map(lambda key: ntkit.random_features(architecture, get, key=key, width=width)(x), keys)

    found = np.asarray(sampled(jax.random.split(KEY, draws)))
    return (found - exact) / np.abs(exact).max()


@pytest.mark.parametrize(
    ("name", "get"),
    [
        pytest.param(name, get, marks=[pytest.mark.slow] if name == "conv" or (name, get) == ("convnet", "ntk") else [])
        for name in ARCHITECTURES
        for get in EXACT
    ],
)
def test_converges_to_the_closed_form(name, get):
    architecture, x = ARCHITECTURES[name]
    if (name, get) == ("standard", "ntk"):
        with pytest.raises(ValueError, match="architecture: got the standard parameterization, expected 'ntk'"):
            ntkit.random_features(architecture, get, key=KEY)
        return
    rough, fine = (np.sqrt(np.mean(errors(architecture, get, x, width, 30) ** 2)) for width in (16, 256))
    # A quarter, but for the luck of the draws.
    assert fine < 0.4 * rough
    assert fine < 0.15


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_one_hidden_layer_is_unbiased(get):
    found = errors(ntkit.fc(1), get, X, 64, 600)
    deviations = found.mean(axis=0) / (found.std(axis=0) / 600**0.5)
    assert np.abs(deviations).max() < 4


@pytest.mark.slow
def test_several_networks_are_as_one_wider_network():
    kernel = ntkit.random_features(ntkit.convnet(2), key=KEY, width=8, networks=3)
    features = kernel.features(IMAGES)
    # Of 6 by 5 pixels 3 by 2 and then 1 by 1 are left.
    assert features.shape == (3, 3 * (8 + 1))
    np.testing.assert_allclose(kernel(IMAGES), features @ features.T, rtol=1e-5)
    np.testing.assert_allclose(kernel.diagonal(IMAGES), np.diagonal(features @ features.T), rtol=1e-5)
    np.testing.assert_allclose(
        kernel.matmul(IMAGES, IMAGES[:2], np.eye(2)), features @ features[:2].T, rtol=1e-5, atol=1e-6
    )
    assert not np.allclose(kernel.redrawn(1)(IMAGES), kernel(IMAGES), rtol=1e-2)
    np.testing.assert_array_equal(kernel.redrawn(1).features(IMAGES), kernel.redrawn(1).features(IMAGES))


def test_the_covariance_is_that_of_the_network_itself(x64):
    """The last hidden layer of one network, by NumPy."""
    x = X.astype(np.float64)
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=7)
    (key,) = jax.random.split(KEY, 1)
    weights, biases = (
        np.asarray(jax.random.normal(jax.random.fold_in(key, i), shape)) for i, shape in enumerate([(4, 7), (7,)])
    )
    hidden = np.maximum(2**0.5 / 2 * x @ weights + 0.1 * biases, 0)
    np.testing.assert_allclose(kernel.features(x)[:, :-1], (2 / 7) ** 0.5 * hidden, rtol=1e-12)
    np.testing.assert_allclose(kernel.features(x)[:, -1], 0.1)


def test_features_of_kernels_that_are_made_of_others():
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=16)
    other = ntkit.random_features(ntkit.fc(1), "ntk", key=jax.random.key(1), width=16)
    preprocessing = data.Standardize.fit(X)
    for made in (3.0 * kernel, kernel + other, data.of_pixels(kernel, preprocessing)):
        assert made.has_features
        features = np.asarray(made.features(X), np.float64)
        np.testing.assert_allclose(features @ features.T, made(X), rtol=1e-5, atol=1e-6)
    for without in (kernel * other, ntkit.ntk(ntkit.fc(1)), kernel + ntkit.ntk(ntkit.fc(1))):
        assert not without.has_features
        with pytest.raises(ValueError, match=r"kernel: got a .*, expected one of finitely many features"):
            without.features(X)


MANY = RNG.normal(size=(90, 4))
TARGETS = np.sin(MANY[:, :2])


@pytest.mark.parametrize(("networks", "width", "ridge"), [(1, 12, 1e-6), (1, 12, 1e-2), (2, 24, 1e-6)])
def test_fits_on_features_are_those_of_the_gram_matrix(networks, width, ridge, x64):
    """With fewer features than inputs, and with more."""
    kernel = ntkit.random_features(ntkit.fc(1), "ntk", key=KEY, width=width, networks=networks)
    assert (kernel.features(MANY).shape[1] < len(MANY)) == (networks == 1)
    dual = regression.fit(kernel, MANY, TARGETS, ridge, solver=Cholesky())
    assert isinstance(dual, regression.Predictor)
    for solver in (None, Primal(), Primal(block_size=17)):
        primal = regression.fit(kernel, MANY, TARGETS, ridge, solver=solver)
        assert isinstance(primal, regression.FeaturePredictor)
        np.testing.assert_allclose(primal(MANY), dual(MANY), atol=1e-8)
        np.testing.assert_allclose(primal.ridge, ridge)


@pytest.mark.parametrize(("networks", "width"), [(1, 24), (2, 60)])
@pytest.mark.parametrize("time", [10.0, 1e4])
def test_flows_on_features_are_those_of_the_gram_matrix(networks, width, time, x64):
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=width, networks=networks)
    flowed = regression.flow(kernel, MANY, TARGETS, time)
    values, vectors = np.linalg.eigh(np.asarray(kernel(MANY)))
    values = np.maximum(values, 0)
    learned = -np.expm1(-values * time / TARGETS.size)
    np.testing.assert_allclose(flowed(MANY), vectors @ (learned[:, None] * (vectors.T @ TARGETS)), atol=1e-7)


def test_inputs_may_be_a_memory_map(tmp_path):
    x, y = MANY.astype(np.float32), TARGETS.astype(np.float32)
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    mapped[:] = x
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=12)
    whole = regression.fit(kernel, x, y, 1e-2)
    parts = regression.fit(kernel, mapped, y, 1e-2, solver=Primal(block_size=8))
    np.testing.assert_allclose(parts(x), whole(x), atol=1e-4)


def test_goes_through_jit_and_grad():
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=12)
    x, y = MANY.astype(np.float32), TARGETS.astype(np.float32)

    @jax.jit
    def loss(x, kernel):
        return jnp.sum(regression.fit(kernel, x, y, 1e-2)(x[:5]) ** 2)

    def dual(x):
        return jnp.sum(regression.fit(kernel, x, y, 1e-2, solver=Cholesky())(x[:5]) ** 2)

    np.testing.assert_allclose(loss(x, kernel), dual(x), rtol=1e-3)
    np.testing.assert_allclose(jax.grad(loss)(x, kernel), jax.grad(dual)(x), rtol=1e-2, atol=1e-3)
    count = loss._cache_size()
    loss(x, kernel.redrawn(3))
    assert loss._cache_size() == count


def test_what_float32_does_not_resolve_is_said():
    x = np.repeat(MANY[:45], 2, axis=0).astype(np.float32)
    y = RNG.normal(size=(90, 1)).astype(np.float32)
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=80)
    with pytest.warns(regression.RoundingWarning, match="fit: float32 does not resolve this model"):
        regression.fit(kernel, x, y, 1e-9)


def test_bad_arguments():
    kernel = ntkit.random_features(ntkit.fc(1), key=KEY, width=12)
    for change, message in (
        ({"architecture": "fc"}, "architecture: got 'fc', expected an ntkit.Architecture"),
        ({"get": "both"}, "get: got 'both', expected 'ntk' or 'nngp'"),
        ({"key": 0}, r"key: got 0, expected jax.random.key\(seed\)"),
        ({"width": 0}, "width: got 0, expected an integer of at least 1"),
        ({"networks": 0}, "networks: got 0, expected an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            ntkit.random_features(**{"architecture": ntkit.fc(1), "key": KEY} | change)
    predictor = regression.fit(kernel, X, np.ones((5, 1), np.float32))
    with pytest.raises(ValueError, match="x: got inputs of shape"):
        regression.fit(ntkit.random_features(ntkit.conv(1), key=KEY, width=3), IMAGES, np.ones((3, 1), np.float32))(
            np.ones((2, 4, 4, 2), np.float32)
        )
    assert predictor(X).shape == (5, 1)
    with pytest.raises(ValueError, match=r"solver: got Primal.*, expected Cholesky"):
        regression.fit(ntkit.ntk(ntkit.fc(1)), X, np.ones((5, 1), np.float32), solver=Primal())
    with pytest.raises(ValueError, match="solver: got Primal with a gram, mesh or block_size"):
        regression.fit(kernel, X, np.ones((5, 1), np.float32), solver=Primal(), block_size=3)
    with pytest.raises(ValueError, match="block_size: got 0"):
        Primal(block_size=0)


def test_is_kept_in_a_file(tmp_path):
    kernel = ntkit.random_features(ntkit.convnet(1), "ntk", key=KEY, width=6)
    predictor = regression.fit(kernel, IMAGES, np.ones((3, 1), np.float32))
    for model in (kernel, predictor):
        ntkit.save(model, tmp_path / "model.npz")
        again = ntkit.load(tmp_path / "model.npz")
        np.testing.assert_array_equal(again(IMAGES), model(IMAGES))
    assert isinstance(kernel, kernels.FeatureKernel)
    assert kernel.engine == "random_features"
