"""Values and functions as arguments of compiled functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax


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

    A plain function is wrapped. It is compiled once, with what it closes over at that time.
    """
    return _Function(ByValue(function)) if jax.tree_util.all_leaves([function]) else function


@dataclasses.dataclass(frozen=True, eq=False)
class ByValue:
    """A function as a key of a cache: functions that can't be compared are equal if they are the same."""

    function: Callable[..., Any]

    def __hash__(self) -> int:
        try:
            return hash(self.function)
        except TypeError:
            return id(self.function)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ByValue):
            return False
        return self.function is other.function or (
            isinstance(self.function, type(other.function)) and bool(self.function == other.function)
        )


@told_apart
@dataclasses.dataclass(frozen=True)
class _Function:
    """A plain function as a pytree without leaves."""

    held: ByValue = dataclasses.field(metadata={"static": True})

    def __call__(self, *arguments: Any) -> Any:
        return self.held.function(*arguments)
