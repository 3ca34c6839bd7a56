import dataclasses
import signal

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntkit
from ntkit import attacks, data, networks, regression
from ntkit.attacks import PGD, Linf
from ntkit.data import Standardize, one_hot
from ntkit.runs import Interrupted, Run
from tests import flat

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype("f")
Y = np.sin(X[:, :1] * np.array([1.0, 2.0], np.float32))
TEST = RNG.normal(size=(20, 3)).astype("f")
KEY = jax.random.key(0)


def test_it_learns() -> None:
    module = ntkit.fc(1).flax(2, 64)
    network = flat.train(module, X, Y, key=KEY, steps=300, learning_rate=0.1)
    assert network.losses.shape == (300,)
    assert network.initial is None
    assert network.losses[-1] < 1e-3 * network.losses[0]
    np.testing.assert_allclose(network(X), Y, atol=0.1)
    # The first loss is that of the network as initialized.
    again = flat.train(module, X, Y, key=KEY, steps=300, learning_rate=0.1)
    np.testing.assert_array_equal(network.losses, again.losses)
    np.testing.assert_allclose(jax.jit(lambda model, x: model(x))(network, TEST), network(TEST), rtol=1e-5, atol=1e-5)
    labels = np.asarray(Y.argmax(1))
    assert data.accuracy(network, X, labels) == np.mean(network(X).argmax(1) == labels)


def test_batches() -> None:
    module = ntkit.fc(1).flax(2, 64)
    network = flat.train(module, X, Y, key=KEY, steps=300, learning_rate=0.1, batch_size=3)
    assert np.mean((network(X) - Y) ** 2) < 0.05
    assert len(np.unique(network.losses[:5])) == 5


def test_centred_starts_from_zero() -> None:
    module = ntkit.fc(1, b_std=1.0).flax(2, 64)
    network = flat.train(module, X, Y, key=KEY, steps=300, learning_rate=0.1, centred=True)
    np.testing.assert_allclose(network.losses[0], 0.5 * np.mean(np.sum(Y**2, 1)), rtol=1e-5)
    np.testing.assert_allclose(network(X), Y, atol=0.1)
    initial = module.apply(network.initial, TEST)
    np.testing.assert_allclose(network(TEST) + initial, module.apply(network.variables, TEST), atol=1e-4)
    assert len(jax.tree.leaves(network)) == 2 * len(jax.tree.leaves(network.variables))


@pytest.mark.slow
def test_a_wide_centred_network_is_kernel_regression() -> None:
    architecture = ntkit.fc(1, b_std=0.5)
    expected = regression.fit(ntkit.ntk(architecture), X, Y)(TEST)
    module = architecture.flax(2, 1024)

    def error(centred: bool) -> float:
        network = flat.train(module, X, Y, key=KEY, steps=300, learning_rate=0.03, centred=centred)
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
        ({"loss": "hinge"}, "loss: got 'hinge', expected one of 'mse', 'cross_entropy', or a function"),
        ({"optimizer": "lbfgs"}, "optimizer: got 'lbfgs', expected an optax.GradientTransformation"),
        ({"log_every": 0}, "log_every: got 0, expected an integer of at least 1"),
        ({"checkpoint_every": -1.0}, "checkpoint_every: got -1.0, expected at least 0 seconds"),
        ({"adversary": PGD(Linf(0.1))}, "images: got values from .* expected pixels within"),
        ({"module": nn.Sequential([nn.BatchNorm(False), nn.Dense(2)])}, "module: got one with .*batch_stats"),
        ({"module": "vgg11"}, "module: got 'vgg11', expected a flax.linen module"),
    ],
)
def test_bad_arguments(change, message: str) -> None:
    arguments = {"module": ntkit.fc(1).flax(2, 64), "images": X, "targets": Y, "key": KEY, "steps": 1} | change
    with pytest.raises(ValueError, match=message) as caught:
        flat.train(**arguments)
    assert "\n" not in str(caught.value)


def test_divergence_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match=r"training diverged: the loss is (nan|inf) by step 50"):
        flat.train(ntkit.fc(1).flax(2, 64), X, Y, key=KEY, steps=50, learning_rate=1e30)


def test_sgd_is_gradient_descent() -> None:
    network = flat.train(
        ntkit.fc(0).flax(2), X, Y, key=KEY, steps=20, optimizer="sgd", learning_rate=0.1, schedule="constant"
    )
    start = flat.train(ntkit.fc(0).flax(2), X, Y, key=KEY, steps=1, optimizer="sgd", learning_rate=1e-12)
    layer = start.variables["params"]["Affine_0"]
    weights, bias = np.float64(layer["linear"]["kernel"]), np.float64(layer["bias"])
    scale, offset = 2**0.5 / 3**0.5, 0.1
    for expected in network.losses:
        error = scale * X @ weights + offset * bias - Y
        np.testing.assert_allclose(expected, 0.5 * np.mean(np.sum(error**2, axis=1)), rtol=1e-4)
        weights -= 0.1 * scale * X.T @ error / len(X)
        bias -= 0.1 * offset * error.mean(axis=0)
    np.testing.assert_allclose(network(X), scale * X @ weights + offset * bias, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_wide_sgd_is_the_flow() -> None:
    architecture, rate, steps = ntkit.fc(1, b_std=0.5), 0.02, 100
    network = flat.train(
        architecture.flax(2, 4096), X, Y, key=KEY, steps=steps, optimizer="sgd", learning_rate=rate,
        schedule="constant", centred=True,
    )  # fmt: skip
    kernel = ntkit.ntk(architecture)
    expected = regression.flow(kernel, X, Y, rate * steps * Y.shape[1])(TEST)
    error = float(jnp.linalg.norm(network(TEST) - expected) / jnp.linalg.norm(expected))
    half = regression.flow(kernel, X, Y, rate * steps)(TEST)
    assert error < 0.05 < float(jnp.linalg.norm(half - expected) / jnp.linalg.norm(expected))


@pytest.mark.slow
def test_cross_entropy() -> None:
    module = ntkit.fc(1).flax(2, 64)
    network = flat.train(module, X, Y, key=KEY, steps=200, learning_rate=0.03, loss="cross_entropy")
    outputs = np.float64(module.apply(flat.train(module, X, Y, key=KEY, steps=1).variables, X))
    labels = Y.argmax(axis=1)
    # One step of 1e-3 does not change much.
    expected = np.mean(np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(8), labels])
    np.testing.assert_allclose(network.losses[0], expected, rtol=0.05)
    assert data.accuracy(network, X, labels) == 1
    signs = np.where(labels == 1, 1, -1)
    one = flat.train(
        ntkit.fc(1).flax(1, 64), X, np.float32(signs)[:, None], key=KEY, steps=200, learning_rate=0.03,
        loss="cross_entropy",
    )  # fmt: skip
    assert data.accuracy(one, X, signs) == 1
    own = flat.train(module, X, Y, key=KEY, steps=5, loss=lambda f, y: jnp.mean(jnp.abs(f - y)))
    np.testing.assert_allclose(own.losses[0], np.mean(np.abs(outputs - Y)), rtol=0.05)


def test_an_epoch_has_each_image_once() -> None:
    # Of one output that does not depend on the image, the loss of a step says which images it saw.
    y = np.float32(2.0 ** np.arange(8))[:, None]
    constant = flat.train(
        ntkit.fc(0, W_std=0.0, b_std=0.0).flax(1), X, y, key=KEY, steps=8, batch_size=2, loss=lambda f, y: jnp.sum(y)
    )
    for epoch in (constant.losses[:4], constant.losses[4:]):
        assert np.sum(epoch) == 255
        assert all(int(seen).bit_count() == 2 for seen in epoch)
    assert not np.array_equal(constant.losses[:4], constant.losses[4:])


def test_history_and_networks_on_the_way() -> None:
    seen = []

    def evaluate(network: networks.TrainedNetwork) -> dict[str, float]:
        seen.append(network)
        return {"norm": float(jnp.linalg.norm(network(TEST)))}

    module = ntkit.fc(1).flax(2, 64)
    network = flat.train(module, X, Y, key=KEY, steps=25, schedule="constant", log_every=10, evaluate=evaluate)
    np.testing.assert_array_equal(network.history["step"], [10, 20, 25])
    means = [network.losses[:10].mean(), network.losses[10:20].mean(), network.losses[20:].mean()]
    np.testing.assert_allclose(network.history["loss"], means, rtol=1e-5)
    assert 0 <= network.history["accuracy"].min() <= network.history["accuracy"].max() <= 1
    # Each is still the network of its time.
    shorter = flat.train(module, X, Y, key=KEY, steps=10, schedule="constant")
    np.testing.assert_array_equal(seen[0](TEST), shorter(TEST))
    np.testing.assert_allclose(network.history["norm"], [float(jnp.linalg.norm(one(TEST))) for one in seen])


class Mutable(nnx.Module):
    """A network as flax.nnx writes it."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, width, rngs=rngs)
        self.second = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class Dropout(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(x))


class Outputs(nn.Module):
    """A network whose outputs are something else."""

    kind: str

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(2)(x)
        return {
            "tuple": (h, h),
            "dict": {"a": h},
            "row": h[:, 0],
            "number": h.sum(),
            "images": h[:, None, None],
            "bool": h > 0,
        }[self.kind]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Mutable(4, nnx.Rngs(0)),
            r"got Mutable, a flax.nnx module, .* flax.nnx.bridge.to_linen\(Mutable, …\) makes one",
        ),
        (Mutable, "got Mutable, a flax.nnx module"),
        (Dropout(), "got a network that draws random numbers or changes its state .*InvalidRngError"),
        (Dropout, "got the class Dropout, expected a flax.linen module"),
        (lambda x: x, "got <function .*, expected a flax.linen module, or an object with its init and apply"),
        (Outputs("tuple"), "got a tuple as outputs, expected an array"),
        (Outputs("dict"), "got a dict as outputs"),
        (Outputs("row"), r"got outputs of shape \(1,\) for one input"),
        (Outputs("number"), r"got outputs of shape \(\)"),
        (Outputs("images"), r"got outputs of shape \(1, 1, 1, 2\)"),
        (Outputs("bool"), "got outputs of dtype bool, expected floats"),
    ],
)
def test_what_is_no_network_to_train(module, message: str) -> None:
    doors = [
        lambda: flat.train(module, X, Y, key=KEY, steps=1),
        lambda: networks.initialize(module, X, key=KEY),
        lambda: networks.kernel_dynamics(module, X, Y, sample=X, key=KEY, at=(0, 1)),
        lambda: networks.convergence(module, X, Y, key=KEY, at=(0, 1)),
    ]
    for door in doors:
        with pytest.raises(ValueError, match="^module: " + message):
            door()


@dataclasses.dataclass
class Scaled:
    """A function with an array and equality of its own, so that it cannot be hashed."""

    scale: jax.Array

    def __call__(self, first, second):
        if jnp.issubdtype(first.dtype, jax.dtypes.prng_key):
            return self.scale * second
        return self.scale * jnp.mean((first - second) ** 2)


def test_functions_that_cannot_be_hashed() -> None:
    setting = {"module": ntkit.fc(1).flax(2, 4), "images": X, "targets": Y, "key": KEY, "steps": 2}
    found = flat.train(**setting, augment=Scaled(jnp.ones(())), loss=Scaled(jnp.full((), 2.0)))
    expected = flat.train(**setting, loss=lambda outputs, targets: 2 * jnp.mean((outputs - targets) ** 2))
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-6)
    # A list makes such a module, in a layout that is usual.
    module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    network = flat.train(**setting | {"module": module, "steps": 100, "learning_rate": 0.1})
    assert network.losses[-1] < 0.1 * network.losses[0]
    assert attacks.FGSM(Linf(0.1))(network, np.abs(X) / 4, np.zeros(8, int)).shape == X.shape
    assert ntkit.empirical_ntk(module.apply, network.variables)(X).shape == (8, 8)
    assert networks.linearize(network)(X).shape == Y.shape


def test_a_network_of_nnx_by_its_bridge() -> None:
    network = flat.train(nnx.bridge.to_linen(Mutable, 32), X, Y, key=KEY, steps=300, learning_rate=0.1)
    assert network.losses[-1] < 1e-2 * network.losses[0]
    assert attacks.FGSM(Linf(0.1))(network, np.abs(X) / 4, np.zeros(8, int)).shape == X.shape


@pytest.mark.parametrize("name", ["lbfgs", "polyak_sgd"])
def test_optimizers_that_ask_for_the_loss(name: str) -> None:
    module = ntkit.fc(1).flax(2, 16)
    start = networks.initialize(module, X, key=KEY)
    optimizer = getattr(optax, name)()
    network = flat.train(start, X, Y, key=KEY, steps=20, optimizer=optimizer)

    # The same by hand, one step after the other.
    def loss(params):
        return 0.5 * jnp.mean(jnp.sum((module.apply({"params": params}, X) - Y) ** 2, axis=1))

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        more = {"value": value, "grad": gradient, "value_fn": loss}
        updates, state = optimizer.update(gradient, state, params, **more)
        return optax.apply_updates(params, updates), state, value

    params, losses = start.variables["params"], []
    state = optimizer.init(params)
    for _ in range(20):
        params, state, value = step(params, state)
        losses.append(value)
    np.testing.assert_allclose(network.losses[:10], losses[:10], rtol=1e-3)
    assert network.losses[-1] < 0.1 * network.losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sgd"}, "another optimizer"),
        ({"optimizer": optax.lbfgs()}, "another optimizer"),
        ({"steps": 8}, "another number of steps"),
        ({"module": ntkit.fc(1).flax(2, 9)}, "another module"),
        ({"module": ntkit.fc(2).flax(2, 8)}, "another optimizer and another module"),
    ],
)
def test_resumed_with_other_arguments(change, message: str, tmp_path) -> None:
    setting = {"module": ntkit.fc(1).flax(2, 8), "images": X, "targets": Y, "key": KEY, "steps": 4}
    run = Run.create(tmp_path / "run", {})
    flat.train(**setting, run=run)
    with pytest.raises(ValueError, match=rf"^run: got '.*run', which was begun with {message}, expected the arguments"):
        flat.train(**setting | change, run=Run.resume(run.path))
    assert len(flat.train(**setting, run=Run.resume(run.path)).losses) == 4


IMAGES = RNG.uniform(0.2, 0.8, (12, 8, 8, 1)).astype("f")
LABELS = np.arange(12) % 3
CONVOLUTIONAL = {
    "module": ntkit.conv(1).flax(3, 4),
    "images": IMAGES,
    "targets": one_hot(LABELS, 3),
    "key": KEY,
    "steps": 23,
    "log_every": 5,
    "batch_size": 6,
    "augment": lambda key, x: x + 0.01 * jax.random.normal(key, x.shape),
    "centred": True,
}
VECTORS = CONVOLUTIONAL | {"module": ntkit.fc(1).flax(3, 4)}


@pytest.mark.parametrize("setting", [CONVOLUTIONAL, VECTORS], ids=["convolutions", "vectors"])
def test_interrupted_and_resumed_equals_undisturbed(setting, tmp_path) -> None:
    undisturbed = flat.train(**setting)
    run = Run.create(tmp_path / "run", {})
    calls = []

    def evaluate(network):
        calls.append(network)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted, match=r"stopped after 10 of 23 steps, saved in .*run"):
        flat.train(**setting, run=run, evaluate=evaluate)
    resumed = flat.train(**setting, run=Run.resume(run.path))
    np.testing.assert_array_equal(resumed.losses, undisturbed.losses)
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(undisturbed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.array_equal(resumed.history[name], undisturbed.history[name]) for name in undisturbed.history)


def test_step_by_step_is_the_loop(monkeypatch) -> None:
    one_by_one = flat.train(**CONVOLUTIONAL)
    monkeypatch.setattr(networks.training, "slow_in_loops", lambda *arguments: False)
    looped = flat.train(**CONVOLUTIONAL)
    np.testing.assert_allclose(one_by_one.losses, looped.losses, rtol=1e-4)
    np.testing.assert_allclose(one_by_one(IMAGES), looped(IMAGES), rtol=1e-3, atol=1e-4)


def test_the_adversary_gets_pixels_and_the_network_what_is_made_of_them() -> None:
    preprocessing = Standardize.fit(IMAGES)
    seen = []

    def adversary(model, x, labels, key):
        jax.debug.callback(lambda *values: seen.append(values), x, labels, model(x))
        return x

    setting = VECTORS | {"augment": None, "steps": 1, "batch_size": None, "images": IMAGES, "centred": False}
    pixels = data.of_pixels(setting["module"], preprocessing)
    attacked = flat.train(**setting | {"module": pixels}, adversary=adversary)
    jax.effects_barrier()
    x, labels, outputs = seen[0]
    np.testing.assert_array_equal(x, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    plain = flat.train(**setting | {"images": preprocessing.transform(IMAGES)})
    np.testing.assert_allclose(attacked.losses, plain.losses, rtol=1e-5)
    np.testing.assert_allclose(attacked(IMAGES), plain(preprocessing.transform(IMAGES)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        0.5 * np.mean(np.sum((outputs - one_hot(LABELS, 3)) ** 2, axis=1)), plain.losses[0], rtol=1e-5
    )


@pytest.mark.slow
def test_adversarial_training_makes_robust() -> None:
    digits = ntkit.data.load("digits")
    x, labels = digits.train.images[:400], digits.train.labels[:400]
    test, truth = digits.test.images[:200], digits.test.labels[:200]
    ball = Linf(0.15)
    setting = {"module": ntkit.fc(1).flax(10, 128), "images": x, "targets": one_hot(labels, 10), "key": KEY}
    setting |= {"steps": 300, "learning_rate": 0.01, "loss": "cross_entropy", "batch_size": 100}
    plain = flat.train(**setting)
    robust = flat.train(**setting, adversary=PGD(ball, steps=5, stop_early=False))

    def under_attack(network) -> float:
        attacked = attacks.PGD(ball, steps=20)(network, test, truth, key=KEY)
        return data.accuracy(network, attacked, truth)

    before, after = under_attack(plain), under_attack(robust)
    print(before, after, data.accuracy(plain, test, truth), data.accuracy(robust, test, truth))
    assert after > before + 0.2
    assert data.accuracy(robust, test, truth) > 0.8
