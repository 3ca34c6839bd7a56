"""How useful a feature is, and how robust: what it says of the labels, and what is left of that under attack."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_key
from ntkit.attacks.attack import Attack, check_attack
from ntkit.attacks.losses import fooled
from ntkit.attacks.problem import BATCH_SIZE, Model, all_outputs, problem
from ntkit.data.targets import targets_of


class Measure(NamedTuple):
    """What a model says of the labels.

    **Fields:** `accuracy`: the share of images that it classifies as labelled. `correlation`: of its outputs with the
    labels, in [−1, 1]: the mean of ⟨f(x), y⟩ over the root mean squares of ‖f(x)‖ and ‖y‖, where y are centred one-hot
    labels, or −1 and +1 for one output.
    """

    accuracy: float
    correlation: float


def usefulness(
    model: Model, x: Float[ArrayLike, "n ..."], labels: Int[ArrayLike, " n"], *, batch_size: int = BATCH_SIZE
) -> Measure:
    """Measure how useful a feature, or any model, is.

    A feature φ is ρ-useful if P(sign φ(x) = y) = ρ, or argmax for several classes (Tsilivis & Kempe 2022,
    arXiv:2210.05577, eq. 3 and appendix A); the correlation is that of Ilyas et al. 2019 (arXiv:1905.02175, section 2),
    made independent of the feature's scale.

    **Arguments:** `model`, `x`, `labels`, `batch_size`: as in [`ntkit.attacks.pgd`][], but that nothing is asked of the
    pixels' range.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the outputs are not finite.
    """
    found = problem(model, x, labels, batch_size=batch_size)
    return _measure(found.clean, found.clean, found.classes, ~np.asarray(fooled(found.clean, found.classes)))


def robustness(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    attack: Attack,
    *,
    key: Array | None = None,
    batch_size: int = BATCH_SIZE,
) -> Measure:
    """Measure how robust a feature, or any model, is: its usefulness under an attack.

    A feature is γ-robust if P(sign φ(x + δ) = y for all δ in the ball) = γ (Tsilivis & Kempe 2022, eq. 4). What is
    measured is an upper bound of that, as good as the attack. An image about which the model is wrong as it is counts
    as wrong; the correlation is that at the attacked images, in units of the feature's root mean square on clean ones,
    so that it may be below −1.

    **Arguments:** `attack`: an [`ntkit.attacks.Attack`][]; with `stop_early=False` and a loss it goes on to lower
    the correlation. `key`: of its draws (default: `jax.random.key(0)`). Others: as in [`ntkit.attacks.pgd`][].

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if outputs or gradients are not finite.
    """
    check_attack("attack", attack)
    key = jax.random.key(0) if key is None else check_key("key", key)
    found = problem(model, x, labels, attack.ball, batch_size=batch_size)
    attacked = attack.solve(found, key, batch_size)
    outputs = all_outputs(found.model, attacked, batch_size)
    right = ~np.asarray(fooled(found.clean, found.classes)) & ~np.asarray(fooled(outputs, found.classes))
    return _measure(outputs, found.clean, found.classes, right)


def _measure(outputs: Array, clean: Array, classes: Array, right: np.ndarray) -> Measure:
    targets = np.asarray(targets_of(classes, outputs.shape[1]), np.float64)
    values, scale = np.asarray(outputs, np.float64), np.sqrt(np.sum(np.asarray(clean, np.float64) ** 2))
    size = scale * np.sqrt(np.sum(targets**2))
    return Measure(float(np.mean(right)), float(np.sum(values * targets) / size) if size > 0 else 0.0)
