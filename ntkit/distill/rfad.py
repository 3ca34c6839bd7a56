"""RFAD: random feature approximation for dataset distillation, Loo, Hasani, Amini, Rus 2022 (arXiv:2210.12067)."""

from __future__ import annotations

import jax
from jaxtyping import Array

from ntkit import regression
from ntkit._checks import check_choice, check_integer, check_number
from ntkit._loops import slow_in_loops
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.architectures import Architecture
from ntkit.distill.learner import Draws, Learner
from ntkit.kernels import Kernel, random_features
from ntkit.kernels.stax import Get


@pytree_dataclass(eq=False)
class RFAD(Learner):
    """Ridge regression on the features of networks that are drawn anew as one goes.

    What KIP computes for every pair of a target and a support image, this computes for every image: targets take a
    forward pass alone, since the support images do not change their features.

    **Fields:**

    - `architecture`: of the networks, such as `ntkit.convnet(3)`.
    - `width`: units or channels of each hidden layer.
    - `networks`: sampled at once, whose features are put side by side.
    - `redraw_every`: steps with the same networks.
    - `ridge`: relative to tr(K)/n, of the support set's Gram matrix. Larger than KIP's: it has to outweigh what one
      draw differs from the next.
    - `get`: `"nngp"`, as in the paper, or `"ntk"`, whose features cost three times as much.

    **Raises:** `ValueError` that names the field.
    """

    architecture: Architecture
    width: int = static_field(default=128)
    networks: int = static_field(default=1)
    redraw_every: int = static_field(default=1)
    ridge: float = static_field(default=5e-3)
    get: Get = static_field(default="nngp")

    def __post_init__(self) -> None:
        for name in ("width", "networks", "redraw_every"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))
        object.__setattr__(self, "ridge", check_number("ridge", self.ridge, least=0))
        check_choice("get", self.get, ("ntk", "nngp"))
        self._kernel(jax.random.key(0))  # what does not fit is said here

    def _kernel(self, key: Array) -> Kernel:
        return random_features(self.architecture, self.get, key=key, width=self.width, networks=self.networks)

    def begin(self, key: Array, images: Array, targets: Array) -> Draws:
        return Draws.first(key)

    def fitted(
        self, kernels: tuple[Kernel, ...], images: Array, targets: Array, carried: Draws, variant: int
    ) -> regression.Predictor | regression.FeaturePredictor:
        key = jax.random.fold_in(carried.key, carried.step // self.redraw_every)
        return regression.fit(self._kernel(key), images, targets, self.ridge)

    def after(self, carried: Draws, images: Array, targets: Array) -> Draws:
        return carried.next()

    def slow_in_loops(self, images: Array) -> bool:
        return slow_in_loops(self._kernel(jax.random.key(0)).gram_features, images)
