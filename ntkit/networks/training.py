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
@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with its parameters: a model, and a JAX pytree. [`train`][] makes it.

    **Fields:** `variables`: what `module.apply` takes. `losses`: the loss (steps,) before each step. `module`: the
    flax module. `initial`: the variables at initialization, of which the output is subtracted; `None` if it was not
    trained `centred`.
    """

    variables: Any
    losses: Float[Array, " steps"]
    module: nn.Module = dataclasses.field(metadata={"static": True})
    initial: Any = None

    def __call__(self, x: Float[ArrayLike, "m ..."]) -> Float[Array, "m outputs"]:
        """Predict the outputs (m, outputs) for a batch of inputs."""
        return _apply(self.module, self.variables, self.initial, jnp.asarray(x))


def train(
    module: nn.Module,
    images: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n outputs"],
    *,
    key: Array,
    steps: int = 1000,
    learning_rate: float = 1e-3,
    batch_size: int | None = None,
    centred: bool = False,
) -> TrainedNetwork:
    """Train a network with Adam on the squared error ½ · mean over images of ‖f(x) − y‖².

    **Arguments:**

    - `module`: a flax module, for example `ntkit.fc(1).flax(num_outputs=10, width=1024)`.
    - `images`: (n, height, width, channels) or (n, d), preprocessed as the network shall see them.
    - `targets`: (n, outputs), soft labels of a distilled set or `ntkit.data.one_hot(labels, classes)`.
    - `key`: for the initialization and the batches.
    - `steps`: gradient steps. `learning_rate`: Adam's, decayed to 0 by a cosine.
    - `batch_size`: images of each step's random batch; `None`, or at least n: all.
    - `centred`: subtract the network's output at initialization, so that training starts from f_0 = 0 as in the
      closed forms ([`ntkit.regression.flow`][] and [`ntkit.regression.fit`][]).

    **Returns:** a [`TrainedNetwork`][].

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the loss became infinite or NaN.
    """
    check_images("images", images)
    images, targets = jnp.asarray(images), jnp.asarray(targets)
    if targets.ndim != 2 or len(targets) != len(images):
        raise ValueError(f"targets: got shape {targets.shape}, expected ({len(images)}, outputs)")
    if not np.isfinite(np.asarray(targets)).all():
        raise ValueError("targets: got NaN or infinity, expected finite values")
    for name, value in (("steps", steps), ("batch_size", 1 if batch_size is None else batch_size)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")
    if not (np.ndim(learning_rate) == 0 and np.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate: got {learning_rate!r}, expected a finite number above 0")
    outputs, _ = jax.eval_shape(module.init_with_output, key, images)
    if outputs.shape != targets.shape:
        raise ValueError(f"targets: got shape {targets.shape}, expected {outputs.shape} as the network's outputs")
    batch = None if batch_size is None or batch_size >= len(images) else int(batch_size)
    network = _train(module, int(steps), batch, centred, images, targets, key, jnp.float32(learning_rate))
    if not np.isfinite(np.asarray(network.losses)).all():
        raise FloatingPointError(f"training diverged with learning_rate={learning_rate}: try a smaller one")
    return network


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, variables: Any, initial: Any, x: Array) -> Array:
    outputs = module.apply(variables, x)
    return outputs if initial is None else outputs - module.apply(initial, x)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _train(
    module: nn.Module,
    steps: int,
    batch_size: int | None,
    centred: bool,
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
    initial = variables if centred else None
    if centred:
        # To start from f_0 = 0 and learn y is to start where the network does and learn y + f_0.
        targets = targets + module.apply(variables, images)

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
    return TrainedNetwork(variables, losses, module, initial)
