import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import ntkit
from ntkit import data, distill, kernels, networks, regression
from ntkit.data import one_hot
from ntkit.kernels import memory
from ntkit.runs import Session

from .small import check_resumption, clouds

IMAGES, LABELS = clouds()
KEY = jax.random.key(0)
SGD = optax.sgd(0.5)


class Small(nn.Module):
    """One hidden layer with a smooth nonlinearity."""

    outputs: int = 3
    width: int = 7

    def setup(self):
        self.first, self.last = nn.Dense(self.width), nn.Dense(self.outputs)

    def features(self, x):
        return jnp.tanh(self.first(x.reshape(len(x), -1)))

    def __call__(self, x):
        return self.last(self.features(x))


LEARNER = distill.FRePo(Small(), pool=2, max_steps=3, ridge=1e-2)


def frepo(learner=LEARNER, **options):
    return distill.distill(
        **{"learner": learner, "images": IMAGES, "labels": LABELS, "per_class": 1, "steps": 7, "key": KEY}
        | {"optimizer": SGD, "session": Session(log_every=3)}
        | options
    )


@pytest.mark.slow
def test_equals_the_algorithm_written_out(x64):
    """Regression, its gradient by finite differences, training of the network that was drawn, and new networks."""
    images = IMAGES.astype(np.float64)
    all_targets = np.asarray(one_hot(LABELS, 3), np.float64)
    module, ascent = Small(), optax.sgd(0.1, momentum=0.5)
    learner = distill.FRePo(module, pool=2, max_steps=2, optimizer=ascent, ridge=1e-2)
    support = distill.Support(init=images[:3])
    other = jax.random.key(2)
    made = frepo(learner, images=images, support=support, steps=5, key=other, session=Session(log_every=1))

    key = jax.random.fold_in(jax.random.split(other)[1], 2**31 - 1)
    keys = jax.random.split(jax.random.fold_in(key, 2**31 - 1), 2)
    pool = [module.init(each, images[:1]) for each in keys]
    states, ages = [ascent.init(one["params"]) for one in pool], [0, 1]

    @jax.jit
    def loss(x, y, variables):
        phi, psi = (module.apply(variables, each, method="features") / 7**0.5 for each in (x, images))
        gram = phi @ phi.T
        weights = jnp.linalg.solve(gram + 1e-2 * jnp.trace(gram) / 3 * jnp.eye(3), y)
        return 0.5 * jnp.mean(jnp.sum((psi @ phi.T @ weights - all_targets) ** 2, axis=1))

    def slope(function, at):
        slopes = np.zeros_like(at)
        for index in np.ndindex(*at.shape):
            change = np.zeros_like(at)
            change[index] = 1e-5
            slopes[index] = (function(at + change) - function(at - change)) / 2e-5
        return slopes

    x, y, losses, drawn = images[:3].copy(), np.asarray(one_hot(np.arange(3), 3), np.float64), [], []
    for step in range(5):
        which = int(jax.random.randint(jax.random.fold_in(key, 2 * step), (), 0, 2))
        drawn.append(which)
        losses.append(float(loss(x, y, pool[which])))
        network = pool[which]
        change_x = slope(lambda x, y=y, network=network: loss(x, y, network), x)
        change_y = slope(lambda y, x=x, network=network: loss(x, y, network), y)
        x, y = x - 0.5 * change_x, y - 0.5 * change_y

        def fit(params, x=x, y=y):
            return 0.5 * jnp.mean(jnp.sum((module.apply({"params": params}, x) - y) ** 2, axis=1))

        params = pool[which]["params"]
        updates, states[which] = ascent.update(jax.grad(fit)(params), states[which], params)
        pool[which], ages[which] = {"params": optax.apply_updates(params, updates)}, ages[which] + 1
        if ages[which] == 2:
            pool[which] = module.init(jax.random.fold_in(key, 2 * step + 1), images[:1])
            states[which], ages[which] = ascent.init(pool[which]["params"]), 0
    assert len(set(drawn)) == 2
    np.testing.assert_allclose(made.history["loss"], losses, rtol=1e-6)
    np.testing.assert_allclose(made.images, x, atol=1e-6)
    np.testing.assert_allclose(made.labels, y, atol=1e-6)


@pytest.mark.slow
def test_interrupted_and_resumed_equals_undisturbed(tmp_path):
    learner = distill.FRePo(networks.standard_convnet(3, width=4, depth=1), pool=2, max_steps=3)
    images = IMAGES.reshape(-1, 2, 2, 1)
    options = {"images": images, "steps": 8, "targets": distill.Targets(batch=12)}
    check_resumption(functools.partial(frepo, learner, **options), images, tmp_path)


@pytest.mark.slow
def test_beats_real_images_on_digits():
    """By a network that is trained on the set from its initialization, and by a kernel."""
    digits = data.load("digits")
    pixels = data.Standardize.fit(digits.train.images)
    train, test = pixels.transform(digits.train.images), pixels.transform(digits.test.images)

    class Wide(nn.Module):
        def setup(self):
            self.first, self.last = nn.Dense(128), nn.Dense(10)

        def features(self, x):
            return nn.relu(self.first(x.reshape(len(x), -1)))

        def __call__(self, x):
            return self.last(self.features(x))

    module = Wide()

    def accuracy(steps):
        made = distill.distill(
            distill.FRePo(module, pool=4, ridge=1e-2),
            train,
            digits.train.labels,
            per_class=1,
            steps=steps,
            key=KEY,
            optimizer=networks.adam(0.05, decay_over=300),
            targets=distill.Targets(batch=256),
        )
        trained = networks.train(module, made.images, made.labels, key=KEY, steps=300, optimizer=networks.sgd(0.1))
        # And by a kernel that it has never met.
        model = regression.fit(ntkit.ntk(ntkit.fc(1)), made.images, made.labels, 1e-4)
        return np.array([data.accuracy(each, test, digits.test.labels) for each in (trained, model)])

    real, distilled = accuracy(0), accuracy(300)
    print(real, distilled)
    assert (distilled > real + 0.15).all()
    assert distilled[1] > 0.88


def test_the_standard_network():
    module = networks.standard_convnet(10, width=5, depth=2)
    x = np.random.default_rng(0).uniform(size=(3, 9, 8, 2)).astype(np.float32)
    network = networks.initialize(module, x, key=KEY)
    hidden = x
    for i in range(2):
        layer, norm = (network.variables["params"][f"{name}_{i}"] for name in ("convolutions", "norms"))
        hidden = jax.lax.conv_general_dilated(
            hidden, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = np.asarray(hidden + layer["bias"])
        mean, variance = hidden.mean(axis=(1, 2), keepdims=True), hidden.var(axis=(1, 2), keepdims=True)
        hidden = np.maximum((hidden - mean) / np.sqrt(variance + 1e-6) * norm["scale"] + norm["bias"], 0)
        rows, columns = (size // 2 * 2 for size in hidden.shape[1:3])
        hidden = hidden[:, :rows, :columns].reshape(3, rows // 2, 2, columns // 2, 2, -1).mean(axis=(2, 4))
    hidden = hidden.reshape(3, -1)
    features = module.apply(network.variables, x, method="features")
    np.testing.assert_allclose(features, hidden, atol=1e-5)
    readout = network.variables["params"]["readout"]
    np.testing.assert_allclose(network(x), hidden @ readout["kernel"] + readout["bias"], atol=1e-5)
    with pytest.raises(ValueError, match="at least 4 pixels in both"):
        networks.initialize(module, x[:, :3], key=KEY)


@pytest.mark.parametrize("name", ["fc", "convnet", "simple_cnn", "alexnet"])
def test_networks_give_their_last_hidden_values(name):
    """Which the readout makes outputs of."""
    modules = {"fc": ntkit.fc(2, b_std=None).flax(3, 5), "convnet": ntkit.convnet(1, b_std=None).flax(3, 5)}
    module = modules[name] if name in modules else getattr(networks, name)(3, width=4)
    x = np.random.default_rng(0).uniform(size=(3, 8, 8, 2)).astype(np.float32)
    variables = module.init(KEY, x)
    features = module.apply(variables, x, method="features")
    kernels_ = [leaf for leaf in jax.tree.leaves(variables) if leaf.shape == (features.shape[1], 3)]
    (readout,) = kernels_
    scale = 2**0.5 / features.shape[1] ** 0.5 if name in modules else 1.0
    np.testing.assert_allclose(module.apply(variables, x), scale * features @ readout, rtol=1e-4, atol=1e-5)


def test_the_kernel_of_given_features(monkeypatch):
    module = Small()
    variables = module.init(KEY, IMAGES[:1])

    def last_hidden(variables, x):
        return module.apply(variables, x, method="features")

    kernel = kernels.kernel_of_features(last_hidden, variables)
    features = np.asarray(last_hidden(variables, IMAGES))
    np.testing.assert_allclose(kernel(IMAGES), features @ features.T / 7, rtol=1e-5, atol=1e-6)
    model = regression.fit(kernel, IMAGES, np.asarray(one_hot(LABELS, 3)), 1e-3)
    assert data.accuracy(model, IMAGES, LABELS) > 0.9
    monkeypatch.setattr(memory, "BLOCK", 4 * 4 * 7 * 13)
    parts = kernels.kernel_of_features(last_hidden, variables)
    # Thirteen inputs at a time.
    assert "length=5" in str(jax.make_jaxpr(parts.gram_features)(IMAGES))
    np.testing.assert_allclose(parts.features(IMAGES), kernel.features(IMAGES), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"function: got outputs of shape \(1,\)"):
        kernels.kernel_of_features(lambda _, x: x[:, 0])(IMAGES)
    with pytest.raises(ValueError, match="function: got 3, expected a function"):
        kernels.kernel_of_features(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": nn.Dense(3)}, "module: got .*, expected a flax module with a method `features`"),
        ({"module": Small}, "module: got the class Small, expected"),
        ({"pool": 0}, "pool: got 0, expected"),
        ({"max_steps": 2.5}, "max_steps: got 2.5, expected"),
        ({"optimizer": "adam"}, "optimizer: got 'adam', expected an optax"),
        ({"ridge": np.nan}, "ridge: got nan, expected"),
    ],
)
def test_bad_fields(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        distill.FRePo(**{"module": Small()} | change)


def test_another_number_of_outputs():
    with pytest.raises(ValueError, match="module: got one of 4 outputs, expected 3"):
        frepo(distill.FRePo(Small(4)))
