"""Small models to attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

SHAPE = (6, 5, 2)
D = 60
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(D, 4)).astype(np.float32)
OFFSETS = RNG.normal(size=4).astype(np.float32)
# Away from the bounds, so that balls of radius 0.2 fit between them.
IMAGES = RNG.uniform(0.3, 0.7, (40, *SHAPE)).astype(np.float32)


def linear(weights, offsets, x):
    return x.reshape(len(x), -1) @ weights + offsets


FOUR = Partial(linear, WEIGHTS, OFFSETS)
ONE = Partial(linear, 0.1 * WEIGHTS[:, :1], -0.1 * WEIGHTS[:, 0] @ np.full(D, 0.5, np.float32))


def predicted(model, x):
    """The classes that a model gives images, as labels."""
    outputs = np.asarray(model(jnp.asarray(x)))
    return np.where(outputs[:, 0] >= 0, 1, -1) if outputs.shape[1] == 1 else outputs.argmax(axis=1)


@functools.cache
def digits():
    """A small network that knows digits, and 100 images with its labels: a model, images (8, 8, 1), labels."""
    from ntkit import data, fc, networks

    split = data.load("digits")
    targets = data.one_hot(split.train.labels, 10)
    network = networks.train(
        fc(2).flax(num_outputs=10, width=64), split.train.images, targets, key=jax.random.key(0), steps=300
    )
    return network, split.test.images[:100], split.test.labels[:100]
