"""Functions with convolutions inside of compiled loops, which XLA's CPU backend can run slowly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import numpy as np
from jax import lax

from ntkit._jaxprs import COMPILED, CONVOLUTION, CUSTOM, called, is_value, primitives, primitives_of, run_alone


def slow_in_loops(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a loop around a function's derivative should be one of Python, around a compiled step.

    XLA's CPU backend runs the derivatives of convolutions inside of its own loops ten to thirty times slower than
    outside (jax-ml/jax issue 12868).
    """
    if jax.default_backend() != "cpu":
        return False
    return CONVOLUTION in primitives(jax.make_jaxpr(function)(*arguments).jaxpr)


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
        evaluate = _evaluate if CONVOLUTION in primitives(closed.jaxpr) else jax.core.eval_jaxpr
        outputs = evaluate(closed.jaxpr, closed.consts, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return wrapped


def _evaluate(jaxpr: Any, constants: Sequence[Any], *arguments: Any) -> list[Any]:
    """Run a jaxpr whose convolutions are brought into the library's layout."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(name: Any) -> Any:
        return name.val if is_value(name) else values[name]

    for equation in jaxpr.eqns:
        kind, inputs = equation.primitive.name, [read(name) for name in equation.invars]
        if kind == CONVOLUTION:
            outputs = [_convolve(equation, *inputs)]
        elif kind in (*COMPILED, *CUSTOM) and CONVOLUTION in primitives_of(equation):
            outputs = _evaluate(*called(equation), *inputs)
        else:
            outputs = run_alone(jaxpr, equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(name) for name in jaxpr.outvars]


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
