import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.activations import ACTIVATIONS
from ntkit.architectures import Activation, Architecture, AveragePool, Conv, Dense, Flatten, GlobalAveragePool

FACTORIES = [
    functools.partial(f, d) for f, d in ((ntkit.fc, 1), (ntkit.conv, 2), (ntkit.convnet, 2), (ntkit.myrtle, 5))
]


def kinds(architecture) -> str:
    letters = {Dense: "d", Conv: "c", Activation: "a", AveragePool: "p", GlobalAveragePool: "g", Flatten: "f"}
    return "".join(letters[type(layer)] for layer in architecture.layers)


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        (ntkit.fc(0), "fd"),
        (ntkit.fc(2), "fdadad"),
        (ntkit.conv(2), "cacafd"),
        (ntkit.convnet(), "capcapcapfd"),
        (ntkit.myrtle(5), "cacapcapcagd"),
        (ntkit.myrtle(7), "cacapcacapcacagd"),
        (ntkit.myrtle(10), "cacacapcacacapcacacagd"),
    ],
)
def test_layers(architecture, layers: str) -> None:
    assert kinds(architecture) == layers
    assert architecture.name.rstrip("0123456789") in ("fc", "conv", "convnet", "myrtle")


@pytest.mark.parametrize("factory", FACTORIES)
def test_an_architecture_is_a_value(factory) -> None:
    architecture = factory()
    assert architecture == factory()
    assert hash(architecture) == hash(factory())
    assert architecture != factory(width=7)
    affine = [layer for layer in architecture.layers if isinstance(layer, Dense | Conv)]
    leaves, tree = jax.tree.flatten(architecture)
    assert leaves == [value for layer in affine for value in (layer.W_std, layer.b_std)]
    assert jax.tree.unflatten(tree, leaves) == architecture
    assert len(jax.tree.leaves(factory(b_std=None))) == len(affine)


@pytest.mark.parametrize("factory", FACTORIES)
def test_both_readings_have_the_shapes_asked_for(factory) -> None:
    pytest.importorskip("neural_tangents")
    architecture = factory(width=6)
    x = jax.ShapeDtypeStruct((3, 8, 8, 2), jnp.float32)
    key = jax.random.key(0)
    for width in (None, 5):
        hidden = width or 6
        init_fn, apply_fn, _ = architecture.stax(4, width)
        params = jax.eval_shape(lambda key, init=init_fn: init(key, (3, 8, 8, 2))[1], key)
        assert jax.eval_shape(apply_fn, params, x).shape == (3, 4)
        module = architecture.flax(4, width)
        outputs, variables = jax.eval_shape(module.init_with_output, key, x)
        assert outputs.shape == (3, 4)
        sizes = [sorted(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, variables)]
        assert sizes[0] == sizes[1]
        first = variables["params"]["Affine_0"]["linear"]["kernel"]
        assert first.shape[-1] == hidden


def test_std_may_be_arrays() -> None:
    architecture = ntkit.fc(1, W_std=jnp.float32(1.5), b_std=np.float64(0.5))
    module = architecture.flax()
    assert hash(module) == hash(ntkit.fc(1, W_std=1.5, b_std=0.5).flax())
    variables = module.init(jax.random.key(0), jnp.ones((1, 2)))

    @jax.jit
    def output(W_std):
        return ntkit.fc(1, W_std=W_std, b_std=0.5).flax().apply(variables, jnp.ones((1, 2)))

    np.testing.assert_allclose(output(1.5), module.apply(variables, jnp.ones((1, 2))), rtol=1e-6)


def test_jax_may_build_them_of_anything() -> None:
    architecture = Architecture((Conv(1.0, None), Flatten(), Dense(1.5, 0.5)), "any")
    leaves, tree = jax.tree.flatten(architecture)
    for leaf in (None, object(), "leaf", np.ones(3), float("nan")):
        built = jax.tree.unflatten(tree, [leaf] * len(leaves))
        assert built.layers[2].W_std is leaf
        assert built.layers[0].b_std is None
    moved = jax.vmap(lambda one: one.layers[2].W_std * one.layers[2].b_std)(
        jax.tree.map(lambda v: np.ones(2) * v, architecture)
    )
    np.testing.assert_allclose(moved, [0.75, 0.75])


DENSE = Dense(1.0, None)


def by_hand(*layers, **fields) -> Architecture:
    return Architecture(layers, "by hand", **fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ntkit.fc(-1), "depth: got -1, expected an integer of at least 0"),
        (lambda: ntkit.fc(1.5), "depth: got 1.5"),
        (lambda: ntkit.fc(True), "depth: got True"),
        (lambda: ntkit.conv(0), "depth: got 0, expected an integer of at least 1"),
        (lambda: ntkit.convnet(0), "depth: got 0"),
        (lambda: ntkit.myrtle(6), "depth: got 6, expected 5, 7 or 10"),
        (lambda: ntkit.myrtle(5.0), "depth: got 5.0, expected an integer"),
        (lambda: ntkit.myrtle([5]), r"depth: got \[5\], expected an integer"),
        (lambda: Activation("tanh"), "activation: got 'tanh', expected one of 'abs', 'cos', 'erf'"),
        (lambda: Activation(["relu"]), r"activation: got \['relu'\], expected one of"),
        (lambda: Dense("1", None), "W_std: got '1', expected a finite number of at least 0"),
        (lambda: Dense(np.ones(2), None), r"W_std: got float64 of shape \(2,\), expected a finite number"),
        (lambda: Dense(1.0, -1), "b_std: got -1, expected"),
        (lambda: Conv(1j, None), "W_std: got 1j, expected a finite number"),
        (lambda: Conv(np.complex64(1), None), "W_std: got .*1.*, expected a finite number"),
        (lambda: Conv(1.0, np.inf), "b_std: got inf, expected a finite number"),
        (lambda: jax.jit(lambda W_std: Dense(W_std, None))(np.ones(2)), "W_std: got .*, expected a scalar"),
        (lambda: Conv(1.0, None, padding="valid"), "padding: got 'valid', expected one of 'SAME', 'VALID', 'CIRCULAR'"),
        (lambda: Conv(1.0, None, padding=None), "padding: got None, expected one of 'SAME'"),
        (lambda: Conv(1.0, None, padding=((1, 1), (1, 1))), r"padding: got \(\(1, 1\), \(1, 1\)\), expected one of"),
        (lambda: Conv(1.0, None, window=3), "window: got 3, expected a tuple of two positive integers"),
        (lambda: Conv(1.0, None, window=[3, 3]), r"window: got \[3, 3\], expected a tuple of two"),
        (lambda: Conv(1.0, None, window=(3, 3, 3)), r"window: got \(3, 3, 3\), expected a tuple of two"),
        (lambda: Conv(1.0, None, strides=(0, 1)), r"strides: got \(0, 1\), expected a tuple of two positive"),
        (lambda: Conv(1.0, None, strides=(1, 1.5)), r"strides: got \(1, 1.5\), expected a tuple"),
        (lambda: AveragePool((2, -2)), r"window: got \(2, -2\), expected a tuple of two positive"),
        (lambda: AveragePool(2), "window: got 2, expected a tuple"),
        (lambda: by_hand(), "layers: got no layers, expected the readout"),
        (
            lambda: by_hand(Flatten(), DENSE, Activation("relu")),
            r"layers: got Activation\('relu'\), expected the readout",
        ),
        (lambda: Architecture([DENSE], "x"), r"layers: got \[Dense.*\], expected a tuple of layers"),
        (lambda: Architecture(DENSE, "x"), r"layers: got Dense\(.*\), expected a tuple of layers"),
        (
            lambda: by_hand(Flatten, DENSE),
            r"layers\[0\]: got the class Flatten, expected a layer of ntkit.architectures",
        ),
        (lambda: by_hand((len, len, len), DENSE), r"layers\[0\]: got \(<built-in.*, expected a layer"),
        (lambda: by_hand(ntkit.fc(0), DENSE), r"layers\[0\]: got Architecture.*, expected a layer"),
        (
            lambda: by_hand(Flatten(), Conv(1.0, None), DENSE),
            r"layers\[1\]: got Conv after layers\[0\], Flatten, expected it",
        ),
        (lambda: by_hand(Flatten(), GlobalAveragePool(), DENSE), r"layers\[1\]: got GlobalAveragePool after"),
        (
            lambda: by_hand(GlobalAveragePool(), AveragePool(), DENSE),
            r"\[1\]: got AveragePool after layers\[0\], GlobalAv",
        ),
        (
            lambda: by_hand(DENSE, AveragePool(), DENSE),
            r"layers: got neither Flatten.* after layers\[1\], AveragePool, exp",
        ),
        (lambda: by_hand(DENSE, parameterization="Standard"), "parameterization: got 'Standard', expected 'ntk' or"),
        (lambda: by_hand(DENSE, width=1.5), "width: got 1.5, expected an integer"),
        (lambda: Architecture((DENSE,), None), "name: got None, expected a string"),
        (lambda: ntkit.fc(1, activation="swish"), "activation: got 'swish', expected one of 'abs', 'cos', 'erf'"),
        (lambda: ntkit.fc(1, W_std=-1.0), "W_std: got -1.0, expected a finite number of at least 0"),
        (lambda: ntkit.fc(1, W_std=np.ones(2)), "W_std: got float64 of shape"),
        (lambda: ntkit.fc(1, W_std=None), "W_std: got None"),
        (lambda: ntkit.fc(1, W_std="1"), "W_std: got '1'"),
        (lambda: ntkit.fc(1, b_std=np.nan), "b_std: got nan"),
        (lambda: ntkit.fc(1, parameterization="mup"), "parameterization: got 'mup', expected 'ntk' or 'standard'"),
        (lambda: ntkit.fc(1, width=0), "width: got 0, expected an integer of at least 1"),
        (lambda: ntkit.fc(1).stax(0), "num_outputs: got 0, expected an integer of at least 1"),
        (lambda: ntkit.fc(1).stax(1, 2.5), "width: got 2.5"),
        (lambda: ntkit.fc(1).flax(width=0), "width: got 0"),
        (lambda: ntkit.fc(1).flax("10"), "num_outputs: got '10'"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_every_activation_has_the_functions_of_neural_tangents() -> None:
    pytest.importorskip("neural_tangents")
    from ntkit import _neural_tangents as nt

    x = jnp.linspace(-3, 3, 13)
    for name, activation in ACTIVATIONS.items():
        _, apply_fn, _ = activation.stax(nt.stax)
        np.testing.assert_allclose(activation.function(x), apply_fn((), x), rtol=1e-5, atol=1e-6, err_msg=name)
