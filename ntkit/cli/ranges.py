"""What numbers an option can be: said where the option is, and checked before anything is done."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, TypeAlias

import numpy as np

from ntkit._checks import MOST, check_integer, check_number, wrong

TINY, MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Integers:
    """Integers of a range."""

    least: int = 1
    most: int = MOST

    def check(self, name: str, value: Any) -> None:
        """Raise `ValueError` unless the value is one of them."""
        check_integer(name, value, self.least, self.most)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Numbers that float32 can hold, of at least 0 or above it."""

    above_0: bool = False
    infinite: bool = False
    most: float = MAX

    def check(self, name: str, value: Any) -> None:
        """Raise `ValueError` unless the value is one of them."""
        number = check_number(
            name, value, least=None if self.above_0 else 0, above=0 if self.above_0 else None, infinite=self.infinite
        )
        if number not in (0, np.inf) and not TINY <= number <= self.most:
            raise wrong(name, value, f"a number that float32 can calculate with, {TINY:.2g} to {self.most:.2g}")


# How many there are of something, or how large a limit or a batch is.
Count: TypeAlias = Annotated[int, Integers()]
# Deeper kernels take hours to compile, and numbers of layers that are not meant all memory.
Depth: TypeAlias = Annotated[int, Integers(0, 1000)]
# Steps of the training of a network, of which each leaves its loss in memory.
TrainingSteps: TypeAlias = Annotated[int, Integers(0, 10**8)]
# Steps and starts of an attack.
AttackSteps: TypeAlias = Annotated[int, Integers(1, 10**6)]
Scale: TypeAlias = Annotated[float, Numbers()]
# It is multiplied by the diagonal of the Gram matrix, and labels that make up for it by it.
Ridge: TypeAlias = Annotated[float, Numbers(most=1e20)]
Rate: TypeAlias = Annotated[float, Numbers(above_0=True)]
# A time, of gradient flow or between checkpoints.
Time: TypeAlias = Annotated[float, Numbers(infinite=True)]


def check_ranges(options: Any) -> None:
    """Check all options of a command.

    **Raises:** `ValueError` that names the first one that is not in its range.
    """
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        _check(field.name, getattr(options, field.name), hints[field.name])


def _check(name: str, value: Any, hint: Any) -> None:
    arguments = typing.get_args(hint)
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Integers | Numbers):
            extra.check(name, value)
            return
    if isinstance(value, tuple):
        for item in value:
            _check(name, item, arguments[0])
    elif value is not None:
        for argument in arguments:  # of a union, whose other member is None, or of Annotated
            if isinstance(argument, type) or typing.get_origin(argument) is not None:
                _check(name, value, argument)
