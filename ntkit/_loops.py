"""Functions with convolutions inside of compiled loops, which XLA's CPU backend can run slowly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import numpy as np
from jax import lax

# Calls of compiled functions, by the names of their primitives in the versions of JAX that are supported.
CALLS = ("jit", "pjit", "closed_call", "remat2", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
CONVOLUTION = "conv_general_dilated"


def slow_in_loops(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a loop around a function's derivative should be one of Python, around a compiled step.

    XLA's CPU backend runs the derivatives of convolutions inside of its own loops ten to thirty times slower than
    outside (jax-ml/jax issue 12868).
    """
    if jax.default_backend() != "cpu":
        return False
    return CONVOLUTION in _primitives(jax.make_jaxpr(function)(*arguments).jaxpr)


def fast_in_loops(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function, with convolutions or their derivatives in it, that XLA's CPU backend runs fast inside of loops.

    It has a library call for one layout only, images (n, height, width, channels) and weights (height, width, in, out),
    and brings convolutions into it outside of loops, but not inside. The derivatives have other layouts. Here they are
    traced and transposed, which changes no number. On other backends, and without convolutions, it is the function
    itself. What it gives is not to be differentiated any more: rules that were given for derivatives are gone.
    """

    def wrapped(*arguments: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*arguments)
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        evaluate = _evaluate if CONVOLUTION in _primitives(closed.jaxpr) else jax.core.eval_jaxpr
        outputs = evaluate(closed.jaxpr, closed.consts, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return wrapped


def _evaluate(jaxpr: Any, constants: Sequence[Any], *arguments: Any) -> list[Any]:
    """Run a jaxpr whose convolutions are brought into the library's layout."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(name: Any) -> Any:
        return name.val if _is_value(name) else values[name]

    for equation in jaxpr.eqns:
        kind, inputs = equation.primitive.name, [read(name) for name in equation.invars]
        if kind == CONVOLUTION:
            outputs = [_convolve(equation, *inputs)]
        elif kind in CALLS and CONVOLUTION in _primitives_of(equation):
            [inner] = [value for key, value in equation.params.items() if key in ("jaxpr", "call_jaxpr", "fun_jaxpr")]
            outputs = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), *inputs)
        else:
            outputs = _alone(jaxpr, equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(name) for name in jaxpr.outvars]


def _alone(jaxpr: Any, equation: Any, inputs: Sequence[Any]) -> list[Any]:
    """Run one equation of a jaxpr as it is."""
    given = {name: value for name, value in zip(equation.invars, inputs, strict=True) if not _is_value(name)}
    parts = {"invars": list(given), "outvars": equation.outvars, "eqns": [equation], "effects": equation.effects}
    alone = jaxpr.replace(constvars=(), **parts)
    return list(jax.core.eval_jaxpr(alone, (), *given.values()))


def _convolve(equation: Any, images: Any, weights: Any) -> Any:
    """Convolve with images (n, height, width, channels) and weights (height, width, in, out), whatever they were."""
    # Of each: where its batch or its outputs, its channels, and its pixels are.
    of_images, of_weights, of_result = equation.params["dimension_numbers"]
    n = len(of_images)
    first, last, pixels = 0, n - 1, tuple(range(1, n - 1))
    images = lax.transpose(images, (of_images[0], *of_images[2:], of_images[1]))
    weights = lax.transpose(weights, (*of_weights[2:], of_weights[1], of_weights[0]))
    layout = lax.ConvDimensionNumbers((first, last, *pixels), (last, n - 2, *range(n - 2)), (first, last, *pixels))
    result = equation.primitive.bind(images, weights, **equation.params | {"dimension_numbers": layout})
    back = np.argsort((of_result[0], *of_result[2:], of_result[1]))
    return lax.transpose(result, tuple(int(i) for i in back))


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Give the name of every primitive, those of functions that are called too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        yield from _primitives_of(equation)


def _primitives_of(equation: Any) -> Iterator[str]:
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(inner):
            yield from _primitives(getattr(inner, "jaxpr", inner))


def _is_value(name: object) -> bool:
    return hasattr(name, "val")


def _is_jaxpr(value: object) -> bool:
    return hasattr(value, "eqns")
