"""What a Gram matrix is of, as text that is the same in every process: its kernel and its inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ntkit.kernels import Kernel, memory

# Where an object without a name of its own lies in memory, as `repr` says it.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def of_kernel(kernel: Kernel) -> str:
    """Describe a kernel: its class, structure and every hyper-parameter.

    A name in `<…>` is code that is not ntkit's, such as the functions of which [`from_stax`][] kernels are made: it
    may have changed since, and other code may bear the same name.
    """
    return _describe(kernel)


def sample(kernel: Kernel, x1: np.ndarray | jax.Array, x2: np.ndarray | jax.Array | None) -> list[list[float]] | None:
    """Evaluate a kernel on a few of its inputs where its description does not say all; None where it does."""
    if "<" not in of_kernel(kernel):
        return None
    return np.asarray(kernel(x1[:2], (x1 if x2 is None else x2)[-2:]), np.float64).tolist()


def of_inputs(x: np.ndarray | jax.Array, dtype: np.dtype[Any]) -> str:
    """Describe a batch of inputs, as the kernel gets it, by its dtype, shape and the SHA-256 of its values."""
    digest = hashlib.sha256()
    # In chunks: x may be a memory map larger than memory.
    rows = memory.at_once(int(np.prod(x.shape[1:])) * dtype.itemsize)
    for start in range(0, len(x), rows):
        digest.update(np.ascontiguousarray(x[start : start + rows], dtype).data)
    return f"{dtype}{list(x.shape)} sha256:{digest.hexdigest()}"


def _describe(value: object) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ", ".join(
            f"{field.name}={_describe(getattr(value, field.name))}" for field in dataclasses.fields(value)
        )
        name, module = type(value).__qualname__, type(value).__module__
        return f"{name}({fields})" if module.partition(".")[0] == "ntkit" else f"<{name}>({fields})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_describe(value[key])}" for key in sorted(value, key=repr)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_describe, value)) + "]"
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        array = np.asarray(value)
        if array.ndim == 0:
            return repr(array.item())
        return f"{array.dtype}{list(array.shape)} sha256:{hashlib.sha256(array.tobytes()).hexdigest()}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return "<" + _ADDRESS.sub("", repr(value)) + ">"
