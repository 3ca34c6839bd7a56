"""What learners ask of the networks that they fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ntkit._checks import wrong
from ntkit._loops import slow_in_loops
from ntkit._pytrees import static
from ntkit.networks.training import Module, count_outputs


@dataclasses.dataclass(frozen=True)
class LastHidden:
    """The last hidden values of a module that gives them: equal where the modules are."""

    module: Any

    def __call__(self, variables: Any, x: Array) -> Array:
        """Give them (n, m)."""
        return self.module.apply(variables, x, method="features")


def check_features(module: Any) -> Any:
    """Give a module as what decides what is compiled; `ValueError` unless it gives its last hidden values."""
    if not callable(getattr(module, "features", None)) or isinstance(module, type):
        raise wrong("module", module, "a flax module with a method `features`, such as standard_convnet(10)")
    return static(module)


def check_classes(module: Module, key: Array, images: Array, targets: Array) -> None:
    """Raise `ValueError` unless a network has an output for each class."""
    if (outputs := count_outputs(module, key, images[:1])) != targets.shape[1]:
        raise ValueError(f"module: got one of {outputs} outputs, expected {targets.shape[1]}, one for each class")


def slow_as_a_network(module: Module, images: Array) -> bool:
    """Whether steps with a network are to be compiled by themselves."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return slow_in_loops(module.apply, zeros, images)
