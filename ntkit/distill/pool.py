"""A pool of networks, each of which trains for a while on the support set as it is learned, and then begins anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


class Pool(NamedTuple):
    """Networks, of which each step draws one. A pytree.

    **Fields:** `networks`: a pytree of arrays (size, …), of whatever belongs to each. `ages`: the steps that each has
    trained for. `key`: of all draws. `step`: the steps of all.
    """

    networks: Any
    ages: Int[Array, " size"]
    key: Array
    step: Array

    @classmethod
    def of(cls, fresh: Callable[[Array], Any], size: int, max_steps: int, key: Array) -> Pool:
        """Make networks, by a function of a key, that begin anew after `max_steps`."""
        networks = [fresh(each) for each in jax.random.split(jax.random.fold_in(key, 2**31 - 1), size)]
        # Of all ages: else all would begin anew at about the same time.
        ages = jnp.arange(size, dtype=jnp.int32) * max_steps // size
        return cls(jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks), ages, key, jnp.zeros((), jnp.int32))

    @property
    def chosen(self) -> Array:
        """Which network is this step's."""
        return jax.random.randint(jax.random.fold_in(self.key, 2 * self.step), (), 0, len(self.ages))

    @property
    def network(self) -> Any:
        """The network of this step."""
        return jax.tree.map(lambda leaf: leaf[self.chosen], self.networks)

    def after(self, trained: Any, fresh: Callable[[Array], Any], max_steps: int) -> Pool:
        """Give the pool of the next step: this one's network trained, or, if it has had its steps, another."""
        age = self.ages[self.chosen] + 1
        key = jax.random.fold_in(self.key, 2 * self.step + 1)
        network = lax.cond(age < max_steps, lambda: trained, lambda: fresh(key))
        return Pool(
            jax.tree.map(lambda all_, one: all_.at[self.chosen].set(one), self.networks, network),
            self.ages.at[self.chosen].set(age % max_steps),
            self.key,
            self.step + 1,
        )
