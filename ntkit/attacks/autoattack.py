"""AutoAttack: the standard ensemble, each attack on the images that still stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntkit._checks import check_integer
from ntkit.attacks.apgd import APGD
from ntkit.attacks.attack import Attack
from ntkit.attacks.balls import check_norm
from ntkit.attacks.fab import FAB
from ntkit.attacks.problem import Model, Problem, all_outputs, whole_batches
from ntkit.attacks.square import Square
from ntkit.attacks.task import Task


@dataclasses.dataclass(frozen=True)
class AutoAttack(Attack):
    """APGD on cross-entropy, targeted APGD, targeted FAB and Square, in this order: AutoAttack, the standard one.

    Croce & Hein 2020 (arXiv:2003.01690), section 5. Each attack runs on the images on which the model is still right;
    those about which it is wrong from the beginning stay as they are, and so do those that nothing fools it about. Not
    inside `jit`.

    **Fields:**

    - `ball`: [`Linf`][ntkit.attacks.Linf] or [`L2`][ntkit.attacks.L2].
    - `steps`: gradient steps, of APGD and FAB, for each target.
    - `queries`: of Square.
    - `targets`: classes that the targeted attacks aim at; no more than there are.

    **Raises:** `ValueError` that names the field.
    """

    steps: int = dataclasses.field(default=100, kw_only=True)
    queries: int = dataclasses.field(default=5000, kw_only=True)
    targets: int = dataclasses.field(default=9, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norm("ball", self.ball)
        for name in ("steps", "queries", "targets"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))

    @property
    def stages(self) -> Mapping[str, Attack]:
        """The attacks, by the names of the paper."""
        return {
            "apgd-ce": APGD(self.ball, steps=self.steps),
            "apgd-t": APGD(self.ball, steps=self.steps, loss="targeted_dlr", targets=self.targets),
            "fab-t": FAB(self.ball, steps=self.steps, targets=self.targets),
            "square": Square(self.ball, queries=self.queries),
        }

    def perturb(self, model: Model, task: Task) -> tuple[Array, Array]:
        raise ValueError("model: got one inside jit, grad or vmap, expected AutoAttack to be called outside of them")

    def solve(self, found: Problem, key: Array, batch_size: int) -> Array:
        return self.by_stage(found, key, batch_size)[0]

    def by_stage(self, found: Problem, key: Array, batch_size: int) -> tuple[Array, dict[str, float]]:
        """Attack; give the images, and by the name of each stage the share of them that stand after it."""
        self.check(found)
        if found.traced:
            raise ValueError(
                "model: got one inside jit, grad or vmap, expected AutoAttack to be called outside of them"
            )
        size = min(int(batch_size), len(found.x))
        correct = ~np.asarray(found.goal.reached(found.clean))
        adversarial = np.array(found.x)
        shares: dict[str, float] = {}
        for i, (name, attack) in enumerate(self.stages.items()):
            left = np.flatnonzero(correct)
            if len(left):
                some = found.rows(whole_batches(left, size))
                attacked = attack.solve(some, jax.random.fold_in(key, i), size)
                wrong = np.asarray(some.goal.reached(all_outputs(found.model, attacked, size)))[: len(left)]
                adversarial[left[wrong]] = np.asarray(attacked)[: len(left)][wrong]
                correct[left[wrong]] = False
            shares[name] = float(np.mean(correct))
        return jnp.asarray(adversarial), shares
