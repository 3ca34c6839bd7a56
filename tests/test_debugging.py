"""The library under JAX's own debugging switches: what they look for is not there, and results stay what they are."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import attacks, regression
from ntkit.architectures import Architecture, AveragePool, Conv, Dense, Flatten
from ntkit.attacks import L2, Linf
from tests import flat

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
IMAGES = RNG.uniform(0.3, 0.7, (5, 4, 5, 2)).astype("f")
X = RNG.uniform(0.3, 0.7, (6, 3)).astype("f")
Y = RNG.normal(size=(6, 2)).astype("f")
LABELS = np.arange(6) % 2
FC = ntkit.ntk(ntkit.fc(1))
POOLED = Architecture(
    (Conv(1.2, 0.1), AveragePool((2, 2)), Conv(1.2, 0.1, padding="VALID", window=(1, 2)), Flatten(), Dense(1.0, None)),
    "pooled",
)


def linear(x):
    return x.reshape(len(x), -1) @ jnp.asarray(RNG_WEIGHTS[: x[0].size])


RNG_WEIGHTS = RNG.normal(size=(40, 2)).astype("f")


def train(module, x) -> jax.Array:
    targets = np.resize(Y, (len(x), 2))
    return flat.train(module, x, targets, key=KEY, steps=2, batch_size=3, log_every=1)(x)


def empirical(x) -> jax.Array:
    module = ntkit.fc(1).flax(2, 3)
    kernel = ntkit.empirical_ntk(module.apply, module.init(KEY, x))
    return kernel.matmul(x, x, np.resize(Y, (len(x), 2))) + kernel(x)[:, :2]


def distilled() -> np.ndarray:
    return flat.kip(FC, X, LABELS, key=KEY, per_class=1, steps=2, log_every=1).images


DOES: dict[str, Callable[[], object]] = {
    "convolutional kernel": lambda: ntkit.ntk(ntkit.conv(1))(IMAGES),
    "its gradient": lambda: jax.grad(lambda x: ntkit.ntk(POOLED)(x, IMAGES).sum())(jnp.asarray(IMAGES)),
    "fit": lambda: regression.fit(FC, X, Y, 1e-3)(X),
    "conjugate gradients": lambda: regression.fit(FC, X, Y, 1e-2, solver=regression.CG())(X),
    "flow": lambda: regression.flow(FC, X, Y, np.inf)(X),
    "gradient of flow": lambda: jax.grad(lambda y: regression.flow(FC, X, y, np.inf)(X).sum())(jnp.asarray(Y)),
    "training": lambda: train(ntkit.fc(1).flax(2, 4), X),
    "training with convolutions": lambda: train(ntkit.convnet(1).flax(2, 3), IMAGES),
    "empirical kernel": lambda: empirical(X),
    "pgd": lambda: attacks.PGD(Linf(0.1), steps=2, restarts=2)(linear, X, LABELS, key=KEY),
    "square": lambda: attacks.Square(L2(0.3), queries=5)(linear, X, LABELS, key=KEY),
    "augmentation": lambda: ntkit.data.Augmentation(10.0, 1, True, 0.1)(KEY, jnp.asarray(IMAGES)),
    "preprocessing": lambda: ntkit.data.ZCA.fit(IMAGES).transform(ntkit.data.Standardize.fit(IMAGES).transform(IMAGES)),
    "distillation": distilled,
}


@functools.cache
def expected(what: str) -> np.ndarray:
    return np.asarray(DOES[what]())


@contextlib.contextmanager
def switched(name: str, value: object) -> Iterator[None]:
    before = getattr(jax.config, name)
    if name not in ("jax_numpy_rank_promotion", "jax_disable_jit"):
        # What is compiled already is not looked at any more.
        jax.clear_caches()
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


CASES = {
    ("jax_check_tracer_leaks", True): [
        "convolutional kernel",
        "its gradient",
        "conjugate gradients",
        "fit",
        "training",
    ],
    ("jax_numpy_rank_promotion", "raise"): list(DOES),
    ("jax_debug_infs", True): ["flow", "gradient of flow", "pgd", "square"],
    ("jax_debug_nans", True): ["fit", "conjugate gradients", "its gradient"],
    ("jax_enable_checks", True): ["its gradient", "empirical kernel"],
    ("jax_disable_jit", True): ["fit", "flow"],
}


SLOW = ("training", "training with convolutions", "empirical kernel", "distillation", "augmentation")


def slow(name: str, what: str) -> bool:
    return what in SLOW or name == "jax_check_tracer_leaks"


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        pytest.param(name, value, what, id=f"{name}-{what}", marks=[pytest.mark.slow] if slow(name, what) else [])
        for (name, value), whats in CASES.items()
        for what in whats
    ],
)
def test_results_stay_what_they_are(name: str, value: object, what: str) -> None:
    right = expected(what)
    with switched(name, value):
        found = np.asarray(DOES[what]())
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4)
