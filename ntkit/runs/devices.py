"""Steps on all devices of a mesh: each computes its part of a batch, and all take the same step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ntkit.runs.meshes import check_mesh, on_each, spans_processes, with_one_axis
from ntkit.runs.processes import Group, is_key

Tree = TypeVar("Tree")
Function = TypeVar("Function", bound=Callable[..., Any])

_AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class Devices:
    """One device, or those of a mesh, of one process or of several. The methods change nothing for one device.

    Every device holds the data and the state, and draws the same batch; only what is computed of each example of the
    batch, which is nearly all the work, is divided.

    **Fields:** `mesh`: a mesh with one axis, or None: where JAX computes by default.
    """

    mesh: Mesh | None = None

    @classmethod
    def of(cls, mesh: Mesh | None) -> Devices:
        """Take all devices of a mesh, whatever its axes."""
        if mesh is None:
            return cls()
        check_mesh(mesh)
        return cls(with_one_axis(mesh, _AXIS))

    @property
    def group(self) -> Group:
        """The processes whose devices these are."""
        return Group(self.mesh is not None and spans_processes(self.mesh))

    # --- In compiled code

    def everywhere(self, function: Function) -> Function:
        """Run a function of pytrees on every device, each with the same arguments and the same result."""
        if self.mesh is None:
            return function
        same = PartitionSpec()
        return on_each(self.mesh, function, same, same)

    def own(self, batch: Tree) -> Tree:
        """Give this device's part of a batch, a pytree of arrays (n, …): as many rows on each, some of them twice."""
        if self.mesh is None:
            return batch
        n = len(jax.tree.leaves(batch)[0])
        count = -(-n // self.mesh.devices.size)
        rows = (lax.axis_index(_AXIS) * count + jnp.arange(count)) % n
        return jax.tree.map(lambda leaf: leaf[rows], batch)

    def own_key(self, key: Array) -> Array:
        """Give a key for what is random on this device alone."""
        return key if self.mesh is None else jax.random.fold_in(key, lax.axis_index(_AXIS))

    def together(self, part: Float[Array, "m classes"], n: int) -> Float[Array, "n classes"]:
        """Give all n rows of which each device has the part that `own` gave it."""
        return part if self.mesh is None else lax.all_gather(part, _AXIS, tiled=True)[:n]

    def averaged(self, objective: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Make the value and the gradient of an objective the same on all devices.

        **Arguments:** `objective`: a function of parameters, with a loss of all devices' predictions `together`, which
        is the same on each up to rounding, and with anything that is not to be differentiated.
        """
        if self.mesh is None:
            return objective

        # Each device has its own copy of the parameters, and differentiates the sum over devices of a loss that is the
        # same on all: the sum of these gradients is as many times too large, and the gradient is their mean. A rule of
        # its own, since an optimizer with a line search differentiates the objective itself.
        @jax.custom_vjp
        def averaged(parameters: Any) -> Any:
            return lax.pmean(objective(parameters), _AXIS)

        def forward(parameters: Any) -> tuple[Any, Any]:
            return lax.pmean(jax.value_and_grad(objective, has_aux=True)(parameters), _AXIS)

        def backward(gradient: Any, cotangent: Any) -> tuple[Any]:
            return (jax.tree.map(lambda leaf: cotangent[0] * leaf, gradient),)

        averaged.defvjp(forward, backward)
        return averaged

    # --- On the host

    def place(self, tree: Any) -> Any:
        """Put a pytree of arrays, JAX's or NumPy's, which every process has, on every device."""
        if self.mesh is None:
            return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf), tree)
        sharding = NamedSharding(self.mesh, PartitionSpec())

        def copy(leaf: Array | np.ndarray) -> Array:
            if isinstance(leaf, jax.Array) and is_key(leaf):
                return jax.random.wrap_key_data(copy(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
            array = np.asarray(leaf if isinstance(leaf, jax.Array | np.ndarray) else jnp.asarray(leaf))
            # A copy, since on a CPU JAX may take the memory as it is, and a dispatch gives it away.
            return jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))

        return jax.tree.map(copy, tree)

    def on_host(self, tree: Tree) -> Tree:
        """Give arrays that every device has as arrays of this process alone."""
        if self.mesh is None:
            return tree

        def fetch(leaf: Array) -> Any:
            if is_key(leaf):
                return jax.random.wrap_key_data(fetch(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
            return np.asarray(leaf)

        return jax.tree.map(fetch, tree)
