"""An attack with all its options: what `evaluate`, adversarial training and adv-KIP are given."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_callable, check_choice, check_named, wrong
from ntkit._pytrees import as_pytree, told_apart
from ntkit.attacks.apgd import apgd, check_apgd_loss
from ntkit.attacks.autoattack import autoattack
from ntkit.attacks.balls import Ball, check_ball, into_bounds
from ntkit.attacks.fab import fab
from ntkit.attacks.gradient import check_loss, fgsm, pgd
from ntkit.attacks.problem import Bounds, Model, check_options
from ntkit.attacks.square import square
from ntkit.data import Preprocessing
from ntkit.data.preprocess import check_preprocessing

ATTACKS: dict[str, Callable[..., Array]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "apgd": apgd,
    "fab": fab,
    "square": square,
    "autoattack": autoattack,
}


@told_apart
@dataclasses.dataclass(frozen=True, eq=False)
class Preprocessed:
    """A model of pixels: x ↦ model(preprocessing.transform(x)).

    An attack on it has its ball and bounds in the units of the pixels, whatever the model itself is fed. A pytree.

    **Fields:** `model`: a callable from preprocessed images to outputs. `preprocessing`: an `ntkit.data` one.
    """

    model: Any
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        check_callable("model", self.model, "a callable from preprocessed images to outputs")
        check_preprocessing("preprocessing", self.preprocessing)
        # A plain function becomes a pytree here.
        object.__setattr__(self, "model", as_pytree(self.model))

    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        """Give the outputs for images of pixels."""
        return self.model(self.preprocessing.transform(x))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, init=False)
class Adversary:
    """An attack with its ball and options, ready for any model: `adversary(model, images, labels, key)`.

        ntkit.attacks.Adversary("pgd", ntkit.attacks.Linf(8 / 255), steps=10)

    **Arguments:**

    - `attack`: `"fgsm"`, `"pgd"`, `"apgd"`, `"fab"`, `"square"` or `"autoattack"`.
    - `ball`, `bounds`: as in [`ntkit.attacks.pgd`][], in the units of the pixels.
    - `options`: others of that attack, such as `steps`.

    **Raises:** `ValueError` that names the argument.
    """

    attack: str
    ball: Ball
    bounds: Bounds
    options: tuple[tuple[str, Any], ...]

    def __init__(self, attack: str, ball: Ball, *, bounds: Bounds = (0, 1), **options: Any) -> None:
        check_choice("attack", attack, sorted(ATTACKS))
        bounds = check_ball(ball, bounds)
        known = [name for name in inspect.signature(ATTACKS[attack]).parameters if name not in _OTHERS]
        for name in options:
            if name not in known:
                raise ValueError(f"{name}: got it for {attack!r}, expected one of its options: {', '.join(known)}")
        check_options(**{name: value for name, value in options.items() if name != "loss"})
        if "loss" in options:
            check = check_apgd_loss if attack == "apgd" else check_loss
            loss = check(options["loss"])
            options |= {} if isinstance(options["loss"], str) else {"loss": loss}
        values = (attack, ball, bounds, tuple(sorted(options.items())))
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    def __call__(
        self, model: Model, x: Float[Array, "n ..."], labels: Int[ArrayLike, " n"], key: Array, **options: Any
    ) -> Float[Array, "n ..."]:
        """Attack a model of pixels at images, with their true classes: images as these.

        `options`: further ones, which take the place of its own.
        """
        attack = ATTACKS[self.attack]
        if "key" in inspect.signature(attack).parameters:
            options["key"] = key
        return attack(model, x, labels, self.ball, bounds=self.bounds, **dict(self.options) | options)

    def check_pixels(self, images: np.ndarray) -> None:
        """Raise `ValueError` unless all values of a data set are within the bounds, before any of it is attacked."""
        expected = "pixels within the adversary's bounds"
        into_bounds("images", images, self.bounds, expected, "; give the model's preprocessing as preprocessing=")


def check_adversaries(adversaries: object) -> None:
    """Raise `ValueError` unless `adversaries` are attacks by their names, or none."""
    expected = "ntkit.attacks.Adversary values by their names"
    named = check_named("adversaries", adversaries, expected)
    if not all(isinstance(adversary, Adversary) for adversary in named.values()):
        raise wrong("adversaries", adversaries, expected)


_OTHERS = ("model", "x", "labels", "ball", "key", "bounds")
