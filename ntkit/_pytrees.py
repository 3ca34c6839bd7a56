"""Values and functions as arguments of compiled functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def told_apart(cls: type) -> type:
    """Register a dataclass as a pytree, like `jax.tree_util.register_dataclass`, that no other one is taken for.

    JAX 0.10 to 0.12 compares the structures of dataclasses by their fields and not by their types. Where two types have
    the same ones, a compiled function is now and then run with what it was compiled for the other.

    What `__post_init__` checks are a user's arguments. JAX, which builds values again with tracers, arrays, `None` or
    objects of its own as leaves, goes past it.
    """
    fields = dataclasses.fields(cls)
    static = [field.name for field in fields if field.metadata.get("static")]
    leaves = [field.name for field in fields if field.name not in static]

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in leaves]
        return children, tuple(getattr(value, name) for name in static)

    def unflatten(others: tuple[Any, ...], children: Iterable[Any]) -> Any:
        value: Any = object.__new__(cls)
        vars(value).update(zip(leaves, children, strict=True))
        vars(value).update(zip(static, others, strict=True))
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


def as_pytree(function: Any) -> Any:
    """Give a function that can be handed to a compiled one: itself if it is a pytree, such as a `Predictor`.

    A plain function is wrapped. It is compiled once, with what it closes over at that time. So is a pytree whose
    structure cannot be compared, which JAX does not take.
    """
    if jax.tree_util.all_leaves([function]):
        return _Function(ByValue(function))
    if not is_hashable(jax.tree.structure(function)):
        return _Function(ByValue(function))
    return traceable(function)


def traceable(tree: Any) -> Any:
    """Give a pytree as JAX can trace it: itself if all leaves are numbers, else a `Partly`.

    Libraries that write networks as pytrees, such as Equinox, leave functions and flags among the leaves.
    """
    leaves, structure = jax.tree.flatten(tree)
    if all(_is_array(leaf) or isinstance(leaf, int | float | complex) for leaf in leaves) and not any(
        isinstance(leaf, bool) for leaf in leaves
    ):
        return tree
    arrays = tuple(leaf for leaf in leaves if _is_array(leaf))
    return Partly(arrays, structure, tuple(None if _is_array(leaf) else ByValue(leaf) for leaf in leaves))


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return True
    return isinstance(leaf, np.ndarray | np.generic) and (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number))


@dataclasses.dataclass(frozen=True, eq=False)
class ByValue:
    """A function, or other thing, as a key of a cache: those that can't be compared are equal if they are the same."""

    function: Any

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __hash__(self) -> int:
        return hash(self.function) if is_hashable(self.function) else id(self.function)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ByValue):
            return False
        return self.function is other.function or (
            type(self.function) is type(other.function)
            and is_hashable(self.function)
            and bool(self.function == other.function)
        )


def is_hashable(value: Any) -> bool:
    """Whether a value can decide, by what it is, what is compiled."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def static(function: Any) -> Any:
    """Give a function that a compiled one can be made for: itself, or one that is known by being the same."""
    return function if is_hashable(function) else ByValue(function)


@told_apart
@dataclasses.dataclass(frozen=True)
class _Function:
    """A plain function as a pytree without leaves."""

    held: ByValue = dataclasses.field(metadata={"static": True})

    def __call__(self, *arguments: Any) -> Any:
        return self.held.function(*arguments)


@told_apart
@dataclasses.dataclass(frozen=True)
class Partly:
    """A pytree of which its arrays alone are traced. What its other leaves are decides what is compiled.

    **Fields:** `others`: the leaves, with `None` in the place of an array.
    """

    arrays: tuple[Any, ...]
    structure: Any = dataclasses.field(metadata={"static": True})
    others: tuple[ByValue | None, ...] = dataclasses.field(metadata={"static": True})

    def whole(self) -> Any:
        """Give the pytree as it was."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if other is None else other.function for other in self.others]
        return jax.tree.unflatten(self.structure, leaves)

    def floats(self) -> list[Any]:
        """Give those of its arrays that can be differentiated by."""
        return [array for array in self.arrays if _is_float(array)]

    def with_floats(self, floats: Iterable[Any]) -> Any:
        """Give the pytree with others in the place of these."""
        given = iter(floats)
        return dataclasses.replace(
            self, arrays=tuple(next(given) if _is_float(array) else array for array in self.arrays)
        ).whole()

    def __call__(self, *arguments: Any) -> Any:
        return self.whole()(*arguments)


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))
