"""A layer that nothing knows is an error everywhere: it is never skipped."""

import contextlib
import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import ntkit
from ntkit import _neural_tangents, architectures
from ntkit._pytrees import pytree_dataclass
from ntkit.architectures import Activation, Architecture, Conv, Dense, Flatten
from ntkit.kernels import closed_form
from ntkit.kernels.fused import covariances, near
from ntkit.kernels.fused.stages import Recursion, stages


@pytree_dataclass
class Doubling:
    """A layer that is new: it has what a convolution has, so that nothing fails for want of a field."""

    W_std: float = 2.0
    b_std: float | None = None
    window: tuple[int, int] = dataclasses.field(default=(1, 1), metadata=architectures.STATIC)
    padding: str = dataclasses.field(default="SAME", metadata=architectures.STATIC)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Architecture:
    monkeypatch.setattr(architectures, "Layer", architectures.Layer | Doubling)
    return Architecture((Conv(1.0, None), Doubling(), Flatten(), Dense(1.0, None)), "doubled")


@pytest.mark.parametrize("kernel", [ntkit.ntk, ntkit.nngp])
def test_the_door_names_the_layer_and_the_engines(kernel: object, unknown: Architecture) -> None:
    expected = (
        "engine: got 'auto' for doubled, expected one that has all of its layers: "
        "'fused' lacks layers[1], Doubling; 'neural_tangents' lacks layers[1], Doubling"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        kernel(unknown)
    for engine in ("fused", "neural_tangents"):
        with pytest.raises(ValueError, match=rf"^engine: got '{engine}' for doubled, .*: '{engine}' lacks layers\[1\]"):
            kernel(unknown, engine)


def test_layers_that_only_different_engines_have(unknown: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = closed_form.HAS["fused"]
    monkeypatch.setitem(closed_form.HAS, "fused", lambda layer: isinstance(layer, Doubling) or fused(layer))
    both = Architecture((Flatten(), Doubling(), Dense(1.0, None), Activation("gelu"), Dense(1.0, None)), "both")
    with pytest.raises(ValueError, match=r"'fused' lacks layers\[3\], .*; 'neural_tangents' lacks layers\[1\], "):
        ntkit.ntk(both)


def test_each_engine_has_every_layer_there_is() -> None:
    everything = [Dense(1.0, None), Conv(1.0, None), Activation("relu"), architectures.AveragePool()]
    everything += [architectures.GlobalAveragePool(), Flatten()]
    assert {type(layer) for layer in everything} == set(architectures.get_args(architectures.Layer))
    assert all(has(layer) for has in closed_form.HAS.values() for layer in everything)


def test_no_reading_skips_it(unknown: Architecture) -> None:
    readings = {
        "flax": lambda: unknown.flax().init(random.key(0), jnp.ones((1, 4, 4, 1))),
        "gaussian": lambda: architectures.check_gaussian(unknown),
        "shape": lambda: architectures.check_image_shape(unknown, (4, 4, 1)),
        "stages": lambda: stages(unknown, (4, 4, 1)),
    }
    with contextlib.suppress(ImportError):
        _neural_tangents.load()
        readings["stax"] = lambda: architectures._stax_layer(Doubling(), 1, "ntk")
    for name, read in readings.items():
        with pytest.raises(AssertionError, match="Doubling"):
            pytest.fail(f"{name}: {read()}")


def test_no_step_of_the_fused_engine_skips_it() -> None:
    # A stage that holds one, as if `stages` had let it pass.
    first, last = stages(Architecture((Conv(1.0, None), Flatten(), Dense(1.0, None)), "plain"), (4, 4, 1))
    plan = (dataclasses.replace(first, layers=(*first.layers, (Doubling(), 1))), last)
    recursion, x = Recursion("ntk", True), jnp.asarray(np.ones((1, 1, 1, 4, 4)), jnp.float32)
    with pytest.raises(AssertionError, match="Doubling"):
        near.kernel(recursion, plan, x, x)
    batch = covariances.Batch(x, ())
    with pytest.raises(AssertionError, match="Doubling"):
        covariances.kernel(recursion, plan, batch, batch, same=False)
    with pytest.raises(AssertionError, match="Doubling"):
        covariances.variances(recursion, (plan[0].layers,), (), x)
