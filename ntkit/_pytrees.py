"""Functions as arguments of compiled functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Function:
    """A plain function as a pytree without leaves."""

    held: ByValue = dataclasses.field(metadata={"static": True})

    def __call__(self, *arguments: Any) -> Any:
        return self.held.function(*arguments)
