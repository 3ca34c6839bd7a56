"""RaT-BPTT: randomly truncated back-propagation through time, Feng, Vedantam, Kempe 2023 (arXiv:2311.07025)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
from jax import lax
from jaxtyping import Array

from ntkit._checks import check_integer, check_optimizer
from ntkit._loops import fast_in_loops
from ntkit._pytrees import pytree_dataclass, static, static_field
from ntkit.data.targets import mse
from ntkit.distill.bodies import check_classes
from ntkit.distill.learner import Draws, Learner
from ntkit.kernels import Kernel
from ntkit.networks.training import Module, TrainedNetwork, check_module

if TYPE_CHECKING:
    import optax

LEARNING_RATE, EPS_ROOT = 1e-3, 1e-8


@pytree_dataclass(eq=False)
class RaTBPTT(Learner):
    """A network that is trained on the support set, differentiated through a window of its training.

    Each step initializes a network anew and trains it for a random number of steps, at least `window` and at most
    `unroll`. The last `window` of them are differentiated through. It is the baseline without kernels; on a CPU,
    networks with convolutions are slow in it.

    **Fields:**

    - `module`: a flax module, or anything that [`ntkit.networks.train`][] takes.
    - `unroll`: steps of the longest training, with the squared error on all of the support set.
    - `window`: steps that are differentiated through, at most as many. With all of them it is back-propagation through
      the whole training.
    - `optimizer`: of the network, differentiated through too (default: Adam with a learning rate of 0.001). Adam must
      have an `eps_root`: the square root of a second moment of 0 has no derivative.

    **Raises:** `ValueError` that names the field; where it is first used, for a module that does not fit.
    """

    module: Module = static_field()
    unroll: int = static_field(default=150)
    window: int = static_field(default=40)
    optimizer: optax.GradientTransformation | None = static_field(default=None)

    def __post_init__(self) -> None:
        check_module(self.module)
        object.__setattr__(self, "module", static(self.module))
        object.__setattr__(self, "unroll", check_integer("unroll", self.unroll))
        object.__setattr__(self, "window", check_integer("window", self.window, 1, self.unroll))
        if self.optimizer is not None:
            check_optimizer("optimizer", self.optimizer)

    def begin(self, key: Array, images: Array, targets: Array) -> Draws:
        check_classes(self.module, key, images, targets)
        return Draws.first(key)

    def fitted(
        self, kernels: tuple[Kernel, ...], images: Array, targets: Array, carried: Draws, variant: int
    ) -> TrainedNetwork:
        import optax

        trainer = _adam() if self.optimizer is None else self.optimizer
        key_init, key_length = jax.random.split(jax.random.fold_in(carried.key, carried.step))
        variables = dict(self.module.init(key_init, lax.stop_gradient(images[:1])))
        others = {name: values for name, values in variables.items() if name != "params"}

        def loss(params: Any, images: Array, targets: Array) -> Array:
            return mse(self.module.apply({**others, "params": params}, images), targets)

        def step(gradient: Any, network: tuple[Any, Any], images: Array, targets: Array) -> tuple[Any, Any]:
            params, state = network
            updates, state = trainer.update(gradient(params, images, targets), state, params)
            return optax.apply_updates(params, updates), state

        start = (variables["params"], trainer.init(variables["params"]))
        before = jax.random.randint(key_length, (), 0, self.unroll - self.window + 1)
        constant = lax.stop_gradient((images, targets))

        def plain(_: int, network: tuple[Any, Any]) -> tuple[Any, Any]:
            return step(fast_in_loops(jax.grad(loss)), network, *constant)

        start = lax.stop_gradient(lax.fori_loop(0, before, plain, start))

        # Of each step no more is kept than where it began.
        @jax.checkpoint
        def through(network: tuple[Any, Any], images: Array, targets: Array) -> tuple[Any, Any]:
            return step(jax.grad(loss), network, images, targets)

        def again(network: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            return through(network, images, targets), None

        (params, _), _ = lax.scan(again, start, length=self.window)
        return TrainedNetwork({**others, "params": params}, self.module)

    def after(self, carried: Draws, images: Array, targets: Array) -> Draws:
        return carried.next()


@functools.cache
def _adam() -> optax.GradientTransformation:
    import optax

    return optax.adam(LEARNING_RATE, eps_root=EPS_ROOT)
