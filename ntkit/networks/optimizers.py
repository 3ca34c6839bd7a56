"""Optimizers by their numbers: the same ones are one object, for which everything is compiled once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxtyping import Array

from ntkit._checks import check_integer, check_positive

if TYPE_CHECKING:
    import optax


def adam(learning_rate: float = 1e-3, *, decay_over: int | None = None) -> optax.GradientTransformation:
    """Give optax's Adam.

    **Arguments:** `learning_rate`: of the first step, above 0. `decay_over`: steps after which it has fallen to 0 along
    a cosine; `None`: it stays.

    **Returns:** the same object for the same numbers. An optimizer decides what is compiled, so that two of optax's own
    would be compiled for twice.

    **Raises:** `ValueError` that names the argument.
    """
    return _optimizer("adam", *_checked(learning_rate, decay_over))


def adabelief(learning_rate: float = 1e-3, *, decay_over: int | None = None) -> optax.GradientTransformation:
    """Give optax's AdaBelief; arguments, result and errors are those of [`adam`][ntkit.networks.adam]."""
    return _optimizer("adabelief", *_checked(learning_rate, decay_over))


def sgd(learning_rate: float = 1e-3, *, decay_over: int | None = None) -> optax.GradientTransformation:
    """Give optax's SGD without momentum; arguments, result and errors are those of [`adam`][ntkit.networks.adam]."""
    return _optimizer("sgd", *_checked(learning_rate, decay_over))


def _checked(learning_rate: float, decay_over: int | None) -> tuple[float, int | None]:
    rate = check_positive("learning_rate", learning_rate)
    return rate, None if decay_over is None else check_integer("decay_over", decay_over)


@functools.cache
def _optimizer(name: str, rate: float, decay_over: int | None) -> optax.GradientTransformation:
    import optax

    schedule = rate if decay_over is None else optax.cosine_decay_schedule(rate, decay_over)
    return {"adam": optax.adam, "adabelief": optax.adabelief, "sgd": optax.sgd}[name](schedule)


def updated(
    optimizer: optax.GradientTransformation,
    gradient: Any,
    state: Any,
    parameters: Any,
    loss: Array,
    objective: Callable[[Any], Array],
) -> tuple[Any, Any]:
    """Update with what some optimizers ask for beside the gradient: step sizes from the loss, line searches."""
    import optax

    update = optax.with_extra_args_support(optimizer).update
    return update(gradient, state, parameters, value=loss, grad=gradient, value_fn=objective)
