"""Checkpoints of any pytree at a step: each an `.npz` that is whole or absent, with a checksum of all that is in it."""

import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ntkit.runs.files import atomic_write, sync_directory
from ntkit.runs.processes import is_key

State = TypeVar("State")

# Also the directories of ntkit before it wrote such files: a run that has them has not just begun.
_NAME = re.compile(r"(\d{8,})(-\d+)?(\.npz)?")


def finished(directory: Path) -> dict[int, Path]:
    """The checkpoints in a directory by their steps, oldest first. A half-written one still has its temporary name."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return {}
    return dict(sorted((int(match[1]), directory / match[0]) for name in names if (match := _NAME.fullmatch(name))))


def save(directory: Path, step: int, state: object, notes: Any = None, *, keep: int = 2) -> None:
    """Write `state` as the checkpoint of `step`, then remove all but the last `keep`.

    **Arguments:**

    - `directory`: where the checkpoints of one run are; made if absent.
    - `step`: at least the step of the latest checkpoint. A checkpoint of this very step is replaced.
    - `state`: a pytree of JAX or numpy arrays, PRNG keys, and Python numbers and strings.
    - `notes`: anything JSON can hold, to be read before the state is.
    - `keep`: how many steps to keep.

    **Raises:**

    - `ValueError`: `state` has a leaf of another type, or `step` lies before the latest checkpoint.
    """
    existing = finished(directory)
    if existing and step < max(existing):
        raise ValueError(
            f"step: got {step}, expected at least {max(existing)}, the step of the latest checkpoint; "
            "restore it before going on"
        )
    leaves, arrays = _pack(state)
    text = json.dumps({"step": step, "leaves": leaves, "notes": notes}).encode()
    about: dict[str, Any] = {
        "about": np.frombuffer(text, np.uint8),
        "sha256": np.frombuffer(_digest(text, arrays), np.uint8),
    }
    if not directory.is_dir():
        directory.mkdir()
        sync_directory(directory.parent)
    with atomic_write(directory / f"{step:08d}.npz") as file:
        np.savez(file, **about, **arrays)
    for old in sorted({*existing, step})[:-keep]:
        existing[old].unlink()


class Mismatch(ValueError):
    """The checkpoint is sound, but it is a checkpoint of something else. `paths`: of the leaves that differ."""

    def __init__(self, message: str, paths: Iterable[str]) -> None:
        super().__init__(message)
        self.paths = tuple(paths)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A checkpoint as it was read, every bit as it was written."""

    step: int
    notes: Any
    leaves: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]

    def into(self, like: State) -> State:
        """Give the state, in the structure of `like`.

        Every array has the bits, shape, dtype and weak type that were saved; whether it is a JAX or numpy array, and on
        which devices it lies, follows `like`.

        **Arguments:**

        - `like`: a pytree of the structure, shapes and dtypes that were saved; its values do not matter, and arrays may
          be `jax.ShapeDtypeStruct`.

        **Raises:** `Mismatch` if the checkpoint has other leaves, shapes or dtypes than `like`.
        """
        references, treedef = jax.tree_util.tree_flatten_with_path(like)
        _check(self.leaves, references)
        leaves = [
            _unpack(leaf, self.arrays.get(str(index)), reference)
            for index, (leaf, (_, reference)) in enumerate(zip(self.leaves, references, strict=True))
        ]
        return jax.tree_util.tree_unflatten(treedef, leaves)


def latest(directory: Path) -> Stored | None:
    """The latest checkpoint that is undamaged, or None if there is none at all.

    Damaged ones are set aside, with a warning.

    **Raises:** `OSError` if there are checkpoints, but none is undamaged; they are left as they are.
    """
    damaged: dict[Path, str] = {}
    stored = None
    for path in reversed(finished(directory).values()):
        try:
            stored = _read(path)
            break
        # A damaged file can make zipfile, NumPy and json raise nearly anything.
        except Exception as error:
            damaged[path] = " ".join(str(error).split()) or type(error).__name__
    if not damaged:
        return stored
    reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
    if stored is None:
        raise OSError(f"run directory: none of the checkpoints in {str(directory)!r} can be read ({reasons})")
    for path in damaged:
        # Left under its name it would forbid saving the steps up to it again.
        os.replace(path, path.with_name(f"{path.name}.damaged"))
    warnings.warn(
        f"{str(directory)!r}: {' and '.join(path.name for path in damaged)} cannot be read, so the run goes on from "
        f"step {stored.step}, the checkpoint before ({reasons})",
        stacklevel=3,
    )
    return stored


def _read(path: Path) -> Stored:
    # Of a header that makes no sense NumPy says that it may be Python 2's, before it gives up.
    with (
        warnings.catch_warnings(action="ignore"),
        open(path, "rb") as file,
        np.load(file, allow_pickle=False) as content,
    ):
        text, digest = content["about"].tobytes(), content["sha256"].tobytes()
        arrays = {name: content[name] for name in content.files if name.isdecimal()}
    if digest != _digest(text, arrays):
        raise ValueError("it does not match its checksum")
    about = json.loads(text)
    return Stored(about["step"], about["notes"], about["leaves"], arrays)


def _digest(text: bytes, arrays: dict[str, np.ndarray]) -> bytes:
    """A hash of all that decides a state: the text has the path, type, dtype and shape of each leaf."""
    digest = hashlib.sha256(text)
    for array in arrays.values():
        # As bytes, since not every dtype, such as bfloat16, gives its memory to others.
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.digest()


def _pack(state: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A pytree as a JSON description of every leaf, and the arrays by the index of their leaf."""
    leaves = []
    arrays: dict[str, Any] = {}
    for index, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(state)[0]):
        description = None if isinstance(leaf, jax.ShapeDtypeStruct) else _describe(leaf)
        if description is None:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)}: got {type(leaf).__name__}, expected an array, a PRNG key, a "
                "number or a string"
            )
        if description["kind"] == "key":
            description["implementation"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        if "value" not in description:
            arrays[str(index)] = np.asarray(leaf)
        leaves.append({"path": jax.tree_util.keystr(path), **description})
    return leaves, arrays


def _describe(leaf: object) -> dict[str, Any] | None:
    """What must agree between a saved leaf and the leaf that it is restored into; None for a foreign type."""
    if isinstance(leaf, np.generic | np.ndarray | jax.Array | jax.ShapeDtypeStruct):
        description = {
            "kind": "array",
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "weak": bool(getattr(leaf, "weak_type", False)),
        }
        if is_key(leaf):
            return {**description, "kind": "key"}
        numeric = jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_
        return description if numeric else None
    # bool before int, of which it is a subclass.
    for kind in (bool, int, float, str):
        if isinstance(leaf, kind):
            return {"kind": kind.__name__, "value": kind(leaf)}
    return None


def _check(stored: list[dict[str, Any]], references: list[tuple[Any, Any]]) -> None:
    paths = [jax.tree_util.keystr(path) for path, _ in references]
    stored_paths = [leaf["path"] for leaf in stored]
    if paths != stored_paths:
        absent, extra = sorted(set(paths) - set(stored_paths)), sorted(set(stored_paths) - set(paths))
        raise Mismatch(
            f"like: got a state with {', '.join(absent) or 'nothing'} too many and {', '.join(extra) or 'nothing'} too "
            "few, expected the structure of the checkpoint",
            absent + extra,
        )
    for leaf, (_, reference) in zip(stored, references, strict=True):
        description = _describe(reference)
        if description is None or _signature(leaf) != _signature(description):
            given = type(reference).__name__ if description is None else _signature(description)
            expected = f"got {given}, expected {_signature(leaf)} as in the checkpoint"
            raise Mismatch(f"like{leaf['path']}: {expected}", [leaf["path"]])


def _signature(description: dict[str, Any]) -> str:
    if description["kind"] in ("array", "key"):
        return f"{description['dtype']}{description['shape']}"
    return str(description["kind"])


def _placement(reference: Any) -> jax.sharding.Sharding | None:
    """The sharding to restore into, or None for an array that JAX may move freely.

    An uncommitted array must come back uncommitted: a committed one on device 0 could not meet the sharded arrays
    of a mesh in one computation, so that a run would fail on resuming only.
    """
    if isinstance(reference, jax.Array):
        committed = getattr(reference, "committed", None)
        if committed is None:
            committed = getattr(reference, "_committed", True)
        return reference.sharding if committed else None
    return getattr(reference, "sharding", None)


def _unpack(description: dict[str, Any], array: Any, reference: Any) -> Any:
    if "value" in description:
        return description["value"]
    if description["kind"] == "key":
        array = jax.random.wrap_key_data(jnp.array(array), impl=description["implementation"])
    else:
        # NumPy's files know no bfloat16 and the like: only how many bytes a number has.
        array = array.view(jnp.dtype(description["dtype"]))
        if isinstance(reference, np.generic):
            return array[()]
        if isinstance(reference, np.ndarray):
            return array
        array = jnp.array(array)
        if description["weak"]:
            # A weak type decides what later sums are promoted to. JAX has no public cast to one, but an indexed update
            # keeps the type of the array that it updates.
            zero = jnp.asarray({"b": False, "i": 0, "u": 0, "f": 0.0, "c": 0j}[array.dtype.kind])
            array = jnp.broadcast_to(zero, array.shape).at[...].set(array)
    sharding = _placement(reference)
    return array if sharding is None else jax.device_put(array, sharding)
