"""Training a finite network on a data set that fits on the device, in one compiled loop."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ntkit.data import check_images

if TYPE_CHECKING:
    import flax.linen as nn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network with its parameters: a model, and a JAX pytree. [`train`][] makes it.

    **Fields:** `variables`: what `module.apply` takes. `losses`: the loss (steps,) before each step. `module`: the
    flax module.
    """

    variables: Any
    losses: Float[Array, " steps"]
    module: nn.Module = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[ArrayLike, "m ..."]) -> Float[Array, "m outputs"]:
        """Predict the outputs (m, outputs) for a batch of inputs."""
        return _apply(self.module, self.variables, jnp.asarray(x))


def train(
    module: nn.Module,
    images: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n outputs"],
    *,
    key: Array,
    steps: int = 1000,
    learning_rate: float = 1e-3,
    batch_size: int | None = None,
) -> TrainedNetwork:
    """Train a network with Adam on the squared error ½ · mean over images of ‖f(x) − y‖².

    **Arguments:**

    - `module`: a flax module, for example `ntkit.fc(1).flax(num_outputs=10, width=1024)`.
    - `images`: (n, height, width, channels) or (n, d), preprocessed as the network shall see them.
    - `targets`: (n, outputs), soft labels of a distilled set or `ntkit.data.one_hot(labels, classes)`.
    - `key`: for the initialization and the batches.
    - `steps`: gradient steps. `learning_rate`: Adam's, decayed to 0 by a cosine.
    - `batch_size`: images of each step's random batch; `None`, or at least n: all.

    **Returns:** a [`TrainedNetwork`][].

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the loss became infinite or NaN.
    """
    check_images("images", images)
    images, targets = jnp.asarray(images), jnp.asarray(targets)
    if targets.ndim != 2 or len(targets) != len(images):
        raise ValueError(f"targets: got shape {targets.shape}, expected ({len(images)}, outputs)")
    if steps < 1:
        raise ValueError(f"steps: got {steps!r}, expected at least 1")
    batch = None if batch_size is None or batch_size >= len(images) else batch_size
    network = _train(module, steps, batch, images, targets, key, jnp.float32(learning_rate))
    if not np.isfinite(np.asarray(network.losses)).all():
        raise FloatingPointError(f"training diverged with learning_rate={learning_rate}: try a smaller one")
    return network


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, variables: Any, x: Array) -> Array:
    return module.apply(variables, x)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(
    module: nn.Module,
    steps: int,
    batch_size: int | None,
    images: Array,
    targets: Array,
    key: Array,
    learning_rate: Array,
) -> TrainedNetwork:
    import optax

    schedule = optax.cosine_decay_schedule(1.0, steps)
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(schedule))
    key_init, key_batches = jax.random.split(key)
    variables = module.init(key_init, images[:1])

    def objective(variables: Any, x: Array, y: Array) -> Array:
        return 0.5 * jnp.mean(jnp.sum((module.apply(variables, x) - y) ** 2, axis=1))

    def step(carry: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], Array]:
        variables, state = carry
        x, y = images, targets
        if batch_size is not None:
            chosen = jax.random.choice(
                jax.random.fold_in(key_batches, index), len(images), (batch_size,), replace=False
            )
            x, y = images[chosen], targets[chosen]
        loss, gradient = jax.value_and_grad(objective)(variables, x, y)
        updates, state = optimizer.update(gradient, state, variables)
        variables = optax.apply_updates(variables, jax.tree.map(lambda u: -learning_rate * u, updates))
        return (variables, state), loss

    (variables, _), losses = lax.scan(step, (variables, optimizer.init(variables)), jnp.arange(steps))
    return TrainedNetwork(variables, losses, module)
