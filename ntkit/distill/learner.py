"""What a learner is: what is fitted on the support set, and how one differentiates through it."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkit._checks import wrong
from ntkit.kernels import Kernel


class Draws(NamedTuple):
    """What a learner carries that draws anew: the key of all draws, and the steps so far."""

    key: Array
    step: Array

    @classmethod
    def first(cls, key: Array) -> Draws:
        """Give those of the first step."""
        return cls(key, jnp.zeros((), jnp.int32))

    def next(self) -> Draws:
        """Give those of the next step."""
        return self._replace(step=self.step + 1)


class Learner(abc.ABC):
    """A way to learn from a support set, which [`distill`][ntkit.distill.distill] then improves: a value, and a pytree.

    A subclass is an `ntkit.pytree_dataclass` and writes [`fitted`][ntkit.distill.Learner.fitted]; the loop, targets,
    labels, augmentation, adversary, checkpoints and report are the same for all.

    **Fields:** `ridge`: of its regression, relative; 0 where there is none.
    """

    ridge: float = 0.0

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels whose hyper-parameters may be learned with the support set. By default none."""
        return ()

    @property
    def variants(self) -> int:
        """How many models there are to fit, of which each step draws one. By default one."""
        return 1

    def begin(self, key: Array, images: Float[Array, "n ..."], targets: Float[Array, "n classes"]) -> Any:
        """Give what the learner itself carries from step to step, such as a pool of networks. By default nothing."""
        return ()

    @abc.abstractmethod
    def fitted(
        self,
        kernels: tuple[Kernel, ...],
        images: Float[Array, "n ..."],
        targets: Float[Array, "n classes"],
        carried: Any,
        variant: int,
    ) -> Any:
        """Fit a model on a support set, in compiled code; it is differentiated by the first three.

        **Arguments:** `kernels`: those of the learner, as they are now. `carried`: see `begin`. `variant`: which model.

        **Returns:** a callable pytree, from inputs to outputs (m, classes). Its `ridge`, if it has one, is recorded.
        """

    def after(self, carried: Any, images: Float[Array, "n ..."], targets: Float[Array, "n classes"]) -> Any:
        """Give what is carried to the next step, now that the support set is as it is. By default the same."""
        return carried

    def kept(self, kernels: tuple[Kernel, ...]) -> Kernel | tuple[Kernel, ...] | None:
        """Give the kernel that a set was distilled with, if it is one to be used with it. By default none."""
        return None

    def slow_in_loops(self, images: Float[Array, "n ..."]) -> bool:
        """Whether each step should be compiled by itself, for images like these; see `ntkit.runs.Method`."""
        return False


def check_learner(value: object) -> Learner:
    """Give a learner; `ValueError` for anything else, such as a kernel."""
    if not isinstance(value, Learner):
        raise wrong("learner", value, "an ntkit.distill.Learner such as KIP(ntkit.ntk(ntkit.fc(1)))")
    return value
