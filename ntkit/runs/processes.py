"""Processes that do one thing together, and fail together."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

Tree = TypeVar("Tree")


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

    def check_same(self, **values: object) -> None:
        """Raise `ValueError` that names the argument, in all processes, unless they all give the same values.

        **Arguments:** `values`: pytrees of arrays, keys, numbers, strings and None; as many in all processes.
        """
        if not self.several:
            return
        numbers = [np.frombuffer(_hash_of(value), np.int32) for value in values.values()]
        rows = rows_of_all(self, *np.ravel(numbers).tolist()).reshape(-1, *np.shape(numbers))
        for index, (name, value) in enumerate(values.items()):
            other = np.flatnonzero((rows[:, index] != numbers[index]).any(1))
            if other.size:
                shown = " ".join(reprlib.repr(value).split())
                raise ValueError(
                    f"{name}: got {shown} in process {jax.process_index()} and another value in process "
                    f"{other[0]}, expected the same in all"
                )

    def _gather(self, flag: bool) -> list[int]:
        """Give the processes that raise a flag."""
        if not self.several:
            return []
        from jax.experimental import multihost_utils

        return np.flatnonzero(multihost_utils.process_allgather(np.asarray(flag))).tolist()


# This process, whether or not there are others.
ALONE = Group(False)


def of_leader(group: Group, values: Tree, record: Any) -> tuple[Tree, Any]:
    """Give all processes what the leading one has: arrays, to the bit, and something that JSON can hold.

    **Arguments:** `values`: a pytree with the same structure, shapes and dtypes in each process.
    """
    if not group.several:
        return values, record
    leaves, structure = jax.tree.flatten(values)
    text = _bytes_of_leader(group, json.dumps(record).encode())
    shared = [_of_leader(group, leaf) for leaf in leaves]
    return jax.tree.unflatten(structure, shared), json.loads(text)


def _of_leader(group: Group, leaf: Array) -> Any:
    if is_key(leaf):
        data = _of_leader(group, jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    # As bytes: the processes' arrays are added up to send one, which would make 0 of −0 and float32 of float64.
    return np.frombuffer(_bytes_of_leader(group, array.tobytes()), array.dtype).reshape(array.shape)


def _bytes_of_leader(group: Group, content: bytes) -> bytes:
    size = int(group.agree(np.asarray(len(content), np.int32)))
    mine = np.frombuffer(content, np.uint8) if group.leads else np.zeros(size, np.uint8)
    return group.agree(mine).tobytes() if size else b""


def _hash_of(value: object) -> bytes:
    leaves, structure = jax.tree.flatten(value)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, np.generic | np.ndarray | jax.Array):
            array = np.asarray(jax.random.key_data(leaf) if isinstance(leaf, jax.Array) and is_key(leaf) else leaf)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            digest.update(f"{type(leaf).__name__} {leaf!r}".encode())
    return digest.digest()[:8]


def rows_of_all(group: Group, *numbers: int) -> Int[np.ndarray, "processes numbers"]:
    """Give the same few integers of every process."""
    row = np.asarray(numbers, np.int32)
    if not group.several:
        return row[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(row))


def is_key(leaf: Any) -> bool:
    """Whether an array is one of `jax.random` keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
