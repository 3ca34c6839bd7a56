"""What every attack begins and ends with: a model that can be compiled, checked arguments, and batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ntkit._checks import (
    calling,
    check_array,
    check_call,
    check_callable,
    check_flag,
    check_integer,
    check_number,
    check_outputs,
    check_positive,
    traced,
    training_error,
)
from ntkit._pytrees import ByIdentity, as_it_is, as_pytree, told_apart
from ntkit.attacks.balls import Ball, check_ball, into_bounds, like
from ntkit.attacks.losses import Loss, fooled, logits, spared
from ntkit.data import check_images, check_labels

Model: TypeAlias = Callable[[Array], Array]
Bounds: TypeAlias = tuple[float, float]

BATCH_SIZE = 500


# By how many roundings of its outputs a model must be wrong about an image for an attack to stop there: of the first
# attempt, and of others where the model, compiled by itself, then disagreed.
CLEARANCES = (1, 32, 1024)


class Core(Protocol):
    """The compiled part of an attack: from a model, images, classes from 0, and a key for each image, images.

    It leaves alone those that are `done`, if it leaves any alone, and stops where the model is wrong by a margin of
    `clearance`. It also gives where it did.
    """

    def __call__(
        self, model: Model, x: Array, classes: Array, keys: Array, done: Array, clearance: Array
    ) -> tuple[Array, Array]: ...


@told_apart
@dataclasses.dataclass(frozen=True)
class _OnHost:
    """A function that only works on NumPy arrays, called from compiled code."""

    held: ByIdentity = dataclasses.field(metadata={"static": True})
    outputs: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Array) -> Array:
        found = jax.ShapeDtypeStruct((len(x), self.outputs), x.dtype)
        return jax.pure_callback(lambda values: np.asarray(self.held.function(values), x.dtype), found, x)


@told_apart
@dataclasses.dataclass(frozen=True)
class _Wider:
    """A model that is searched in a wider dtype than that of its images or outputs."""

    model: Any
    images: Any = dataclasses.field(metadata={"static": True})
    wider: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Array) -> Array:
        return self.model(x.astype(self.images)).astype(self.wider)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Checked arguments. `classes` are from 0: of labels −1 and +1 they are 0 and 1.

    `x` is within the bounds, in which `given` may lack some rounding. `clean`: the outputs for `x`.
    """

    model: Any
    x: Array
    given: Array
    classes: Array
    clean: Array
    ball: Ball | None
    bounds: Bounds

    @property
    def outputs(self) -> int:
        """How many outputs the model has."""
        return self.clean.shape[1]

    @property
    def differentiable(self) -> bool:
        """Whether the model has a gradient in JAX."""
        return _gradient_error(self.model, self.x) is None

    @property
    def traced(self) -> bool:
        """Whether this is inside jit, grad or vmap."""
        return traced(self.model, self.x, self.classes)

    @property
    def dtype(self) -> Any:
        """What is computed in: float32 at least."""
        return jnp.result_type(self.x.dtype, self.clean.dtype, jnp.float32)

    @property
    def wide(self) -> Any:
        """The model as one of images and outputs in the dtype that is computed in."""
        if self.x.dtype == self.clean.dtype == self.dtype:
            return self.model
        return _Wider(self.model, self.x.dtype, self.dtype)

    def solve(self, core: Core, key: Array, batch_size: int, loss: Loss | None) -> Array:
        """Run an attack, batch by batch, on every image, and keep of what it finds what is no less harmful.

        What is kept is judged by the model compiled by itself, for batches as large as those of the attack.

        **Arguments:** `loss`: what says which of two images is more harmful that have both, or neither, a wrong class.
        Without one an image is changed only to get a wrong class.
        """
        arrays = (self.x, self.given, self.classes, self.clean, _own_keys(len(self.x), key))
        if self.traced or len(self.x) <= batch_size:
            found, bad = self._attack(core, loss, *arrays)
        else:
            parts = [
                [part[: len(self.x) - start] for part in self._attack(core, loss, *(array[rows] for array in arrays))]
                for start, rows in batches(len(self.x), batch_size)
            ]
            found, bad = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        if not self.traced and (count := int(np.sum(np.asarray(bad)))):
            raise FloatingPointError(
                f"model: its gradient is NaN or infinite at {count} of {len(self.x)} images, expected finite values"
            )
        return found

    def _attack(
        self, core: Core, loss: Loss | None, x: Array, given: Array, classes: Array, clean: Array, keys: Array
    ) -> tuple[Array, Array]:
        """Attack a batch; also give where there was a NaN."""
        assert self.ball is not None
        done, clearances = _begin(clean.astype(self.dtype), classes, self._rounding())
        tried = jnp.ones_like(done)
        best, bad = (x, clean), jnp.zeros_like(done)
        for clearance in clearances:
            found, stopped = core(self.wide, x.astype(self.dtype), classes, keys, done, clearance)
            if self.given is not self.x or found.dtype != x.dtype:
                found = _settle(self.ball, self.bounds, given, found)
            new = (found, outputs_of(self.model, found))
            best, unsure, failed = _keep(loss, self.dtype, best, new, classes, tried, stopped)
            bad |= failed
            if self.traced or not np.asarray(unsure).any():
                break
            # The search stopped too early for these: it goes on, through where it has been, to a clearer case.
            tried, done = unsure, ~unsure
        return best[0], bad

    def _rounding(self) -> float:
        return max(float(jnp.finfo(array.dtype).eps) for array in (self.x, self.clean))


@functools.partial(jax.jit, static_argnums=2)
def _begin(clean: Array, classes: Array, rounding: float) -> tuple[Array, list[Array]]:
    """Give about which images a model is wrong as they are, and the clearances of each attempt, all (n,)."""
    scale = rounding * jnp.max(jnp.abs(logits(clean)), axis=1)
    return fooled(clean, classes), [scale * times for times in CLEARANCES]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _settle(ball: Ball, bounds: Bounds, given: Array, found: Array) -> Array:
    return ball.settle(given, found, bounds)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _keep(
    loss: Loss | None,
    dtype: Any,
    best: tuple[Array, Array],
    new: tuple[Array, Array],
    classes: Array,
    tried: Array,
    stopped: Array,
) -> tuple[tuple[Array, Array], Array, Array]:
    """Of two pairs of images and outputs keep the more harmful ones; give also who only seemed to fool, and NaN."""
    bad = tried & ~jnp.all(jnp.isfinite(new[0]).reshape(len(tried), -1), axis=1)
    before, after = (outputs.astype(dtype) for _, outputs in (best, new))
    take = tried & (bad | ~spared(loss, before, after, classes))
    unsure = tried & stopped & ~fooled(after, classes)
    images, outputs = (jnp.where(like(take, old), found, old) for found, old in zip(new, best, strict=True))
    return (images, outputs), unsure, bad


def batches(n: int, size: int) -> list[tuple[int, np.ndarray]]:
    """Give where each batch begins, and its rows; the last is filled up with the first rows: one compilation."""
    size = min(n, size)
    return [(start, np.arange(start, start + size) % n) for start in range(0, n, size)]


def problem(
    model: Any,
    x: ArrayLike,
    labels: ArrayLike,
    ball: Ball | None,
    bounds: Bounds | None,
    *,
    gradient: bool = True,
    batch_size: int = BATCH_SIZE,
) -> Problem:
    """Check what every attack is given.

    **Arguments:** `ball`, `bounds`: `None` where nothing is attacked. `gradient`: whether the attack needs the model's.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the model's outputs for the images are not
    finite.
    """
    if ball is not None or bounds is not None:
        bounds = check_ball(ball, bounds)
    x = check_images("x", x)
    check_integer("batch_size", batch_size)
    check_callable("model", model, "a callable from images to outputs")
    given = x = jnp.asarray(x)
    if bounds is not None:
        x = jnp.asarray(into_bounds("x", given, bounds))
    model, outputs = _model(model, x)
    classes = _classes(labels, len(x), outputs)
    if gradient and (error := _gradient_error(model, x)) is not None:
        raise training_error("model", error) or ValueError(
            f"model: got one that cannot be differentiated ({type(error).__name__}), expected a differentiable one; "
            "ntkit.attacks.square needs no gradient"
        ) from error
    if traced(model, x, classes):
        clean, given = outputs_of(model, x), x
    else:
        clean = all_outputs(model, x, batch_size)
        if not np.isfinite(np.asarray(clean)).all():
            raise FloatingPointError("model: got NaN or infinity for the images as they are, expected finite outputs")
    return Problem(model, x, given, classes, clean, ball, bounds or (-np.inf, np.inf))


# What the options that attacks share must be. `loss` is each attack's own.
_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "steps": check_integer,
    "restarts": check_integer,
    "targets": check_integer,
    "queries": check_integer,
    "batch_size": check_integer,
    "step_size": lambda name, value: None if value is None else check_positive(name, value),
    "share": lambda name, value: check_number(name, value, above=0, most=1),
    "random_start": check_flag,
    "stop_early": check_flag,
    "record": lambda name, value: (
        None if value is None else check_callable(name, value, "a function of a name and a share")
    ),
}


def check_options(**options: Any) -> list[Any]:
    """Give the values of an attack's options, or raise `ValueError` that names the first that is not one."""
    return [_OPTIONS[name](name, value) for name, value in options.items()]


@jax.jit
def outputs_of(model: Any, x: Array) -> Array:
    """Give the outputs of a model that is a pytree, compiled."""
    return model(x)


@jax.jit
def _slope_of(model: Any, x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(model(x)))(x)


@functools.partial(jax.jit, static_argnums=0)
def _own_keys(n: int, key: Array) -> Array:
    """Give each image a key, which depends on its index alone."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))


def all_outputs(model: Any, x: Array, batch_size: int) -> Array:
    """Give the outputs of a model that is a pytree, in batches of one size."""
    if len(x) <= batch_size:
        return outputs_of(model, x)
    parts = [outputs_of(model, x[rows])[: len(x) - start] for start, rows in batches(len(x), batch_size)]
    return jnp.concatenate(parts)


def _model(model: Any, x: Array) -> tuple[Any, int]:
    """Give a model as a pytree, and the number of its outputs."""
    compilable = as_pytree(model)
    try:
        compilable = as_it_is(compilable, x)
        # Of a compiled function: another time with a model of this type nothing is traced.
        shape = check_call("model", outputs_of, compilable, x)
    except jax.errors.TracerArrayConversionError:
        # It is NumPy inside: what does not ask for gradients can be run on it.
        with calling("model"):
            found = np.asarray(model(np.asarray(x)))
        compilable = _OnHost(ByIdentity(model), found.shape[-1] if found.ndim else 0)
        shape = jax.ShapeDtypeStruct(found.shape, found.dtype)
    return compilable, check_outputs("model", shape, len(x))


def _classes(labels: ArrayLike, n: int, outputs: int) -> Array:
    if outputs > 1:
        check_labels("labels", labels, n, outputs)
        return jnp.asarray(labels)
    values = check_array("labels", labels, "integers")
    if values.shape != (n,) or not jnp.issubdtype(values.dtype, jnp.signedinteger):
        raise ValueError(f"labels: got {values.dtype} of shape {values.shape}, expected integers of shape ({n},)")
    if not traced(values) and not bool(np.all(np.abs(np.asarray(values)) == 1)):
        raise ValueError("labels: got others than −1 and +1, expected these of a model with one output")
    return (jnp.asarray(values) + 1) // 2


def _gradient_error(model: Any, x: Array) -> Exception | None:
    try:
        jax.eval_shape(_slope_of, model, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    except Exception as error:
        # A rule that is missing shows as one of many exceptions.
        return error
    return None
