"""FRePo: neural feature regression with pooling, Zhou, Nezhadarya, Ba 2022 (arXiv:2206.00719)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
from jax import lax
from jaxtyping import Array

from ntkit import regression
from ntkit._checks import check_integer, check_number, check_optimizer
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.data.targets import mse
from ntkit.distill.bodies import LastHidden, check_classes, check_features, slow_as_a_network
from ntkit.distill.learner import Learner
from ntkit.distill.pool import Pool
from ntkit.kernels import Kernel
from ntkit.kernels.finite import GivenFeatures
from ntkit.networks.optimizers import adam
from ntkit.networks.training import Module

if TYPE_CHECKING:
    import optax

LEARNING_RATE = 3e-4


@pytree_dataclass(eq=False)
class FRePo(Learner):
    """Ridge regression on the last hidden values of networks that have trained a little on the support set.

    Each step draws one network of a pool, differentiates the regression on its features by the support set, and then
    trains this network for a step on the set as it is; one that has had its steps is initialized anew. Features are not
    differentiated through how they came about.

    **Fields:**

    - `module`: a flax module whose `method="features"` gives its last hidden values (n, m), such as
      [`ntkit.networks.standard_convnet`][]`(10)` and the other networks of ntkit.
    - `pool`: networks at once.
    - `max_steps`: steps that each is trained for, with the squared error.
    - `optimizer`: of the networks (default: Adam with a learning rate of 0.0003).
    - `ridge`: relative to tr(K)/n, of the support set's Gram matrix.

    **Raises:** `ValueError` that names the field; where it is first used, for a module that does not fit.
    """

    module: Module = static_field()
    pool: int = static_field(default=10)
    max_steps: int = static_field(default=100)
    optimizer: optax.GradientTransformation | None = static_field(default=None)
    ridge: float = static_field(default=1e-6)

    def __post_init__(self) -> None:
        for name in ("pool", "max_steps"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))
        object.__setattr__(self, "ridge", check_number("ridge", self.ridge, least=0))
        object.__setattr__(self, "module", check_features(self.module))
        if self.optimizer is not None:
            check_optimizer("optimizer", self.optimizer)

    @property
    def _trainer(self) -> optax.GradientTransformation:
        return adam(LEARNING_RATE) if self.optimizer is None else self.optimizer

    def begin(self, key: Array, images: Array, targets: Array) -> Pool:
        check_classes(self.module, key, images, targets)
        return Pool.of(functools.partial(self._fresh, images[:1]), self.pool, self.max_steps, key)

    def fitted(
        self, kernels: tuple[Kernel, ...], images: Array, targets: Array, carried: Pool, variant: int
    ) -> regression.Predictor | regression.FeaturePredictor:
        variables, _ = lax.stop_gradient(carried.network)
        return regression.fit(GivenFeatures(variables, LastHidden(self.module)), images, targets, self.ridge)

    def after(self, carried: Pool, images: Array, targets: Array) -> Pool:
        import optax

        variables, state = carried.network

        def loss(params: Any) -> Array:
            return mse(self.module.apply({**variables, "params": params}, images), targets)

        gradient = jax.grad(loss)(variables["params"])
        updates, state = self._trainer.update(gradient, state, variables["params"])
        trained = {**variables, "params": optax.apply_updates(variables["params"], updates)}
        return carried.after((trained, state), functools.partial(self._fresh, images[:1]), self.max_steps)

    def slow_in_loops(self, images: Array) -> bool:
        return slow_as_a_network(self.module, images)

    def _fresh(self, images: Array, key: Array) -> tuple[Any, ...]:
        """Give the variables of a network at its initialization, and its optimizer's state."""
        variables = dict(self.module.init(key, images))
        return variables, self._trainer.init(variables["params"])
