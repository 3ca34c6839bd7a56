"""What a network's outputs depend on, for each input: its derivatives by all parameters, kept as products.

The derivative of an output by the weights of a dense or convolutional layer is a sum of outer products: of what entered
the layer and of the output's derivative by what left it, one for each place at which the weights were used. Inner
products of such derivatives can be had without ever forming them. Which parameters are weights of that kind is read
from what JAX traced of the network, so that it may be written in any way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ntkit._jaxprs import COMPILED, CONVOLUTION, called, is_value, run_alone

DENSE = "dot_general"
MAXIMA = "reduce_window_max"
CONVERTED = "convert_element_type"
# Turning or reordering weights changes no inner product of derivatives, nor does a sign, nor adding a constant.
REARRANGED = ("reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "copy_p", "neg")
SCALED = ("mul", "div")
SHIFTED = ("add", "add_any", "sub")
# Outputs, at most, whose derivatives are compiled each by itself.
ONE_BY_ONE = 20


class Factors(NamedTuple):
    """The derivatives of outputs by one layer's weights: Σ over places of entered ⊗ left. Pytrees of arrays."""

    entered: Float[Array, "n places in"]
    left: Float[Array, "n outputs places out"]


class Tangents(NamedTuple):
    """The derivatives of outputs by all parameters: in factors, or formed, one array for some parameters."""

    factors: tuple[Factors, ...]
    formed: tuple[Float[Array, "n outputs parameters"], ...]


def tangents(
    apply_fn: Callable[[Any, Array], Array],
    params: Any,
    x: Float[Array, "n ..."],
    cotangents: Float[Array, "k outputs"],
) -> Tangents:
    """Differentiate combinations of a network's outputs, for each input alone, by the parameters.

    **Arguments:** `apply_fn`: gives (n, outputs). `cotangents`: k combinations of outputs; they take the place of the
    outputs in what is returned.

    **Returns:** derivatives in the precision of the inputs, whatever that of the network is.
    """
    leaves, structure = jax.tree.flatten(params)
    precision = x.dtype

    def outputs(leaves: Sequence[Array], one: Array) -> Array:
        return apply_fn(jax.tree.unflatten(structure, leaves), one[None])[0]

    closed = jax.make_jaxpr(outputs)(leaves, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    network = _Network(closed, len(leaves))
    cotangents = cotangents.astype(closed.out_avals[0].dtype)
    rest = [i for i in range(len(leaves)) if i in network.opaque]

    # XLA's derivatives of maxima over windows take a CPU three times as long for a batch of cotangents as one by one.
    alone = network.has_maxima and len(cotangents) <= ONE_BY_ONE and jax.default_backend() == "cpu"

    def of_one(one: Array) -> Tangents:
        def run(taps: Sequence[Array], moving: Sequence[Array]) -> tuple[Array, list[Array]]:
            given = list(leaves)
            for i, leaf in zip(rest, moving, strict=True):
                given[i] = leaf
            return network.run([*given, one], taps)

        taps = [jnp.zeros(use.shape, use.dtype) for use in network.uses]
        _, pull, entered = jax.vjp(run, taps, [leaves[i] for i in rest], has_aux=True)
        left, others = _one_by_one(pull, cotangents) if alone else jax.vmap(pull)(cotangents)
        factors = tuple(use.factors(*pair) for use, *pair in zip(network.uses, entered, left, strict=True))
        made = Tangents(factors, tuple(other.reshape(len(cotangents), -1) for other in others))
        return jax.tree.map(lambda leaf: leaf.astype(precision), made)

    return jax.vmap(of_one)(x)


def _one_by_one(pull: Callable[[Array], Any], cotangents: Array) -> Any:
    """Pull back each cotangent by itself."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *(pull(one) for one in cotangents))


@dataclasses.dataclass(frozen=True)
class _Step:
    """One equation, of the network or of a function that it calls; names are numbers."""

    jaxpr: Any
    equation: Any
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Use:
    """The one place at which a layer's weights are used: a product or convolution of one input with them.

    **Fields:** `step`: which one. `weights`: which of its operands they are. `scale`: numbers that they were multiplied
    with before, and whether divided by instead. `shape`, `dtype`: of the result.
    """

    step: _Step
    weights: int
    scale: tuple[tuple[Any, bool], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.step.equation.outvars[0].aval.shape)

    @property
    def dtype(self) -> Any:
        return self.step.equation.outvars[0].aval.dtype

    def factors(self, entered: Array, left: Array) -> Factors:
        """Bring what entered and the derivatives (k, …) by what left into the form of `Factors`, of one input."""
        if self.step.equation.primitive.name == CONVOLUTION:
            return self._convolved(entered, left)
        contracting = self.step.equation.params["dimension_numbers"][0][1 - self.weights]
        places = [axis for axis in range(entered.ndim) if axis not in contracting]
        count = math.prod(entered.shape[axis] for axis in places)
        entered = entered.transpose(*places, *contracting).reshape(count, -1)
        # Of the result's axes those of the first operand come first.
        if self.weights == 1:
            left = left.reshape(len(left), count, -1)
        else:
            left = left.reshape(len(left), -1, count).transpose(0, 2, 1)
        return Factors(entered, left)

    def _convolved(self, entered: Array, left: Array) -> Factors:
        options = self.step.equation.params
        of_images, of_weights, of_result = options["dimension_numbers"]
        sizes = [self.step.equation.invars[1].aval.shape[axis] for axis in of_weights[2:]]
        n = entered.ndim
        first, pixels = 0, tuple(range(1, n - 1))
        patches = lax.conv_general_dilated_patches(
            lax.transpose(entered, (of_images[0], *of_images[2:], of_images[1])),
            filter_shape=sizes,
            window_strides=options["window_strides"],
            padding=options["padding"],
            lhs_dilation=options["lhs_dilation"],
            rhs_dilation=options["rhs_dilation"],
            dimension_numbers=lax.ConvDimensionNumbers(
                (first, n - 1, *pixels), (n - 1, n - 2, *range(n - 2)), (first, n - 1, *pixels)
            ),
            precision=lax.Precision.HIGHEST,
        )
        left = jax.vmap(lambda one: lax.transpose(one, (of_result[0], *of_result[2:], of_result[1])))(left)
        return Factors(patches.reshape(-1, patches.shape[-1]), left.reshape(len(left), -1, left.shape[-1]))


class _Network:
    """What JAX traced of a network with its parameters and one input, calls of compiled functions written out.

    `uses`: of weights that are used once, in a dense or convolutional layer. `opaque`: the parameters, by number, that
    are used in another way. `has_maxima`: whether there are maxima over windows of pixels.
    """

    def __init__(self, closed: Any, parameters: int) -> None:
        self._steps: list[_Step] = []
        self._values: dict[int, Any] = {}
        self._names = 0
        constants = [self._new(value) for value in closed.consts]
        self._inputs = [self._new() for _ in closed.jaxpr.invars]
        [self._output] = self._inline(closed.jaxpr, constants, self._inputs)
        self.uses, self.opaque = self._find(self._inputs[:parameters])
        self.has_maxima = any(step.equation.primitive.name == MAXIMA for step in self._steps)

    def run(self, inputs: Sequence[Array], taps: Sequence[Array]) -> tuple[Array, list[Array]]:
        """Give the outputs, with a tap added to what leaves each use, and what entered it, scaled as its weights."""
        values = self._values | dict(zip(self._inputs, inputs, strict=True))
        tapped = {use.step.outputs[0]: (use, tap) for use, tap in zip(self.uses, taps, strict=True)}
        entered: dict[int, Array] = {}

        def read(name: Any) -> Any:
            return name.val if is_value(name) else values[name]

        for step in self._steps:
            outputs = run_alone(step.jaxpr, step.equation, [read(name) for name in step.inputs])
            if step.outputs[0] in tapped:
                use, tap = tapped[step.outputs[0]]
                # Not rounded to half precision, which the network's own numbers have been already.
                single = jnp.promote_types(tap.dtype, jnp.float32)
                scale = jnp.ones((), single)
                for name, divided in use.scale:
                    number = jnp.ravel(read(name))[0]
                    scale = scale / number if divided else scale * number
                entered[step.outputs[0]] = read(step.inputs[1 - use.weights]).astype(single) * scale
                outputs = [outputs[0] + tap]
            values.update(zip(step.outputs, outputs, strict=True))
        return read(self._output), [entered[use.step.outputs[0]] for use in self.uses]

    def _new(self, value: Any = None) -> int:
        self._names += 1
        if value is not None:
            self._values[self._names] = value
        return self._names

    def _inline(self, jaxpr: Any, constants: Sequence[int], inputs: Sequence[Any]) -> list[Any]:
        """Append the steps of a jaxpr; give the names of its outputs."""
        names: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

        def named(variable: Any) -> Any:
            return variable if is_value(variable) else names[variable]

        for equation in jaxpr.eqns:
            given = tuple(named(variable) for variable in equation.invars)
            if equation.primitive.name in COMPILED:
                inner, values = called(equation)
                outputs = self._inline(inner, [self._new(value) for value in values], given)
            else:
                outputs = [self._new() for _ in equation.outvars]
                self._steps.append(_Step(jaxpr, equation, given, tuple(outputs)))
            names.update(zip(equation.outvars, outputs, strict=True))
        return [named(variable) for variable in jaxpr.outvars]

    def _find(self, parameters: Sequence[int]) -> tuple[list[_Use], set[int]]:
        # Weights, by the name that they have after they were rearranged and scaled: whose, and their scale.
        weights: dict[Any, tuple[int, tuple[tuple[Any, bool], ...]]] = {}
        weights.update({name: (i, ()) for i, name in enumerate(parameters)})
        # What depends on nothing, and of that what is one number, perhaps repeated.
        fixed, numbers = set(self._values), {name for name, value in self._values.items() if np.size(value) == 1}
        uses: dict[int, list[_Use | None]] = {}

        for step in self._steps:
            equation, kind = step.equation, step.equation.primitive.name
            are = [i for i, name in enumerate(step.inputs) if not is_value(name) and name in weights]
            others = [name for i, name in enumerate(step.inputs) if i not in are]
            if not are:
                if all(is_value(name) or name in fixed for name in others):
                    fixed.update(step.outputs)
                    if all(_is_number(name, numbers) for name in others) and kind == "broadcast_in_dim":
                        numbers.update(step.outputs)
                    if equation.outvars[0].aval.shape == ():
                        numbers.update(step.outputs)
                continue
            whose, scale = weights[step.inputs[are[0]]]
            before, after = equation.invars[are[0]].aval, equation.outvars[0].aval
            # From one precision into another the weights stay what they are.
            kept = before.dtype == after.dtype or (kind == CONVERTED and jnp.issubdtype(after.dtype, jnp.floating))
            same = before.size == after.size and kept
            if len(are) == 1 and same and self._keeps_inner_products(kind, others, fixed):
                weights[step.outputs[0]] = (whose, scale)
            elif len(are) == 1 and same and kind in SCALED and _is_number(others[0], numbers) and _scales(kind, are[0]):
                weights[step.outputs[0]] = (whose, (*scale, (others[0], kind == "div")))
            elif len(are) == 1 and _is_layer(equation, are[0]):
                uses.setdefault(whose, []).append(_Use(step, are[0], scale))
            else:
                for i in are:
                    uses.setdefault(weights[step.inputs[i]][0], []).append(None)
        if not is_value(self._output) and self._output in weights:
            uses.setdefault(weights[self._output][0], []).append(None)
        once = {whose: found[0] for whose, found in uses.items() if len(found) == 1}
        layers = {whose: use for whose, use in once.items() if use is not None}
        return list(layers.values()), set(uses) - set(layers)

    def _keeps_inner_products(self, kind: str, others: Sequence[Any], fixed: set[Any]) -> bool:
        if kind in SHIFTED:
            return is_value(others[0]) or others[0] in fixed
        # A reshape may also be one that adds axes of length 1.
        return kind in REARRANGED or kind == "broadcast_in_dim" or kind == CONVERTED


def _is_number(name: Any, numbers: set[Any]) -> bool:
    return np.size(name.val) == 1 if is_value(name) else name in numbers


def _scales(kind: str, weights: int) -> bool:
    return kind == "mul" or weights == 0


def _is_layer(equation: Any, weights: int) -> bool:
    """Whether an equation's derivative by its weights is a sum of outer products, as `_Use.factors` makes them."""
    options: Mapping[str, Any] = equation.params
    if equation.primitive.name == DENSE:
        return not any(options["dimension_numbers"][1])
    if equation.primitive.name == CONVOLUTION:
        return weights == 1 and options["feature_group_count"] == 1 and options["batch_group_count"] == 1
    return False
