"""The tangent kernel of a finite network, at the parameters that it has, as a kernel to work with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_call, check_callable, check_integer, check_outputs, wrong
from ntkit._loops import fast_in_loops
from ntkit._pytrees import ByIdentity, Partly, pytree_dataclass, static_field, traceable
from ntkit.kernels import memory
from ntkit.kernels._tangents import Factors, Tangents, tangents
from ntkit.kernels.base import Kernel
from ntkit.kernels.inputs import check_columns, check_inputs, check_pair
from ntkit.kernels.pairs import balanced, divided, each, rectangle, triangle

# A pass of an input for one column of a product takes as long as this many pairs. Measured: 40 to 220.
PASS = 150
# Multiplications of a matrix product that take as long as reading, multiplying and adding one element.
ELEMENTWISE = 32


def empirical_ntk(apply_fn: Callable[[Any, Array], Array], params: Any, *, output: int | None = None) -> EmpiricalNTK:
    """Make a kernel of a finite network: the inner products of its derivatives by the parameters.

    Θ(x, x')[c, c'] = ∂f_c(x)/∂θ · ∂f_c'(x')/∂θ (Jacot et al. 2018, arXiv:1806.07572, eq. 4). As a kernel it is the mean
    over outputs of Θ[c, c], which converges to the closed form [`ntkit.ntk`][] as the network gets wide; or Θ[c, c] of
    one output. `kernel.full` gives all of Θ. The network is applied to each input alone.

    The kernel is exact. Derivatives by the weights of dense and convolutional layers stay in factors and are contracted
    in the cheapest order for each layer (as the structured derivatives of Novak et al. 2022, arXiv:2206.08720, section
    3.3, do); derivatives by all other parameters are formed. Memory is bounded.

    **Arguments:**

    - `apply_fn`: `apply_fn(params, x) -> (n, outputs)`, for example `module.apply` of a flax module.
    - `params`: its parameters, a pytree of arrays. Of flax's variables, a mapping with `"params"` in it, these alone
      are differentiated by; of a pytree with functions among its leaves, such as an Equinox module, its arrays of
      floats. They are leaves of the kernel: `jit` compiles once for all values.
    - `output`: the one output whose kernel it is; default: the mean over all.

    **Returns:** an [`EmpiricalNTK`][], a [`Kernel`][] to fit, distil, attack and decompose like any other.

    **Raises:** `ValueError` that names the argument.
    """
    check_callable("apply_fn", apply_fn, "a function of parameters and inputs")
    params = params if _is_of_flax(params) else traceable(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(split(params)[0]):
        if not isinstance(leaf, jax.Array | np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise wrong(f"params{jax.tree_util.keystr(path)}", leaf, "an array of floats")
    if not jax.tree.leaves(split(params)[0]):
        raise ValueError("params: got no arrays, expected at least one")
    output = None if output is None else check_integer("output", output, 0)
    return EmpiricalNTK(params, ByIdentity(apply_fn), output)


@pytree_dataclass
class EmpiricalNTK(Kernel):
    """The tangent kernel of a finite network; [`empirical_ntk`][] makes it.

    **Fields:** `params`: as given. `network`: the function of parameters and inputs. `output`: the one whose kernel it
    is, or `None`: the mean over all.
    """

    params: Any
    network: ByIdentity = static_field()
    output: int | None = static_field()

    @property
    def engine(self) -> str:
        """Always `"empirical"`."""
        return "empirical"

    def full(
        self, x1: Float[ArrayLike, "n1 ..."], x2: Float[ArrayLike, "n2 ..."] | None = None
    ) -> Float[Array, "n1 n2 outputs outputs"]:
        """Give Θ for all pairs of inputs and of outputs: (n1, n2, outputs, outputs), whatever `output` is."""
        return _full(self, *check_pair(x1, x2))

    def gram_matmul(self, x1: Array, x2: Array, v: Array) -> Array:
        """Give K(x1, x2) v: without K where that is cheaper, else tile by tile.

        Without K it takes one pass over the network for each column of v, and for the mean over outputs for each output
        too, so that its cost grows with n1 + n2, where that of K grows with n1 · n2 (docs/empirical.md).
        """
        v = v.astype(jnp.promote_types(x1.dtype, x2.dtype))
        if self.multiplies_by_itself(len(x1), len(x2), v.shape[1]):
            return _product(self, x1, x2, v)
        return super().gram_matmul(x1, x2, v)

    def multiplies_by_itself(self, n1: int, n2: int, columns: int) -> bool:
        return PASS * columns * (n1 + n2) < n1 * n2

    def full_product(
        self, x1: Float[ArrayLike, "n1 ..."], x2: Float[ArrayLike, "n2 ..."], v: Float[ArrayLike, "n2 outputs"]
    ) -> Float[Array, "n1 outputs"]:
        """Give Σ over inputs and outputs of Θ(x1, x2)[c, c'] v[x2, c'], without Θ, in one pass over the network.

        That is how gradient descent changes all outputs at x1 if v is the gradient of the loss by those at x2.
        """
        second = check_inputs("x2", x2)
        first, _ = check_pair(x1, second)
        return _full_product(self, first, second, check_columns(v, (len(second), self.outputs(second))))

    def outputs(self, x: Float[ArrayLike, "n ..."]) -> int:
        """Give the number of outputs that the network has."""
        trained, whole = split(self.params)

        def applied(trained: Any, x: Array) -> Any:
            return self.network.function(whole(trained), x)

        found = check_call("apply_fn", applied, trained, check_inputs("x", x)[:1])
        outputs = check_outputs("apply_fn", found, 1)
        if self.output is not None and self.output >= outputs:
            raise ValueError(f"output: got {self.output}, expected less than the network's {outputs} outputs")
        return outputs

    def gram(self, x1: Array, x2: Array | None) -> Array:
        return _gram(self, x1, x2, each_pair=False) / len(self._cotangents(x1))

    def gram_diagonal(self, x: Array) -> Array:
        cotangents = self._cotangents(x)

        def own(x: Array) -> Array:
            held = fast_in_loops(self._tangents)(x, cotangents)
            total = sum((jnp.sum(formed**2, (1, 2)) for formed in held.formed), jnp.zeros(len(x), x.dtype))
            for entered, left in held.factors:
                inner = jnp.einsum("nsi,nti->nst", entered, entered, precision="highest")
                outer = jnp.einsum("nkso,nkto->nst", left, left, precision="highest")
                total += jnp.sum(inner * outer, (1, 2))
            return total / len(cotangents)

        return each(own, x, self._sizes(x, cotangents, each_pair=False).at_once)

    def _tangents(self, x: Array, cotangents: Array) -> Tangents:
        trained, whole = split(self.params)
        return tangents(lambda params, x: self.network.function(whole(params), x), trained, x, cotangents)

    def _cotangents(self, x: Array) -> Array:
        """Give the outputs of which the kernel is made, as rows of the identity."""
        every = jnp.eye(self.outputs(x), dtype=x.dtype)
        return every if self.output is None else every[self.output, None]

    def _sizes(self, x: Array, cotangents: Array, each_pair: bool) -> _Sizes:
        return _sizes(jax.eval_shape(self._tangents, x[:1], cotangents), each_pair)


class _Sizes(NamedTuple):
    """How many inputs are differentiated at once, and how many are held; pairs that are contracted at once."""

    at_once: int
    held: int
    pairs: int


def _sizes(one: Tangents, each_pair: bool) -> _Sizes:
    """Plan by the derivatives of one input."""
    held = jax.eval_shape(functools.partial(_reduced, each_pair=each_pair), one)
    needed, kept = (4 * sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (one, held))
    per_pair = 4
    for entered, left in held.factors:
        (_, places, _), (_, outputs, _, out) = entered.shape, left.shape
        if places > 1:
            per_pair = max(per_pair, 4 * places * (outputs * out + places if each_pair else 2 * places))
        elif each_pair:
            per_pair = max(per_pair, 8 * outputs**2)
    # Beside what is kept of it, an input needs its derivatives twice: as they are made, and as they are rearranged.
    return _Sizes(
        at_once=memory.at_once(4 * needed, memory.HELD),
        held=memory.at_once(2 * kept, memory.HELD),
        pairs=memory.at_once(per_pair),
    )


def _gram(kernel: EmpiricalNTK, x1: Array, x2: Array | None, each_pair: bool) -> Array:
    """Give the sum over outputs (n1, n2), or for each pair of outputs (n1, n2, outputs, outputs)."""
    x1, x2 = (x1, None) if x2 is None else _alike(x1, x2)
    cotangents = jnp.eye(kernel.outputs(x1), dtype=x1.dtype) if each_pair else kernel._cotangents(x1)
    sizes = kernel._sizes(x1, cotangents, each_pair)

    def held(x: Array) -> Tangents:
        def some(x: Array) -> Tangents:
            return _reduced(kernel._tangents(x, cotangents), each_pair)

        return each(some if len(x) <= sizes.at_once else fast_in_loops(some), x, sizes.at_once)

    def pairs(first: Tangents, second: Tangents, n1: int, n2: int) -> Array:
        rows = min(n1, max(math.isqrt(sizes.pairs), sizes.pairs // n2))
        columns = min(n2, max(1, sizes.pairs // rows))
        return rectangle(functools.partial(_contracted, each_pair=each_pair), first, second, (rows, columns))

    def block(x1: Array, x2: Array) -> Array:
        return pairs(held(x1), held(x2), len(x1), len(x2))

    if x2 is None and len(x1) <= sizes.held:
        own = held(x1)
        return pairs(own, own, len(x1), len(x1))
    if x2 is None and not each_pair:
        return triangle(block, x1, kernel.gram_diagonal(x1) * len(cotangents), sizes.held)
    x2 = x1 if x2 is None else x2
    return rectangle(block, x1, x2, (sizes.held, sizes.held))


def _reduced(made: Tangents, each_pair: bool) -> Tangents:
    """Form the derivatives by those weights for which that makes a pair of inputs cheaper."""
    factors, formed = [], list(made.formed)
    for entered, left in made.factors:
        (n, places, into), (_, outputs, _, out) = entered.shape, left.shape
        if _is_cheaper_formed(places, into, outputs, out, each_pair):
            product = jnp.einsum("nsi,nkso->nkio", entered, left, precision="highest")
            formed.append(product.reshape(n, outputs, into * out))
        else:
            factors.append(Factors(entered, left))
    return Tangents(tuple(factors), tuple(formed))


def _is_cheaper_formed(places: int, into: int, outputs: int, out: int, each_pair: bool) -> bool:
    """Compare multiplications for one pair of inputs; what is no matrix product counts for more."""
    if each_pair:
        in_factors = places**2 * (into + outputs * out + ELEMENTWISE) + places * outputs**2 * out
        return outputs**2 * into * out < in_factors
    return outputs * into * out < places**2 * (into + outputs * out + ELEMENTWISE)


def _contracted(first: Tangents, second: Tangents, each_pair: bool) -> Array:
    """Give the inner products of derivatives: (n1, n2), summed over outputs, or (n1, n2, outputs, outputs)."""
    product = functools.partial(jnp.einsum, precision="highest")
    total = jnp.zeros((), jax.tree.leaves(first)[0].dtype)
    for one, two in zip(first.formed, second.formed, strict=True):
        total += product("ncp,mdp->nmcd" if each_pair else "ncp,mcp->nm", one, two)
    for (entered1, left1), (entered2, left2) in zip(first.factors, second.factors, strict=True):
        if entered1.shape[1] == 1:
            inner = product("ni,mi->nm", entered1[:, 0], entered2[:, 0])
            if each_pair:
                total += inner[:, :, None, None] * product("nco,mdo->nmcd", left1[:, :, 0], left2[:, :, 0])
            else:
                total += inner * product("nco,mco->nm", left1[:, :, 0], left2[:, :, 0])
            continue
        inner = product("nsi,mti->nmst", entered1, entered2)
        if each_pair:
            total += product("ncso,nmsdo->nmcd", left1, product("nmst,mdto->nmsdo", inner, left2))
        else:
            total += jnp.sum(inner * product("ncso,mcto->nmst", left1, left2), (2, 3))
    return total


@jax.jit
def _full(kernel: EmpiricalNTK, x1: Array, x2: Array | None) -> Array:
    return _gram(kernel, x1, x2, each_pair=True)


@jax.jit
def _product(kernel: EmpiricalNTK, x1: Array, x2: Array, v: Array) -> Array:
    x1, x2 = _alike(x1, x2)
    cotangents = kernel._cotangents(x1)

    def of_output(cotangent: Array) -> Array:
        pushed = _pushed(kernel, x1, _pulled(kernel, x2, v[:, :, None] * cotangent[None, None]))
        return jnp.einsum("nco,o->nc", pushed, cotangent, precision="highest")

    return jnp.mean(lax.map(of_output, cotangents), 0)


@jax.jit
def _full_product(kernel: EmpiricalNTK, x1: Array, x2: Array, v: Array) -> Array:
    x1, x2 = _alike(x1, x2)
    return _pushed(kernel, x1, _pulled(kernel, x2, v[:, None]))[:, 0]


def _pulled(kernel: EmpiricalNTK, x: Array, v: Float[Array, "n columns outputs"]) -> Any:
    """Give Σ over inputs of (∂f/∂θ)ᵀ v for each column: a pytree like the parameters, with an axis in front."""
    trained, whole = split(kernel.params)
    v, back = _near_one(v.astype(x.dtype), 1)

    def add(total: Any, part: tuple[Array, Array, Array]) -> tuple[Any, None]:
        x, v, counts = part
        outputs, pull = jax.vjp(lambda params: _alone(kernel, whole(params), x), trained)
        [found] = jax.vmap(pull, 1)((v * counts[:, None, None]).astype(outputs.dtype))
        return jax.tree.map(lambda total, found: total + found.astype(total.dtype), total, found), None

    zero = jax.tree.map(lambda leaf: jnp.zeros((v.shape[1], *leaf.shape), v.dtype), trained)
    size = balanced(len(x), _at_once(kernel, x, v.shape[1]))
    parts = divided((x, v, jnp.ones(len(x), v.dtype)), size)
    # What fills up the last part counts for nothing.
    parts = (*parts[:2], (jnp.arange(parts[2].size) < len(x)).astype(v.dtype).reshape(parts[2].shape))
    return back(lax.scan(fast_in_loops(add), zero, parts)[0], 0)


def _pushed(kernel: EmpiricalNTK, x: Array, directions: Any) -> Float[Array, "n columns outputs"]:
    """Give ∂f/∂θ times each of some directions."""
    trained, whole = split(kernel.params)
    directions, back = _near_one(directions, 0)

    def some(x: Array) -> Array:
        def along(direction: Any) -> Array:
            direction = jax.tree.map(lambda way, leaf: way.astype(leaf.dtype), direction, trained)
            return jax.jvp(lambda params: _alone(kernel, whole(params), x), (trained,), (direction,))[1]

        return jax.vmap(along, out_axes=1)(directions).astype(x.dtype)

    return back(each(fast_in_loops(some), x, _at_once(kernel, x, len(jax.tree.leaves(directions)[0]))), 1)


def _near_one(columns: Any, axis: int) -> tuple[Any, Callable[[Any, int], Any]]:
    """Scale columns, along one axis of a pytree's arrays, by powers of two; give what scales a linear function back.

    A network of half precision has to take them as they come: of float16 the largest number is 65,504.
    """
    leaves = jax.tree.leaves(columns)
    largest = [jnp.max(jnp.abs(leaf), [i for i in range(leaf.ndim) if i != axis]) for leaf in leaves]
    exponent = jnp.frexp(lax.stop_gradient(jnp.max(jnp.stack(largest), 0)))[1]

    def scaled(tree: Any, axis: int, sign: int) -> Any:
        def scale(leaf: Array) -> Array:
            shape = [-1 if i == axis else 1 for i in range(leaf.ndim)]
            return leaf * jnp.ldexp(jnp.ones((), leaf.dtype), sign * exponent).reshape(shape)

        return jax.tree.map(scale, tree)

    return scaled(columns, axis, -1), lambda tree, axis: scaled(tree, axis, 1)


def _alone(kernel: EmpiricalNTK, params: Any, x: Array) -> Array:
    """Apply the network to each input alone."""
    return jax.vmap(lambda one: kernel.network.function(params, one[None])[0])(x)


def _at_once(kernel: EmpiricalNTK, x: Array, columns: int) -> int:
    """How many inputs a Jacobian-vector product takes at once."""
    one = jax.eval_shape(kernel._tangents, x[:1], jnp.eye(1, kernel.outputs(x), dtype=x.dtype))
    needed = 4 * sum(leaf.size for leaf in jax.tree.leaves(one.factors))
    return memory.at_once(4 * needed * columns, memory.HELD)


def split(params: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Give the parameters that are trained, and a function that puts them among the others."""
    if _is_of_flax(params):
        return params["params"], lambda trained: {**params, "params": trained}
    if isinstance(params, Partly):
        return params.floats(), params.with_floats
    return params, lambda trained: trained


def _is_of_flax(params: Any) -> bool:
    return isinstance(params, Mapping) and "params" in params


def _alike(x1: Array, x2: Array) -> tuple[Array, Array]:
    dtype = jnp.promote_types(x1.dtype, x2.dtype)
    return x1.astype(dtype), x2.astype(dtype)
