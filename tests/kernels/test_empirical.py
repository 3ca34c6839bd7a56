"""The tangent kernel of finite networks, against neural-tangents, finite differences, and the closed form."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntkit
from ntkit import _neural_tangents as nt
from ntkit.kernels import empirical, memory
from tests import flat

OUTPUTS = 3


class Usual(nn.Module):
    """Flax's usual layers, one weight that is used twice, and products in places other than layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=(2, 1), padding="VALID")(x)
        x = nn.gelu(nn.LayerNorm()(x))
        x = nn.Conv(4, (3, 2), feature_group_count=2)(x)
        x = nn.max_pool(nn.relu(nn.GroupNorm(2)(x)), (2, 2))
        h = nn.MultiHeadDotProductAttention(2)(x.reshape(len(x), -1, 4))
        h = nn.Dense(5)(h) * self.param("gain", nn.initializers.normal(1.0), (5,))
        twice = nn.Dense(5)
        return nn.Dense(OUTPUTS)(twice(jnp.tanh(twice(h))).mean(1))


class Normalized(nn.Module):
    """Batch normalization as it is after training, by statistics that are no parameters."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(6)(x.reshape(len(x), -1)))
        return nn.Dense(OUTPUTS, use_bias=False)(nn.relu(x))


def plain(params, x):
    """A function that is no flax module: weights on the left, scaled, turned, and shifted by constants."""
    first, second, offset = params
    h = jnp.tanh(jnp.einsum("od,nd->on", 0.5 * first / 3.0 - 0.1, x.reshape(len(x), -1)))
    return (second.T[:, ::-1] @ h).T + jnp.sum(offset**2)


def networks():
    rng = np.random.default_rng(5)
    params = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 84), (4, OUTPUTS), (2,)))
    params = (params[0], params[1][:, :], params[2])
    return {
        "fc": ntkit.fc(2).flax(num_outputs=OUTPUTS, width=8),
        "convnet": ntkit.convnet(1).flax(num_outputs=OUTPUTS, width=5),
        "simple_cnn": ntkit.networks.simple_cnn(OUTPUTS, width=3),
        "usual": Usual(),
        "normalized": Normalized(),
        "plain": params,
    }


def inputs(seed: int, n: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 7, 6, 2)), jnp.float32)


def network(name: str):
    """A network as a function, its variables, and the function of what is trained."""
    given = networks()[name]
    if isinstance(given, tuple):
        return plain, given, plain, given
    variables = jax.jit(given.init)(jax.random.key(1), inputs(0, 1))
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    others = {key: value for key, value in variables.items() if key != "params"}
    return given.apply, variables, lambda p, x: given.apply({"params": p, **others}, x), variables["params"]


def jacobian_gram(function, params, x1, x2) -> np.ndarray:
    """All of Θ, by the Jacobians in full, in float64."""

    def rows(x):
        found = jax.jit(jax.jacobian(function))(params, x)
        return np.concatenate(
            [np.asarray(leaf, np.float64).reshape(len(x), OUTPUTS, -1) for leaf in jax.tree.leaves(found)], 2
        )

    return np.einsum("ncp,mdp->nmcd", rows(x1), rows(x2))


def close(found, expected, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(np.asarray(expected)).max())


SLOW = ("usual", "simple_cnn", "convnet", "fc")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in networks()])
def test_is_the_gram_matrix_of_the_jacobian(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_fn, variables, function, params = network(name)
    x1, x2 = inputs(1, 4), inputs(2, 3)
    expected = jacobian_gram(function, params, x1, x2)
    kernel = ntkit.empirical_ntk(apply_fn, variables)
    close(kernel.full(x1, x2), expected)
    close(kernel(x1, x2), np.trace(expected, axis1=2, axis2=3) / OUTPUTS)
    close(ntkit.empirical_ntk(apply_fn, variables, output=1)(x1, x2), expected[:, :, 1, 1])
    v = np.random.default_rng(3).normal(size=(3, 2)).astype("f")
    one = ntkit.empirical_ntk(apply_fn, variables, output=1)
    for cost in (empirical.PASS, 0)[name in SLOW :]:  # of few images tiles are cheaper
        monkeypatch.setattr(empirical, "PASS", cost)
        close(kernel.matmul(x1, x2, v), kernel(x1, x2) @ v)
        close(one.matmul(x1, x2, v), one(x1, x2) @ v)
    w = np.random.default_rng(4).normal(size=(3, OUTPUTS)).astype("f")
    close(kernel.full_product(x1, x2, w), np.einsum("nmcd,md->nc", expected, w))
    own = np.asarray(kernel(x1))
    np.testing.assert_array_equal(own, own.T)
    close(kernel.diagonal(x1), np.diag(own))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fc", "convnet"])
def test_agrees_with_neural_tangents(name: str) -> None:
    pytest.importorskip("neural_tangents")
    apply_fn, variables, function, params = network(name)
    x1, x2 = inputs(1, 4), inputs(2, 3)
    kernel = ntkit.empirical_ntk(apply_fn, variables)
    for axes, found in (((), kernel.full(x1, x2)), ((-1,), kernel(x1, x2))):
        close(found, nt.empirical_ntk_fn(function, trace_axes=axes, vmap_axes=0)(x1, x2, params))


def test_derivatives_are_those_of_finite_differences(x64: None) -> None:
    params = networks()["plain"]
    x = np.asarray(inputs(1, 2), np.float64)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    step = 1e-6

    def difference(i):
        move = step * (jnp.arange(len(flat)) == i)
        return (plain(unravel(flat + move), x) - plain(unravel(flat - move), x)) / (2 * step)

    rows = jnp.stack([difference(i) for i in range(len(flat))], -1)
    close(ntkit.empirical_ntk(plain, params).full(x), jnp.einsum("ncp,mdp->nmcd", rows, rows), 1e-8)


# Of the parameters, of what the network computes with, of what it gives; of inputs in float32.
PRECISIONS = {
    "bfloat16 parameters": ("bfloat16", None, "float32"),
    "bfloat16 outputs": ("float32", None, "bfloat16"),
    "float16 outputs of bfloat16 parameters": ("bfloat16", None, "float16"),
    "computed in bfloat16": ("float32", "bfloat16", "bfloat16"),
    "float16": ("float16", "float16", "float16"),
    "float64 parameters": ("float64", None, "float64"),
    "float64 outputs": ("float32", None, "float64"),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_networks_of_any_precision(name: str, x64: None) -> None:
    own, inner, outer = PRECISIONS[name]
    rng = np.random.default_rng(2)
    params = [jnp.asarray(rng.normal(size=shape), own) for shape in ((5, 4), (4,), (4, OUTPUTS))]
    x1, x2 = (rng.normal(size=(n, 5)).astype("f") for n in (4, 3))

    def function(params, x):
        return jnp.tanh(0.5 * (x @ params[0]) + params[1]) @ params[2]

    def apply(params, x):
        if inner is not None:
            params, x = jax.tree.map(lambda leaf: leaf.astype(inner), (params, x))
        return function(params, x).astype(outer)

    exact = [jnp.asarray(leaf, jnp.float64) for leaf in params]
    expected = jacobian_gram(function, exact, x1.astype(np.float64), x2.astype(np.float64))
    v, w = rng.normal(size=(3, 2)), rng.normal(size=(3, OUTPUTS))
    kernel = ntkit.empirical_ntk(apply, params)
    traced = np.trace(expected, axis1=2, axis2=3) / OUTPUTS
    # Large columns as well, which float16 could not hold.
    found = [kernel(x1, x2), kernel.full(x1, x2), kernel.matmul(x1, x2, 1e6 * v) / 1e6, kernel.full_product(x1, x2, w)]
    right = [traced, expected, traced @ v, np.einsum("nmcd,md->nc", expected, w)]
    tolerance = {"float64": 1e-5, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
    for one, other in zip(found, right, strict=True):
        assert one.dtype == jnp.float32
        close(one, other, max(tolerance[dtype] for dtype in (own, inner or own, outer)))
    own_gram = kernel(x1)
    np.testing.assert_array_equal(own_gram, own_gram.T)
    close(kernel.diagonal(x1), np.diag(own_gram))
    half = kernel(x1.astype(jnp.bfloat16), x2.astype(np.float64))
    assert half.dtype == jnp.float64
    close(half, traced, 3e-2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """All is a leaf, as in an Equinox module: parameters, a function, a flag and a counter."""

    weights: jax.Array
    bias: jax.Array
    activation: object
    inference: bool
    count: jax.Array

    def __call__(self, x):
        h = x.reshape(len(x), -1) @ self.weights + self.bias
        return self.activation(h)[:, :OUTPUTS] * (2.0 if self.inference else self.count)


def test_parameters_among_functions() -> None:
    rng = np.random.default_rng(3)
    weights, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((84, 4), (4,)))
    module = Module(0.1 * weights, bias, jax.nn.gelu, True, jnp.ones((), jnp.int32))
    x1, x2 = inputs(1, 4), inputs(2, 3)

    def function(params, x):
        return dataclasses.replace(module, weights=params[0], bias=params[1])(x)

    expected = jacobian_gram(function, [module.weights, module.bias], x1, x2)
    kernel = ntkit.empirical_ntk(lambda module, x: module(x), module)
    close(kernel.full(x1, x2), expected)
    close(jax.jit(lambda kernel, x: kernel(x, x2))(kernel, x1), np.trace(expected, axis1=2, axis2=3) / OUTPUTS)
    v = rng.normal(size=(3, 2)).astype("f")
    close(kernel.matmul(x1, x2, v), kernel(x1, x2) @ v)


def test_weights_stay_in_factors_in_half_precision() -> None:
    module = nn.Sequential([nn.Dense(4, dtype=jnp.bfloat16), nn.relu, nn.Dense(OUTPUTS, dtype=jnp.bfloat16)])
    x = jnp.ones((2, 5))
    kernel = ntkit.empirical_ntk(module.apply, module.init(jax.random.key(0), x))
    assert len(jax.eval_shape(kernel._tangents, x, jnp.eye(OUTPUTS)).factors) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fc", "convnet"])
def test_blocks_change_nothing(name: str, monkeypatch) -> None:
    apply_fn, variables, _, _ = network(name)
    x1, x2 = inputs(1, 7), inputs(2, 5)
    kernel = ntkit.empirical_ntk(apply_fn, variables)
    v = np.random.default_rng(3).normal(size=(5, 1)).astype("f")

    def everything(x1, x2):
        return (
            kernel.gram(x1, x2),
            kernel.gram(x1, None),
            kernel.gram_diagonal(x1),
            empirical._full.__wrapped__(kernel, x1, x2),
            empirical._product.__wrapped__(kernel, x1, x2, v),
        )

    whole = jax.jit(everything)(x1, x2)
    for bytes_ in ("HELD", "TILE"):
        monkeypatch.setattr(memory, bytes_, 2**13)
    sizes = kernel._sizes(x1, kernel._cotangents(x1), each_pair=False)
    assert sizes.held < 5
    for found, expected in zip(jax.jit(lambda *x: everything(*x))(x1, x2), whole, strict=True):
        close(found, expected)


def test_goes_through_jit_and_grad_and_fit() -> None:
    apply_fn, variables, _, _ = network("fc")
    kernel = ntkit.empirical_ntk(apply_fn, variables)
    x, y = inputs(1, 6), np.random.default_rng(0).normal(size=(6, 2)).astype("f")
    model = ntkit.regression.fit(kernel, x, y, 1e-6)
    np.testing.assert_allclose(model(x), y, atol=1e-2)
    at = inputs(2, 1)
    gradient = jax.grad(lambda x: jnp.sum(model(x)[0, 0]))(at)
    direction = inputs(3, 1)
    step = 1e-2
    difference = (model(at + step * direction) - model(at - step * direction))[0, 0] / (2 * step)
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=2e-2)
    moved = jax.tree.map(lambda leaf: 2 * leaf, variables)
    traces = []

    @jax.jit
    def gram(kernel):
        traces.append(1)
        return kernel(x)

    assert not np.allclose(gram(kernel), gram(ntkit.empirical_ntk(apply_fn, moved)))
    assert len(traces) == 1


def test_a_linearized_network_has_the_kernel_of_its_origin() -> None:
    module = ntkit.fc(1).flax(num_outputs=2, width=6)
    x = inputs(1, 4)
    network = ntkit.networks.TrainedNetwork(module.init(jax.random.key(0), x), module)
    linear = ntkit.networks.linearize(network)
    moved = linear.variables | {"params": jax.tree.map(lambda leaf: leaf + 1.0, linear.variables["params"])}
    expected = ntkit.empirical_ntk(module.apply, network.variables)(x)
    close(ntkit.empirical_ntk(linear.module.apply, moved)(x), expected)


def test_weights_of_layers_stay_in_factors() -> None:
    apply_fn, variables, _, _ = network("simple_cnn")
    made = jax.eval_shape(
        functools.partial(ntkit.empirical_ntk(apply_fn, variables)._tangents), inputs(0, 2), jnp.eye(3)
    )
    # Three convolutions and two dense layers; what is formed are the biases.
    assert len(made.factors) == 5
    assert sum(leaf.shape[-1] for leaf in made.formed) == sum(
        leaf.size for leaf in jax.tree.leaves(variables) if leaf.ndim == 1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"apply_fn": 3}, "apply_fn: got 3"),
        ({"params": {}}, "params: got no arrays"),
        ({"params": {"a": np.arange(3)}}, r"params\['a'\]: got int64 of shape \(3,\), expected an array of floats"),
        ({"output": -1}, "output: got -1"),
        ({"output": True}, "output: got True"),
    ],
)
def test_bad_arguments(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ntkit.empirical_ntk(**({"apply_fn": plain, "params": networks()["plain"]} | arguments))


def test_bad_networks_and_products() -> None:
    params = networks()["plain"]
    x = inputs(1, 4)
    with pytest.raises(ValueError, match="output: got 3, expected less than the network's 3 outputs"):
        ntkit.empirical_ntk(plain, params, output=3)(x)
    dropout = nn.Sequential([nn.Dense(OUTPUTS), nn.Dropout(0.5, deterministic=False)])
    variables = dropout.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
    for apply_fn, given, message in (
        (
            lambda p, x: plain(p, x)[:, 0],
            params,
            r"outputs of shape \(1,\) for one input, expected an array \(1, outputs",
        ),
        (lambda p, x: plain(p, x).sum(), params, r"outputs of shape \(\)"),
        (lambda p, x: plain(p, x)[:, None, None], params, r"outputs of shape \(1, 1, 1, 3\)"),
        (lambda p, x: plain(p, x)[:, :0], params, r"outputs of shape \(1, 0\)"),
        (lambda p, x: (plain(p, x), x), params, "a tuple as outputs, expected an array"),
        (lambda p, x: {"logits": plain(p, x)}, params, "a dict as outputs"),
        (lambda p, x: plain(p, x) > 0, params, "outputs of dtype bool, expected floats"),
        (dropout.apply, variables, "a network that draws random numbers"),
    ):
        kernel = ntkit.empirical_ntk(apply_fn, given)
        for door in (
            kernel,
            kernel.full,
            kernel.diagonal,
            lambda x, kernel=kernel: kernel.matmul(x, x, np.ones((4, 1))),
        ):
            with pytest.raises(ValueError, match=f"^apply_fn: got {message}"):
                door(x)
    with pytest.raises(ValueError, match="v: got dtype complex64, expected real numbers"):
        ntkit.empirical_ntk(plain, params).matmul(x, x, np.ones((4, 1), np.complex64))
    with pytest.raises(ValueError, match="x2: got inputs of shape"):
        ntkit.empirical_ntk(plain, params).matmul(x, x[:, 1:], np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"v: got shape \(3, 1\), expected \(4, columns\)"):
        ntkit.empirical_ntk(plain, params).matmul(x, x, np.ones((3, 1), "f"))
    with pytest.raises(ValueError, match=r"v: got shape \(4, 2\), expected \(4, 3\)"):
        ntkit.empirical_ntk(plain, params).full_product(x, x, np.ones((4, 2), "f"))


@pytest.mark.slow
def test_all_of_ntkit_works_on_a_trained_networks_kernel(tmp_path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    x = np.clip(0.5 + 0.1 * rng.normal(size=(24, 4, 4, 1)) + 0.2 * (labels[:, None, None, None] - 1), 0, 1).astype("f")
    y = np.asarray(ntkit.data.one_hot(labels, 3))
    module = ntkit.convnet(1).flax(num_outputs=3, width=2)
    network = flat.train(module, x, y, key=jax.random.key(0), steps=30, learning_rate=0.01)
    kernel = ntkit.empirical_ntk(module.apply, network.variables)
    whole = kernel(x)
    close(ntkit.gram(kernel, x, block_size=7), whole)
    close(ntkit.gram(kernel, x, block_size=7, store=tmp_path / "gram"), whole)
    model = ntkit.regression.fit(kernel, x, y, 1e-4)
    by_cg = ntkit.regression.fit(kernel, x, y, 1e-2, solver=ntkit.regression.CG(tolerance=1e-5))
    close(by_cg(x), ntkit.regression.fit(kernel, x, y, 1e-2)(x), 1e-2)
    assert ntkit.data.accuracy(model, x, labels) > 0.9
    ball = ntkit.attacks.Linf(0.1)
    moved = ntkit.attacks.PGD(ball, steps=5)(model, x, labels, key=jax.random.key(0))
    assert ntkit.data.accuracy(model, moved, labels) < ntkit.data.accuracy(model, x, labels)
    found = ntkit.features.eigenfeatures(kernel, x, y, top=5)
    assert ntkit.features.sweep(found, x, labels, ball).accuracy.max() > 0.5
    small = {"per_class": 1, "steps": 6, "log_every": 1, "optimizer": optax.adam(1e-4)}
    distilled = flat.kip(kernel, x, labels, key=jax.random.key(0), **small)
    assert distilled.history["loss"][-1] < distilled.history["loss"][0]
