"""Processes that do one thing together, and fail together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Group:
    """This process alone, or all processes of JAX's distributed runtime, each of which runs the same program."""

    several: bool

    @property
    def leads(self) -> bool:
        """Whether this process does what only one of the group may do."""
        return not self.several or jax.process_index() == 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all processes at the end of the block, and raise in all of them if it raised in one."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = self._gather(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise RuntimeError(f"process {failed[0]} failed, and says why")

    def agree(self, values: np.ndarray) -> np.ndarray:
        """Give the values of the leading process to all."""
        if not self.several:
            return values
        from jax.experimental import multihost_utils

        # The values are added up to send them, and the older JAX adds up small integers in a wider type.
        return np.asarray(multihost_utils.broadcast_one_to_all(values, is_source=self.leads), values.dtype)

    def _gather(self, flag: bool) -> list[int]:
        """Give the processes that raise a flag."""
        if not self.several:
            return []
        from jax.experimental import multihost_utils

        return np.flatnonzero(multihost_utils.process_allgather(np.asarray(flag))).tolist()
