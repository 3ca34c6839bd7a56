"""What may be a model: pytrees with functions among their leaves, as of Equinox, and what is refused."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit import attacks, data
from ntkit.attacks import APGD, FAB, FGSM, PGD, AutoAttack, Linf, Square
from ntkit.data import Standardize, of_pixels
from tests.attacks.models import IMAGES, D, predicted

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)
X = IMAGES[:8]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """Everything is a leaf, as in an Equinox module: arrays, a function, flags, numbers of loops."""

    weights: Any
    activation: Any
    training: bool = False
    power: int = 1
    name: str = "layer"

    def __call__(self, x):
        assert not self.training  # fails where a flag is traced
        for _ in range(self.power):
            x = self.activation(x @ self.weights)
        return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Network:
    layers: list[Any]

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = layer(x)
        return x


def network(activation=jnp.tanh, scale: float = 1.0) -> Network:
    first, second, third = (RNG.normal(size=shape).astype("f") for shape in ((D, 6), (6, 6), (6, 4)))
    return Network([Layer(scale * first, activation), Layer(second, activation, power=2), lambda x: x @ third])


MODEL = network()
LABELS = predicted(MODEL, X)


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (FGSM, {}),
        (PGD, {"steps": 3}),
        (APGD, {"steps": 3}),
        (FAB, {"steps": 3}),
        (Square, {"queries": 20}),
    ],
)
def test_a_pytree_with_functions_is_attacked_as_the_function_that_it_is(attack, options) -> None:
    adversary = attack(Linf(0.2), **options)
    expected = adversary(lambda x: MODEL(x), X, LABELS, key=KEY)
    assert np.any(expected != X)
    np.testing.assert_allclose(adversary(MODEL, X, LABELS, key=KEY), expected, atol=1e-6)


def test_it_is_compiled_anew_for_its_functions_and_not_for_its_arrays() -> None:
    traced = []

    def activation(x):
        traced.append(x)
        return jnp.tanh(x)

    one, two = network(activation), network(activation, -1.0)
    found = [attacks.FGSM(Linf(0.1))(model, X, LABELS) for model in (one, two)]
    count = len(traced)
    again = [attacks.FGSM(Linf(0.1))(model, X, LABELS) for model in (one, two)]
    assert len(traced) == count
    np.testing.assert_array_equal(found, again)
    assert np.any(found[0] != found[1])
    relu = Network([dataclasses.replace(one.layers[0], activation=jax.nn.relu), *one.layers[1:]])
    np.testing.assert_array_equal(
        attacks.FGSM(Linf(0.1))(relu, X, LABELS), attacks.FGSM(Linf(0.1))(lambda x: relu(x), X, LABELS)
    )


def test_whatever_takes_models_takes_it() -> None:
    assert data.accuracy(MODEL, X, LABELS) == 1
    found = attacks.evaluate(MODEL, X, LABELS, AutoAttack(Linf(0.3), steps=3, queries=20))
    assert found.clean == 1
    assert found.worst < 1
    preprocessing = Standardize.fit(X)
    pixels = of_pixels(MODEL, preprocessing)
    labels = predicted(pixels, X)
    np.testing.assert_allclose(
        attacks.FGSM(Linf(0.1))(pixels, X, labels),
        attacks.FGSM(Linf(0.1))(lambda x: MODEL(preprocessing.transform(x)), X, labels),
        atol=1e-6,
    )

    @jax.jit
    def inside(weights):
        model = Network([dataclasses.replace(MODEL.layers[0], weights=weights), *MODEL.layers[1:]])
        return attacks.FGSM(Linf(0.1))(model, X, LABELS)

    np.testing.assert_allclose(inside(MODEL.layers[0].weights), attacks.FGSM(Linf(0.1))(MODEL, X, LABELS), atol=1e-6)


def test_a_pytree_that_jax_cannot_compare() -> None:
    @jax.tree_util.register_pytree_node_class
    class Unhashable:
        def __call__(self, x):
            return MODEL(x)

        def tree_flatten(self):
            return (), {"a": "dictionary"}

        @classmethod
        def tree_unflatten(cls, structure, leaves):
            return cls()

    np.testing.assert_allclose(
        attacks.FGSM(Linf(0.1))(Unhashable(), X, LABELS), attacks.FGSM(Linf(0.1))(MODEL, X, LABELS), atol=1e-6
    )


def test_losses_that_cannot_be_hashed() -> None:
    @dataclasses.dataclass
    class Negative:
        scale: jax.Array

        def __call__(self, outputs, classes):
            return -self.scale * outputs[jnp.arange(len(outputs)), classes]

    loss = Negative(jnp.ones(()))
    expected = attacks.FGSM(Linf(0.1), loss=lambda outputs, classes: loss(outputs, classes))(MODEL, X, LABELS)
    np.testing.assert_array_equal(attacks.FGSM(Linf(0.1), loss=loss)(MODEL, X, LABELS), expected)
    adversary = FGSM(Linf(0.1), loss=loss)
    assert isinstance(hash(adversary), int)
    np.testing.assert_array_equal(adversary(MODEL, X, LABELS, key=KEY), expected)


class Dropout(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1)))


class BatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.BatchNorm(use_running_average=False)(x.reshape(len(x), -1)))


class Mutable(nnx.Module):
    def __init__(self) -> None:
        self.dense = nnx.Linear(D, 4, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.dense(self.dropout(x.reshape(len(x), -1)))


@pytest.mark.parametrize("module", [Dropout(), BatchNorm(), Mutable()], ids=lambda module: type(module).__name__)
def test_networks_as_they_train(module) -> None:
    if isinstance(module, nnx.Module):
        model = module
    else:
        variables = module.init({"params": KEY, "dropout": KEY}, X)

        def model(x):
            return module.apply(variables, x)

    message = "^model: got a network that draws random numbers or changes its state .*, expected it as it is evaluated"
    with pytest.raises(ValueError, match=message):
        attacks.PGD(Linf(0.1))(model, X, LABELS, key=KEY)
    if isinstance(module, nnx.Module):
        module.eval()
        assert attacks.PGD(Linf(0.1))(model, X, LABELS, key=KEY).shape == X.shape
    else:
        with pytest.raises(ValueError, match=message):
            data.accuracy(model, X, LABELS)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: (MODEL(x), x), "model: got a tuple as outputs"),
        (lambda x: {"logits": MODEL(x)}, "model: got a dict as outputs"),
        (lambda x: MODEL(x)[:, 0], r"model: got outputs of shape \(8,\) for 8 inputs"),
        (lambda x: MODEL(x)[:, None, None], r"model: got outputs of shape \(8, 1, 1, 4\)"),
        (lambda x: MODEL(x).sum(), r"model: got outputs of shape \(\)"),
        (lambda x: MODEL(x) > 0, "model: got outputs of dtype bool"),
    ],
)
def test_models_whose_outputs_are_none(outputs, message) -> None:
    with pytest.raises(ValueError, match=message + r".*, expected .*"):
        attacks.FGSM(Linf(0.1))(outputs, X, LABELS)
