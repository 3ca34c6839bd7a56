"""Class-balanced random batches, drawn on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from ntkit._pytrees import pytree_dataclass


@pytree_dataclass
class ClassIndex:
    """Where the members of each class are, so that a batch can be drawn inside compiled code.

    **Fields:**

    - `members`: (classes, most) indices of each class's members; rows of smaller classes are filled up with repeats.
    - `counts`: (classes,) members of each class.
    """

    members: Int[Array, "classes most"]
    counts: Int[Array, " classes"]

    @classmethod
    def of(cls, labels: np.ndarray, num_classes: int) -> ClassIndex:
        """Index labels (n,) in 0 … num_classes − 1, every class of which must occur."""
        counts = np.bincount(labels, minlength=num_classes)
        members = np.stack(
            [np.resize(np.flatnonzero(labels == label), int(np.max(counts))) for label in range(num_classes)]
        )
        return cls(jnp.asarray(members, jnp.int32), jnp.asarray(counts, jnp.int32))

    def draw(self, key: Array, size: int) -> Int[Array, " size"]:
        """Draw `size` indices, equally many of each class (to within one, where classes do not divide `size`).

        Without replacement; a class with fewer members than its share gives each of them equally often (to within
        one).
        """
        key_members, key_classes = jax.random.split(key)
        num_classes, most = self.members.shape
        share = -(-size // num_classes)
        # The places of the largest of random numbers are a random sample in random order; a class's filling comes last.
        # (top_k, since sorting whole classes takes four times as long.)
        noise = jax.random.uniform(key_members, self.members.shape)
        noise = jnp.where(jnp.arange(most) < self.counts[:, None], noise, -1.0)
        _, order = lax.top_k(noise, min(share, most))
        ranks = jnp.arange(share) % self.counts[:, None]
        chosen = jnp.take_along_axis(self.members, jnp.take_along_axis(order, ranks, axis=1), axis=1)
        # Rank by rank, the classes shuffled: where `size` cuts the last rank short, chance says who is left out.
        by_rank = jax.random.permutation(key_classes, chosen.T, axis=1)
        return by_rank.reshape(-1)[:size]
