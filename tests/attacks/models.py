"""Small models to attack, and all attacks on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ntkit.attacks import APGD, FAB, FGSM, L2, PGD, AutoAttack, Linf, Square
from tests import flat

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
    from ntkit import data, fc

    split = data.load("digits")
    targets = data.one_hot(split.train.labels, 10)
    network = flat.train(
        fc(2).flax(num_outputs=10, width=64), split.train.images, targets, key=jax.random.key(0), steps=300
    )
    return network, split.test.images[:100], split.test.labels[:100]


KEY = jax.random.key(0)
BALLS = [Linf(0.02), L2(0.15)]
# The other norm differs by what test_balls.py has of it.
SLOW_L2 = [pytest.param(BALLS[0], id="linf"), pytest.param(BALLS[1], id="l2", marks=pytest.mark.slow)]


def attacked(kind, model, x, labels, ball, *, key=KEY, **options):
    """Attack with options of the attack and of its call."""
    call = {name: options.pop(name) for name in ("target", "mask", "radius", "batch_size") if name in options}
    return kind(ball, **options)(model, x, labels, key=key, **call)


ALL = {
    "fgsm": functools.partial(attacked, FGSM),
    "pgd": functools.partial(attacked, PGD),
    "pgd, several starts": functools.partial(attacked, PGD, restarts=3, steps=5),
    "apgd": functools.partial(attacked, APGD, steps=20),
    "apgd-t": functools.partial(attacked, APGD, steps=20, loss="targeted_dlr"),
    "fab": functools.partial(attacked, FAB, steps=10),
    "square": functools.partial(attacked, Square, queries=100),
    "autoattack": functools.partial(attacked, AutoAttack, steps=20, queries=100),
}


def distances(ball, model, x, classes):
    """How far each image is from the nearest other class of a linear model, without bounds."""
    outputs = np.asarray(model(x), np.float64)
    w = WEIGHTS.astype(np.float64)
    nearest = []
    for out, y in zip(outputs, classes, strict=True):
        others = [t for t in range(4) if t != y]
        normals = [w[:, y] - w[:, t] for t in others]
        sizes = [np.abs(n).sum() if isinstance(ball, Linf) else np.linalg.norm(n) for n in normals]
        nearest.append(min((out[y] - out[t]) / s for t, s in zip(others, sizes, strict=True)))
    return np.array(nearest)
