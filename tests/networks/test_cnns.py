"""The networks of distillation papers, by their numbers of parameters and against convolutions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

import ntkit
from ntkit import networks
from tests import flat


def count(module, shape) -> int:
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        # The tutorial's, but for the rows that its unpadded convolutions lose; torchvision's features of VGG11 and a
        # readout of 5,130; AlexNet by hand.
        (networks.simple_cnn, (9 * 3 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64 + (64 * 64 + 1) * 64 + 650),
        (networks.vgg11, 9_220_480 + 5_130),
        (networks.alexnet, 9_728 + 614_592 + 442_624 + 442_560 + 331_968 + (16 * 192 + 1) * 10),
    ],
)
def test_parameters(build, parameters: int) -> None:
    assert count(build(10), (32, 32, 3)) == parameters
    narrow = build(10, width=8)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    outputs = jax.jit(lambda x: narrow.init_with_output(jax.random.key(0), x)[0])(x)
    assert outputs.shape == (2, 10)
    assert np.isfinite(outputs).all()


def test_simple_cnn_by_hand() -> None:
    module = networks.simple_cnn(3, width=2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 7, 1)).astype("f")
    variables = module.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), variables)
    layers = jax.tree.map(np.float64, variables["params"])
    z = np.float64(x[0])
    for i in range(3):
        kernel, bias = layers[f"Conv_{i}"]["kernel"], layers[f"Conv_{i}"]["bias"]
        z = np.stack(
            [
                sum(scipy.signal.correlate(z[..., j], kernel[..., j, k], "same") for j in range(z.shape[-1])) + bias[k]
                for k in range(kernel.shape[-1])
            ],
            axis=-1,
        )
        z = np.maximum(z, 0)
        if i < 2:
            windows = [[z[r : r + 2, c : c + 2] for c in range(0, z.shape[1], 2)] for r in range(0, z.shape[0], 2)]
            z = np.array([[window.max(axis=(0, 1)) for window in row] for row in windows])
    z = np.maximum(z.reshape(-1) @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    expected = z @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    np.testing.assert_allclose(module.apply(variables, x)[0], expected, rtol=1e-4)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_outputs: got 0, expected an integer of at least 1"):
        networks.vgg11(0)
    with pytest.raises(ValueError, match=r"width: got 1\.5"):
        networks.alexnet(10, width=1.5)
    with pytest.raises(ValueError, match=r"x: got inputs of shape \(4,\), expected images"):
        networks.simple_cnn(2).init(jax.random.key(0), jnp.zeros((1, 4)))


@pytest.mark.slow
def test_a_model_like_any_other() -> None:
    digits = ntkit.data.load("digits")
    x, labels = digits.train.images[:200], digits.train.labels[:200]
    network = flat.train(
        networks.simple_cnn(10, width=8), x, ntkit.data.one_hot(labels, 10), key=jax.random.key(0), steps=60,
        batch_size=50, learning_rate=0.01, loss="cross_entropy",
    )  # fmt: skip
    assert ntkit.data.accuracy(network, x, labels) > 0.7
