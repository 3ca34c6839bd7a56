"""What a method is: two functions, from nothing to a state and from a state to the next."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from jaxtyping import Array

from ntkit.runs.devices import Devices

State = TypeVar("State")


class Method(abc.ABC, Generic[State]):
    """An algorithm in steps, for [`iterate`][ntkit.runs.iterate] to run.

    A subclass is an `ntkit.pytree_dataclass`: its leaves are what no step changes, such as data, and its static fields
    decide what is compiled. The state is any pytree; all that a step changes is in it, a counter or a key too.

    **Class attributes:**

    - `what`: what the progress bar calls the work.
    - `metrics`: the names of what a step gives beside the next state. A record has their means over the steps since the
      last one, of those in `largest` the largest value; those in `hidden` the progress bar does not show.
    - `log_every`: steps between two records, where the session does not say.
    - `diverged`, `advice`: what an error calls it if a metric is not finite, and what it tells to try.
    - `from_argument`: what the user knows fields of the state as, where that is not their name.
    """

    what: ClassVar[str] = "run"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    largest: ClassVar[tuple[str, ...]] = ()
    hidden: ClassVar[tuple[str, ...]] = ()
    log_every: ClassVar[int] = 10
    diverged: ClassVar[str] = "the run diverged"
    advice: ClassVar[str] = "try a smaller learning rate"
    from_argument: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def init(self) -> State:
        """Give the state before the first step."""

    @abc.abstractmethod
    def step(self, state: State) -> tuple[State, Mapping[str, Array]]:
        """Take one step, in compiled code: give the next state, and the `metrics`, scalars by their names."""

    def model(self, state: State) -> Any:
        """Give what a session's `evaluate` is called with. By default the state itself."""
        return state

    def look(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Look at all records so far, the last of which is new, for example to warn. By default nothing is seen."""

    @property
    def one_by_one(self) -> bool:
        """Whether each step is compiled by itself, outside of any loop, which is slower but where XLA's loops are."""
        return False

    @property
    def devices(self) -> Devices:
        """The devices that take each step together. By default the one where JAX computes."""
        return Devices()
