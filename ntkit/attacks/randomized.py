"""A model that draws at random, attacked in expectation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkit._checks import check_callable, check_integer, check_key
from ntkit._pytrees import as_pytree, pytree_dataclass, static_field


@pytree_dataclass(eq=False)
class Randomized:
    """A model of its own noise: x ↦ the mean of `model(x, key)` over draws of the key.

    An attack on it climbs the expectation over the model's randomness, and so does not mistake noise for robustness
    (expectation over transformation: Athalye et al. 2018, arXiv:1802.00420, section 4.2). The draws of an image depend
    on its pixels and the key: every step of an attack has new ones, and the same image always the same outputs, in
    whatever batch. An attack that stops early stops where one set of draws is fooled; so
    [`evaluate`][ntkit.attacks.evaluate] judges what it found with other draws. A pytree.

        noisy = ntkit.attacks.Randomized(lambda x, key: model(x + 0.1 * jax.random.normal(key, x.shape)), key)

    **Fields:** `model`: `model(x, key) -> outputs` (n, outputs), of one batch and one key. `key`: a `jax.random` key.
    `samples`: draws for each image, over which the outputs are averaged.
    """

    model: Any
    key: Array
    samples: int = static_field(default=16)

    def __post_init__(self) -> None:
        check_callable("model", self.model, "a callable from images and a key to outputs")
        check_key("key", self.key)
        object.__setattr__(self, "samples", check_integer("samples", self.samples))
        # A plain function becomes a pytree here.
        object.__setattr__(self, "model", as_pytree(self.model))

    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        """Give the mean outputs for images."""

        def of_image(image: Array, number: Array) -> Array:
            keys = jax.random.split(jax.random.fold_in(self.key, number), self.samples)
            return jnp.mean(jax.vmap(lambda key: self.model(image[None], key)[0])(keys), axis=0)

        return jax.vmap(of_image)(x, _numbers(x))


def redrawn(model: Any) -> Any:
    """Give a pytree in which every [`Randomized`][] model has other draws."""

    def other(leaf: Any) -> Any:
        return dataclasses.replace(leaf, key=jax.random.fold_in(leaf.key, 1)) if isinstance(leaf, Randomized) else leaf

    return jax.tree.map(other, model, is_leaf=lambda leaf: isinstance(leaf, Randomized))


def _numbers(x: Array) -> Array:
    """Give each image a number that another image hardly has: a sum of its bits with odd weights, modulo 2³²."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x).astype(jnp.float32), jnp.uint32).reshape(len(x), -1)
    weights = jax.random.bits(jax.random.key(0), bits.shape[1:], jnp.uint32) | jnp.uint32(1)
    # The lower bits of most pixels are zero: what is folded in must depend on the upper ones.
    mixed = (bits ^ (bits >> 15)) * weights
    return jnp.sum(mixed ^ (mixed >> 13), axis=1, dtype=jnp.uint32)
