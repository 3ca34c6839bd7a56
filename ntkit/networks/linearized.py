"""A network linearized in its parameters: what it is, as it gets wide, for its whole training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from ntkit.networks.training import Module, TrainedNetwork, check_module, check_network


@dataclasses.dataclass(frozen=True)
class Linearized:
    """The first-order expansion of a network in its parameters: f(x; θ₀) + ∇f(x; θ₀) · (θ − θ₀).

    Lee et al. 2019 (arXiv:1902.06720), eq. 5. [`train`][ntkit.networks.train] takes it as any module: its variables are
    the parameters θ, which are trained, and the `"origin"` θ₀, which is the initialization. Its tangent kernel does not
    change, and is the network's own at θ₀.

    **Arguments:** `module`: the network's flax module.

    **Raises:** `ValueError` if it is none.
    """

    module: Module

    def __post_init__(self) -> None:
        check_module(self.module)

    def init(self, key: Array, x: Float[Array, "n ..."]) -> dict[str, Any]:
        """Initialize the network, and expand it there."""
        return _at(self.module.init(key, x))

    def apply(self, variables: Any, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        """Give the outputs of the expansion."""
        origin = variables["origin"]
        change = jax.tree.map(lambda now, then: now - then, variables["params"], origin["params"])

        def outputs(params: Any) -> Array:
            return self.module.apply(dict(origin) | {"params": params}, x)

        value, slope = jax.jvp(outputs, (origin["params"],), (change,))
        return value + slope


def linearize(network: TrainedNetwork) -> TrainedNetwork:
    """Expand a trained network at the parameters that it has: [`Linearized`][], there equal to the network itself."""
    check_network("network", network)
    initial = None if network.initial is None else _at(network.initial)
    return TrainedNetwork(_at(network.variables), Linearized(network.module), initial)


def _at(variables: Any) -> dict[str, Any]:
    return {"params": variables["params"], "origin": variables}
