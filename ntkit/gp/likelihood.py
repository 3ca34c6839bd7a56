"""How likely observations are under a Gaussian process, and the hyper-parameters that make them likeliest."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_integer, check_key, check_number, check_optimizer, check_scalar, traced
from ntkit._pytrees import ByIdentity
from ntkit.gp.posterior import check_noise, evidence, solved
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.networks.optimizers import updated
from ntkit.regression import check_training_set

if TYPE_CHECKING:
    import optax

# Starts are drawn within this part of the way to the bounds, which are at infinity for the optimizer.
WITHIN = 0.9
# Steps without a gain after which an optimizer has come to its end.
PATIENCE = 3


class Maximum(NamedTuple):
    """The hyper-parameters that [`maximize`][ntkit.gp.maximize] found.

    **Fields:** `kernel`: with them. `noise`: the variance of an observation's error. `log_marginal_likelihood`: with
    these. `reached`: what each start came to, (starts,), NaN where it broke down.
    """

    kernel: Kernel
    noise: Float[Array, ""]
    log_marginal_likelihood: Float[Array, ""]
    reached: Float[Array, " starts"]


def log_marginal_likelihood(
    kernel: Kernel, x: Float[ArrayLike, "n ..."], y: Float[ArrayLike, "n outputs"], noise: ArrayLike
) -> Float[Array, ""]:
    """Give log p(y | x), summed over outputs (Rasmussen & Williams 2006, eq. 2.30).

    Compiled, and differentiable to any order in everything: the kernel's hyper-parameters, which are its leaves, the
    noise, inputs and targets. Arguments and errors are those of [`condition`][ntkit.gp.condition].
    """
    check_kernel("kernel", kernel)
    x, y = check_training_set(x, y)
    found = _log_marginal_likelihood(kernel, x, y, check_noise(noise, len(x)))
    if not traced(found) and not np.isfinite(found):
        raise FloatingPointError(
            "log_marginal_likelihood: not finite; look for NaN or infinite values in the inputs and the kernel"
        )
    return found


def maximize(
    kernel: Kernel,
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n outputs"],
    noise: ArrayLike,
    *,
    key: Array,
    starts: int = 3,
    within: float = 100.0,
    steps: int = 50,
    optimizer: optax.GradientTransformation | None = None,
) -> Maximum:
    """Find the kernel's hyper-parameters and the noise under which the observations are likeliest.

    Each is learned as a logarithm within bounds around what is given. A leaf of the kernel that is 0, or no float,
    stays as it is.

    **Arguments:**

    - `kernel`, `x`, `y`: as of [`condition`][ntkit.gp.condition].
    - `noise`: a number above 0.
    - `key`: for the starts.
    - `starts`: how many: the first is what is given, the others are drawn between the bounds.
    - `within`: above 1; a hyper-parameter stays above what is given divided by it, and below that times it.
    - `steps`: of the optimizer, from each start, at most: it ends where three gain no more than rounding. Each
      factorizes the covariance, once or a few times.
    - `optimizer`: one of optax; `None`: `optax.lbfgs()`.

    **Returns:** a [`Maximum`][ntkit.gp.Maximum].

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the likelihood is finite at no start.
    """
    check_kernel("kernel", kernel)
    x, y = check_training_set(x, y)
    noise = check_scalar("noise", noise)
    if traced(kernel, x, y, noise, key):
        raise ValueError("maximize: got traced arguments, inside jit, grad or vmap, expected values")
    if float(np.asarray(noise)) == 0:
        raise ValueError("noise: got 0, expected a number above 0, to begin with")
    key, starts, steps = check_key("key", key), check_integer("starts", starts), check_integer("steps", steps)
    within = check_number("within", within, above=1)
    chosen = _lbfgs() if optimizer is None else check_optimizer("optimizer", optimizer)
    leaves, structure = jax.tree.flatten((kernel, noise))
    learned = tuple(_is_positive(leaf) for leaf in leaves)
    given = jnp.stack([jnp.log(jnp.asarray(leaf, x.dtype)) for leaf, yes in zip(leaves, learned, strict=True) if yes])
    drawn = jax.random.uniform(key, (starts, len(given)), given.dtype, -WITHIN, WITHIN).at[0].set(0)
    fixed = [None if yes else leaf for leaf, yes in zip(leaves, learned, strict=True)]

    problem = _Problem(structure, learned, math.log(within), ByIdentity(chosen), steps)
    ends, reached = _maximize(problem, fixed, given, jnp.arctanh(drawn), x, y)
    if not np.any(np.isfinite(np.asarray(reached))):
        raise FloatingPointError(
            "maximize: not finite at any start; look for NaN or infinite values in the inputs and the kernel"
        )
    best = jnp.nanargmax(jnp.where(jnp.isfinite(reached), reached, jnp.nan))
    kernel, noise = problem.at(ends[best], given, fixed)
    return Maximum(kernel, noise, reached[best], reached)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What decides what is compiled: which leaves are learned, how far they may go, and how."""

    structure: jax.tree_util.PyTreeDef
    learned: tuple[bool, ...]
    width: float
    optimizer: ByIdentity
    steps: int

    def at(self, place: Array, given: Array, fixed: list[Any]) -> tuple[Kernel, Array]:
        """Give the kernel and the noise at a place of the optimizer, which has no bounds."""
        found = iter(jnp.exp(given + self.width * jnp.tanh(place)))
        leaves = [next(found) if yes else leaf for yes, leaf in zip(self.learned, fixed, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)


@functools.partial(jax.jit, static_argnums=0)
def _maximize(
    problem: _Problem, fixed: list[Any], given: Array, starts: Array, x: Array, y: Array
) -> tuple[Array, Array]:
    optimizer = problem.optimizer.function

    def objective(place: Array) -> Array:
        kernel, noise = problem.at(place, given, fixed)
        return -_log_marginal_likelihood(kernel, x, y, noise)

    # A line search takes longest where rounding is all that is left to gain.
    tolerance = jnp.finfo(given.dtype).eps ** 0.75

    def climbs(state: tuple[Array, Any, Array, Array, Array]) -> Array:
        *_, idle, step = state
        return (step < problem.steps) & (idle < PATIENCE)

    def step(state: tuple[Array, Any, Array, Array, Array]) -> tuple[Array, Any, Array, Array, Array]:
        place, inner, before, idle, step = state
        value, gradient = jax.value_and_grad(objective)(place)
        update, inner = updated(optimizer, gradient, inner, place, value, objective)
        idles = jnp.abs(before - value) <= tolerance * jnp.maximum(1.0, jnp.abs(value))
        return place + update, inner, value, jnp.where(idles, idle + 1, 0), step + 1

    def climbed(start: Array) -> tuple[Array, Array]:
        none = jnp.zeros((), jnp.int32)
        begin = (start, optimizer.init(start), jnp.full((), jnp.inf, given.dtype), none, none)
        end = lax.while_loop(climbs, step, begin)[0]
        return end, -objective(end)

    return lax.map(climbed, starts)


@jax.jit
def _log_marginal_likelihood(kernel: Kernel, x: Array, y: Array, noise: ArrayLike) -> Array:
    gram = kernel(x)
    y = y.astype(gram.dtype)
    lower, weights, _ = solved(gram, y, jnp.asarray(noise, gram.dtype))
    return evidence(lower, weights, y)


def _is_positive(leaf: Any) -> bool:
    values = np.asarray(leaf)
    return values.shape == () and jnp.issubdtype(values.dtype, jnp.floating) and bool(values > 0)


@functools.cache
def _lbfgs() -> optax.GradientTransformation:
    """The same object each time, for which everything is compiled once."""
    import optax

    return optax.lbfgs()
