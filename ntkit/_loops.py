"""Where a compiled loop is slower than calls of one compiled step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax


def slow_in_loops(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a loop around a function should be one of Python, around a compiled step.

    XLA's CPU backend runs the derivatives of convolutions inside of its own loops about ten times slower than outside:
    there it has no library call for their layout (jax-ml/jax issue 12868).
    """
    if jax.default_backend() != "cpu":
        return False
    return "conv_general_dilated" in _primitives(jax.make_jaxpr(function)(*arguments).jaxpr)


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Give the name of every primitive, those of functions that are called too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _primitives(getattr(inner, "jaxpr", inner))


def _is_jaxpr(value: object) -> bool:
    return hasattr(value, "eqns")
