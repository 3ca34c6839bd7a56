"""What every attack begins and ends with: a model that can be compiled, checked arguments, and batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ntkit._checks import (
    calling,
    check_array,
    check_call,
    check_callable,
    check_integer,
    check_outputs,
    check_real,
    traced,
    training_error,
)
from ntkit._pytrees import ByIdentity, as_it_is, as_pytree, pytree_dataclass, static_field
from ntkit.attacks.balls import Ball
from ntkit.attacks.goals import Goal
from ntkit.data import check_images, check_labels

Model: TypeAlias = Callable[[Array], Array]

BATCH_SIZE = 500


@pytree_dataclass
class _OnHost:
    """A function that only works on NumPy arrays, called from compiled code."""

    held: ByIdentity = static_field()
    outputs: int = static_field()

    def __call__(self, x: Array) -> Array:
        found = jax.ShapeDtypeStruct((len(x), self.outputs), x.dtype)
        return jax.pure_callback(lambda values: np.asarray(self.held.function(values), x.dtype), found, x)


@pytree_dataclass
class _Wider:
    """A model that is searched in a wider dtype than that of its images or outputs."""

    model: Any
    images: Any = static_field()
    wider: Any = static_field()

    def __call__(self, x: Array) -> Array:
        return self.model(x.astype(self.images)).astype(self.wider)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Checked arguments.

    `x` is within the bounds, in which `given` may lack some rounding. `goal`: with classes from 0: of labels −1 and +1
    they are 0 and 1. `clean`: the outputs for `x`.
    """

    model: Any
    x: Array
    given: Array
    goal: Goal
    clean: Array
    radii: Array | None = None
    mask: Array | None = None

    @property
    def classes(self) -> Array:
        """The true classes, from 0."""
        return self.goal.classes

    @property
    def outputs(self) -> int:
        """How many outputs the model has."""
        return self.clean.shape[1]

    @property
    def gradient_error(self) -> Exception | None:
        """What is raised where the model's gradient is asked for, if anything is."""
        x = jax.ShapeDtypeStruct((1, *self.x.shape[1:]), self.x.dtype)
        try:
            jax.eval_shape(_slope_of, self.model, x)
        except Exception as error:
            # A rule that is missing shows as one of many exceptions.
            return error
        return None

    def check_differentiable(self) -> None:
        """Raise `ValueError` unless the model has a gradient in JAX."""
        if (error := self.gradient_error) is not None:
            raise training_error("model", error) or ValueError(
                f"model: got one that cannot be differentiated ({type(error).__name__}), expected a differentiable "
                "one; ntkit.attacks.Square needs no gradient"
            ) from error

    def rows(self, rows: np.ndarray) -> Problem:
        """Give the problem of some of the images."""
        x = self.x[rows]
        return Problem(
            model=self.model,
            x=x,
            given=x if self.given is self.x else self.given[rows],
            goal=jax.tree.map(lambda values: values[rows], self.goal),
            clean=self.clean[rows],
            radii=None if self.radii is None else self.radii[rows],
            mask=None if self.mask is None else self.mask[rows],
        )

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

    @property
    def rounding(self) -> float:
        """The rounding of one operation, relative, in what the images and outputs are computed in."""
        return max(float(jnp.finfo(array.dtype).eps) for array in (self.x, self.clean))


def batches(n: int, size: int) -> list[tuple[int, np.ndarray]]:
    """Give where each batch begins, and its rows; the last is filled up with the first rows: one compilation."""
    size = min(n, size)
    return [(start, np.arange(start, start + size) % n) for start in range(0, n, size)]


def whole_batches(rows: np.ndarray, size: int) -> np.ndarray:
    """Fill rows up with the first of them to batches of one size: what is attacked is compiled once."""
    return np.resize(rows, -(-len(rows) // size) * size)


def problem(
    model: Any,
    x: ArrayLike,
    labels: ArrayLike,
    ball: Ball | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    target: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    radius: ArrayLike | None = None,
) -> Problem:
    """Check what every attack is given.

    **Arguments:** `ball`: `None` where nothing is attacked. Others: as of an [`Attack`][ntkit.attacks.Attack].

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the model's outputs for the images are not
    finite.
    """
    x = check_images("x", x)
    check_integer("batch_size", batch_size)
    check_callable("model", model, "a callable from images to outputs")
    given = x = jnp.asarray(x)
    if ball is not None:
        x = jnp.asarray(ball.check_pixels("x", given))
    model, outputs = _model(model, x)
    goal = Goal(_classes("labels", labels, len(x), outputs))
    if target is not None:
        goal = Goal(goal.classes, _targets(target, labels, goal.classes, outputs))
    if traced(model, x, goal.classes):
        clean, given = outputs_of(model, x), x
    else:
        clean = all_outputs(model, x, batch_size)
        if not np.isfinite(np.asarray(clean)).all():
            raise FloatingPointError("model: got NaN or infinity for the images as they are, expected finite outputs")
    found = Problem(model, x, given, goal, clean)
    if radius is not None and ball is not None:
        found = dataclasses.replace(found, radii=_radii(radius, ball, len(x), found.dtype))
    return found if mask is None else dataclasses.replace(found, mask=_mask(mask, x.shape))


@jax.jit
def outputs_of(model: Any, x: Array) -> Array:
    """Give the outputs of a model that is a pytree, compiled."""
    return model(x)


@jax.jit
def _slope_of(model: Any, x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(model(x)))(x)


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


def _classes(name: str, labels: ArrayLike, n: int, outputs: int) -> Array:
    """Give classes from 0, of labels from 0 or, for a model with one output, of −1 and +1."""
    if outputs > 1:
        check_labels(name, labels, n, outputs)
        return jnp.asarray(labels)
    values = check_array(name, labels, "integers")
    if values.shape != (n,) or not jnp.issubdtype(values.dtype, jnp.signedinteger):
        raise ValueError(f"{name}: got {values.dtype} of shape {values.shape}, expected integers of shape ({n},)")
    if not traced(values) and not bool(np.all(np.abs(np.asarray(values)) == 1)):
        raise ValueError(f"{name}: got others than −1 and +1, expected these of a model with one output")
    return (jnp.asarray(values) + 1) // 2


def _targets(target: ArrayLike, labels: ArrayLike, classes: Array, outputs: int) -> Array:
    values = check_array("target", target, "a class, or one for each image")
    if values.ndim == 0:
        values = np.full(len(classes), values) if not traced(values) else jnp.full(len(classes), values)
    targets = _classes("target", values, len(classes), outputs)
    if not traced(targets, classes):
        same = int(np.sum(np.asarray(targets) == np.asarray(classes)))
        if same:
            raise ValueError(f"target: got the true class for {same} of {len(classes)} images, expected other classes")
    return targets


def _radii(radius: ArrayLike, ball: Ball, n: int, dtype: Any) -> Array:
    expected = f"a number above 0 for each image, of shape ({n},)"
    values = check_real("radius", radius)
    if values.shape != (n,):
        raise ValueError(f"radius: got shape {values.shape}, expected {expected}")
    if traced(values):
        return jnp.asarray(values, dtype)
    exact = np.asarray(values, np.float64)
    if not (np.isfinite(exact).all() and (exact > 0).all()):
        raise ValueError(f"radius: got values from {exact.min():g} to {exact.max():g}, expected {expected}")
    ball.check_radius("radius", float(exact.max()))
    rounded = exact.astype(dtype)
    # No image's ball is larger than it was asked for.
    lower = np.nextafter(rounded, np.zeros_like(rounded))
    return jnp.asarray(np.where(rounded.astype(np.float64) > exact, lower, rounded))


def _mask(mask: ArrayLike, shape: tuple[int, ...]) -> Array:
    expected = f"booleans that broadcast to {shape}: which values may change"
    values = check_array("mask", mask, expected)
    if values.dtype != bool:
        raise ValueError(f"mask: got {values.dtype} of shape {values.shape}, expected {expected}")
    try:
        return jnp.broadcast_to(jnp.asarray(values), shape)
    except ValueError:
        raise ValueError(f"mask: got shape {values.shape}, expected {expected}") from None
