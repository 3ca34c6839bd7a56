"""Architectures drawn from all layers: their readings agree with neural-tangents', or are refused where its are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import _neural_tangents as nt
from ntkit.architectures import Activation, Architecture, AveragePool, Conv, Dense, Flatten, GlobalAveragePool, Layer

pytest.importorskip("neural_tangents")
FUSED = ("relu", "leaky_relu", "abs", "erf", "identity")
# One layer of each kind, and neural-tangents' own.
KINDS = [
    (Dense(1.3, 0.2), lambda stax: stax.Dense(1, 1.3, 0.2)),
    (Conv(1.2, None, (2, 3), (1, 2)), lambda stax: stax.Conv(1, (2, 3), (1, 2), "SAME", 1.2)),
    (Activation("erf"), lambda stax: stax.Erf()),
    (Activation("identity"), lambda stax: stax.Identity()),
    (AveragePool(), lambda stax: stax.AvgPool((2, 2), (2, 2))),
    (GlobalAveragePool(), lambda stax: stax.GlobalAvgPool()),
    (Flatten(), lambda stax: stax.Flatten()),
]
SHAPE = (2, 5, 4, 1)


def shape_of(function, *arguments) -> tuple[int, ...] | None:
    """The shape of a function's result, and of nothing where it refuses."""
    try:
        return jax.eval_shape(function, *arguments).shape
    except (TypeError, ValueError):  # nonsense is told neural-tangents in several ways
        return None


def refused(*layers: Layer) -> str | None:
    """What is wrong with a kernel, or with its values on images."""
    try:
        kernel = ntkit.nngp(Architecture(layers, "drawn"))
        assert jax.eval_shape(kernel, jax.ShapeDtypeStruct(SHAPE, "f")).shape == (2, 2)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_what_is_refused() -> None:
    """All networks of one or two hidden layers, and some of more."""
    rng = np.random.default_rng(0)
    every = range(len(KINDS))
    some = [rng.integers(len(KINDS), size=size) for size in (3, 4, 5, 6) for _ in range(10)]
    accepted = 0
    for chosen in (*itertools.product(every), *itertools.product(every, every), *some):
        layers, theirs = zip(*(KINDS[i] for i in (*chosen, 0)), strict=True)
        _, _, kernel_fn = nt.stax.serial(*(layer(nt.stax) for layer in theirs))
        x = jax.ShapeDtypeStruct(SHAPE, "f")
        expected = shape_of(lambda x, kernel_fn=kernel_fn: kernel_fn(x, None, "nngp"), x) == (2, 2)
        # The mean over the pixels of what has none is no mistake to neural-tangents.
        vectors = [i for i, layer in enumerate(layers) if isinstance(layer, Flatten | GlobalAveragePool)]
        expected &= not any(isinstance(layers[i], GlobalAveragePool) for i in vectors[1:])
        found = refused(*layers)
        assert (found is None) == expected, (layers, found)
        assert found is None or ("\n" not in found and ": got " in found and ", expected " in found)
        accepted += expected
    assert accepted > 15


def draw(rng: np.random.Generator) -> tuple[Architecture, tuple[int, int, int]]:
    """Draw a network that is accepted, and the shape of an image for it."""

    def two(most: int) -> tuple[int, int]:
        first, second = rng.integers(1, most + 1, 2)
        return int(first), int(second)

    def stds() -> tuple[float, float | None]:
        return float(rng.uniform(0.5, 2)), None if rng.random() < 0.3 else float(rng.uniform(0, 1))

    makers = (
        lambda: Dense(*stds()),
        lambda: Conv(*stds(), two(4), two(3), str(rng.choice(["SAME", "VALID", "CIRCULAR"]))),
        lambda: Activation(str(rng.choice(FUSED))),
        lambda: AveragePool(two(3)),
        GlobalAveragePool,
        Flatten,
    )
    chances = [0.15, 0.3, 0.3, 0.15, 0.05, 0.05]
    while True:
        layers = [makers[i]() for i in rng.choice(6, rng.integers(3, 6), p=chances)]
        layers += [makers[rng.integers(4, 6)](), Dense(*stds())]
        # Of one channel pixels are multiples of each other, whose angles neural-tangents has to sqrt(eps) only.
        shape = (*two(7), int(rng.integers(2, 12)))
        try:
            architecture = Architecture(tuple(layers), "drawn", str(rng.choice(["ntk", "standard"])), 5)
            jax.eval_shape(ntkit.nngp(architecture), jax.ShapeDtypeStruct((1, *shape), "f"))
        except ValueError:
            continue
        return architecture, shape


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 5))])
def test_readings_agree(seed: int, x64: None) -> None:
    rng = np.random.default_rng(seed)
    architecture, shape = draw(rng)
    x1, x2 = rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape))
    fused, reference = (ntkit.ntk(architecture, engine) for engine in ("fused", "neural_tangents"))
    evaluate = jax.jit(lambda kernel: (kernel(x1), kernel(x1, x2), kernel.diagonal(x1)))
    for found, expected in zip(evaluate(fused), evaluate(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * float(jnp.abs(expected).max()))
    outputs = jax.eval_shape(architecture.flax(3).init_with_output, jax.random.key(0), x1)[0]
    assert outputs.shape == (3, 3)
