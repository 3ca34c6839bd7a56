"""Reading and running what JAX traced of a function, one equation after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.core

# Calls of compiled functions, by the names of their primitives in the versions of JAX that are supported.
COMPILED = ("jit", "pjit", "closed_call", "remat2")
# Calls of functions with derivatives of their own, which are lost if they are not called as they are.
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
CONVOLUTION = "conv_general_dilated"


def called(equation: Any) -> tuple[Any, Sequence[Any]]:
    """Give the jaxpr that a call calls, and its constants."""
    [inner] = [value for key, value in equation.params.items() if key in ("jaxpr", "call_jaxpr", "fun_jaxpr")]
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def run_alone(jaxpr: Any, equation: Any, inputs: Sequence[Any]) -> list[Any]:
    """Run one equation of a jaxpr as it is."""
    given = {name: value for name, value in zip(equation.invars, inputs, strict=True) if not is_value(name)}
    parts = {"invars": list(given), "outvars": equation.outvars, "eqns": [equation], "effects": equation.effects}
    alone = jaxpr.replace(constvars=(), **parts)
    return list(jax.core.eval_jaxpr(alone, (), *given.values()))


def primitives(jaxpr: Any) -> Iterator[str]:
    """Give the name of every primitive, those of functions that are called too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        yield from primitives_of(equation)


def primitives_of(equation: Any) -> Iterator[str]:
    """Give the name of every primitive in the functions that one equation calls."""
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(inner):
            yield from primitives(getattr(inner, "jaxpr", inner))


def is_value(name: object) -> bool:
    """Whether an input of an equation is a number that is written into it, not a name."""
    return hasattr(name, "val")


def _is_jaxpr(value: object) -> bool:
    return hasattr(value, "eqns")
