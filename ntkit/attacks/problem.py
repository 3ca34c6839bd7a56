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
from ntkit._pytrees import ByValue, as_pytree, told_apart
from ntkit.attacks.balls import Ball, check_ball
from ntkit.data import check_images, check_labels

Model: TypeAlias = Callable[[Array], Array]
Bounds: TypeAlias = tuple[float, float]

BATCH_SIZE = 500


class Core(Protocol):
    """The compiled part of an attack: from a model, images, classes from 0, and a key for each image, images."""

    def __call__(self, model: Model, x: Array, classes: Array, keys: Array) -> Array: ...


@told_apart
@dataclasses.dataclass(frozen=True)
class _OnHost:
    """A function that only works on NumPy arrays, called from compiled code."""

    held: ByValue = dataclasses.field(metadata={"static": True})
    outputs: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Array) -> Array:
        found = jax.ShapeDtypeStruct((len(x), self.outputs), x.dtype)
        return jax.pure_callback(lambda values: np.asarray(self.held.function(values), x.dtype), found, x)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Checked arguments. `classes` are from 0: of labels −1 and +1 they are 0 and 1."""

    model: Any
    x: Array
    classes: Array
    outputs: int

    @property
    def differentiable(self) -> bool:
        """Whether the model has a gradient in JAX."""
        return _gradient_error(self.model, self.x) is None

    @property
    def traced(self) -> bool:
        """Whether this is inside jit, grad or vmap."""
        return traced(self.model, self.x, self.classes)

    def solve(self, core: Core, key: Array, batch_size: int) -> Array:
        """Run an attack, batch by batch, on every image."""
        keys = _own_keys(len(self.x), key)
        if self.traced:
            return core(self.model, self.x, self.classes, keys)
        if len(self.x) <= batch_size:
            adversarial = core(self.model, self.x, self.classes, keys)
        else:
            found = [
                core(self.model, self.x[rows], self.classes[rows], keys[rows])[: len(self.x) - start]
                for start, rows in batches(len(self.x), batch_size)
            ]
            adversarial = jnp.concatenate(found)
        if bad := int(np.sum(~np.isfinite(np.asarray(adversarial)).reshape(len(adversarial), -1).all(axis=1))):
            raise FloatingPointError(
                f"model: its gradient is NaN or infinite at {bad} of {len(self.x)} images, expected finite values"
            )
        return adversarial


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
        check_ball(ball, bounds)
    check_images("x", x)
    check_integer("batch_size", batch_size)
    check_callable("model", model, "a callable from images to outputs")
    x = jnp.asarray(x)
    if bounds is not None:
        check_inside(x, bounds)
    model, outputs = _model(model, x)
    classes = _classes(labels, len(x), outputs)
    if gradient and (error := _gradient_error(model, x)) is not None:
        raise training_error("model", error) or ValueError(
            f"model: got one that cannot be differentiated ({type(error).__name__}), expected a differentiable one; "
            "ntkit.attacks.square needs no gradient"
        ) from error
    found = Problem(model, x, classes, outputs)
    if not found.traced and not _finite(model, x, batch_size):
        raise FloatingPointError("model: got NaN or infinity for the images as they are, expected finite outputs")
    return found


def check_inside(x: Array, bounds: Bounds) -> None:
    """Raise `ValueError` unless images are within the bounds."""
    if traced(x):
        return
    # Not by JAX: here an array on a CPU is not copied, and nothing is compiled.
    values = np.asarray(x)
    if values.min() < bounds[0] or values.max() > bounds[1]:
        raise ValueError(
            f"x: got pixels from {values.min():g} to {values.max():g}, expected them within the bounds {tuple(bounds)}"
        )


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


def _finite(model: Any, x: Array, batch_size: int) -> bool:
    """Whether a model's outputs for images are."""
    if len(x) <= batch_size:
        return bool(np.isfinite(np.asarray(outputs_of(model, x))).all())
    return all(np.isfinite(np.asarray(outputs_of(model, x[rows]))).all() for _, rows in batches(len(x), batch_size))


def _model(model: Any, x: Array) -> tuple[Any, int]:
    """Give a model as a pytree, and the number of its outputs."""
    compilable = as_pytree(model)
    try:
        # Of a compiled function: another time with a model of this type nothing is traced.
        shape = check_call("model", outputs_of, compilable, x)
    except jax.errors.TracerArrayConversionError:
        # It is NumPy inside: what does not ask for gradients can be run on it.
        with calling("model"):
            found = np.asarray(model(np.asarray(x)))
        compilable = _OnHost(ByValue(model), found.shape[-1] if found.ndim else 0)
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
