"""A loop over a batch of images that shrinks as they are done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

State = TypeVar("State")

# Each part is compiled by itself: two halvings, and none of a batch that is small already, are worth their compilation.
HALVINGS = 2
SMALLEST = 32


def shrinking_loop(
    step: Callable[[Array, Any, State], State],
    done: Callable[[State], Array],
    fixed: Any,
    state: State,
    steps: int,
    *,
    first: int = 0,
    halve: bool = True,
) -> State:
    """Take steps until every image is done, and leave out those that are, once they are half of the batch.

    **Arguments:**

    - `step`: `step(i, fixed, state) -> state` for any number of images. It leaves those that are done as they are.
    - `done`: of each image of a state, (n,).
    - `fixed`, `state`: pytrees of arrays (n, …).
    - `steps`: the last step is number `steps - 1`. `first`: the number of the first.
    - `halve`: whether to leave any out. Where none is ever done, nothing is compiled for it.
    """
    n = len(done(state))
    parts = [n]
    while halve and len(parts) <= HALVINGS and -(-parts[-1] // 2) >= SMALLEST:
        parts.append(-(-parts[-1] // 2))
    i = jnp.full((), first, jnp.int32)
    for size, enough in zip(parts, [*parts[1:], 0], strict=True):
        if size == n:
            i, state = _loop(step, done, fixed, state, i, steps, enough)
            continue
        rows = jnp.argsort(done(state), stable=True)[:size]
        i, some = _loop(step, done, _of(rows, fixed), _of(rows, state), i, steps, enough)
        state = _put(rows, some, state)
    return state


def _of(rows: Array, tree: State) -> State:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _put(rows: Array, some: State, tree: State) -> State:
    return jax.tree.map(lambda leaf, values: leaf.at[rows].set(values), tree, some)


def _loop(
    step: Callable[[Array, Any, State], State],
    done: Callable[[State], Array],
    fixed: Any,
    state: State,
    i: Array,
    steps: int,
    enough: int,
) -> tuple[Array, State]:
    """Take steps until no more than `enough` images are left."""

    def unfinished(carry: tuple[Array, State]) -> Array:
        return (carry[0] < steps) & (jnp.sum(~done(carry[1])) > enough)

    def further(carry: tuple[Array, State]) -> tuple[Array, State]:
        return carry[0] + 1, step(carry[0], fixed, carry[1])

    return lax.while_loop(unfinished, further, (i, state))
