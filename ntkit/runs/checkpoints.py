"""Checkpoints of any pytree at a step, written with orbax: each is whole or invisible."""

import contextlib
import dataclasses
import importlib
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ntkit.runs.files import sync_directory

State = TypeVar("State")

_NAME = re.compile(r"(\d{8,})(?:-(\d+))?")
_PARTIAL = ".partial"


class Mismatch(ValueError):
    """The checkpoint is sound, but it is a checkpoint of something else. `paths`: of the leaves that differ."""

    def __init__(self, message: str, paths: Iterable[str]) -> None:
        super().__init__(message)
        self.paths = tuple(paths)


@dataclasses.dataclass(frozen=True, order=True)
class Checkpoint:
    """A finished checkpoint. Saving a step again makes a new revision: nothing valid is ever overwritten."""

    step: int
    revision: int
    path: Path = dataclasses.field(compare=False)


def finished(directory: Path) -> list[Checkpoint]:
    """The checkpoints in a directory, oldest first. A half-written one still has its temporary name."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    return sorted(Checkpoint(int(m[1]), int(m[2] or 0), directory / m[0]) for m in matches)


def save(directory: Path, step: int, state: object, *, keep: int = 2) -> None:
    """Write `state` as the checkpoint of `step`, then remove all but the last `keep` steps.

    **Arguments:**

    - `directory`: where the checkpoints of one run are; made if absent.
    - `step`: at least the step of the latest checkpoint.
    - `state`: a pytree of JAX or numpy arrays, PRNG keys, and Python numbers and strings.
    - `keep`: how many steps to keep.

    **Raises:**

    - `ValueError`: `state` has a leaf of another type, or `step` lies before the latest checkpoint.
    """
    existing = finished(directory)
    if existing and step < existing[-1].step:
        raise ValueError(
            f"step: expected at least {existing[-1].step}, the step of the latest checkpoint, got {step}; "
            "restore it before going on"
        )
    arrays, leaves = _pack(state)
    directory.mkdir(exist_ok=True)
    _remove_partial(directory)
    same = [checkpoint.revision for checkpoint in existing if checkpoint.step == step]
    name = f"{step:08d}-{same[-1] + 1}" if same else f"{step:08d}"
    partial = directory / f".{name}{_PARTIAL}"
    final = directory / name
    with _orbax() as (ocp, checkpointer):
        items = {"leaves": ocp.args.JsonSave({"leaves": leaves})}
        if arrays:
            items["arrays"] = ocp.args.StandardSave(arrays)
        checkpointer.save(partial.absolute(), args=ocp.args.Composite(**items))
    # Orbax finishes a checkpoint by a rename too, but on which file systems has changed between its versions.
    os.rename(partial, final)
    sync_directory(directory)
    kept = sorted({*(checkpoint.step for checkpoint in existing), step})[-keep:]
    for checkpoint in existing:
        if checkpoint.step not in kept or checkpoint.step == step:
            _remove(checkpoint.path)


def restore(directory: Path, like: State) -> tuple[int, State] | None:
    """The latest checkpoint that can be read, as `(step, state)`, or None if there is none.

    Every array has the bits, shape, dtype and weak type that were saved; whether it is a JAX or numpy array, and on
    which devices it lies, follows `like`. An unreadable checkpoint is set aside with a warning, and the one before
    it is taken.

    **Arguments:**

    - `directory`: where the checkpoints of one run are.
    - `like`: a pytree of the structure, shapes and dtypes that were saved; its values do not matter, and arrays may be
      `jax.ShapeDtypeStruct`.

    **Raises:**

    - `ValueError`: the checkpoint has other leaves, shapes or dtypes than `like`.
    - `OSError`: there are checkpoints, but none can be read.
    """
    # Not only at the first save: orbax imports Pallas, which adds to the settings that every compilation of JAX depends
    # on, and what was compiled before would be compiled once more.
    importlib.import_module("orbax.checkpoint")
    _remove_partial(directory)
    candidates = finished(directory)[::-1]
    damaged = []
    for checkpoint in candidates:
        try:
            state = _read(checkpoint.path, like)
        except Mismatch:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"checkpoint {str(checkpoint.path)!r} cannot be read ({reason})", stacklevel=3)
            damaged.append(checkpoint.path)
            continue
        for path in damaged:
            # Left under its name it would forbid saving the steps up to it again.
            _set_aside(path)
        return checkpoint.step, state
    if damaged:
        raise OSError(f"run directory: none of the checkpoints in {str(directory)!r} can be read")
    return None


def _read(path: Path, like: State) -> State:
    with _orbax() as (ocp, checkpointer):
        stored = checkpointer.restore(path.absolute(), args=ocp.args.Composite(leaves=ocp.args.JsonRestore())).leaves[
            "leaves"
        ]
        references, treedef = jax.tree_util.tree_flatten_with_path(like)
        _check(stored, references)
        wanted = {
            str(index): _abstract(leaf, reference)
            for index, (leaf, (_, reference)) in enumerate(zip(stored, references, strict=True))
            if _is_stored_as_array(leaf)
        }
        arrays = {}
        if wanted:
            arrays = checkpointer.restore(
                path.absolute(), args=ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
            ).arrays
    restored = [
        _unpack(leaf, arrays.get(str(index)), reference)
        for index, (leaf, (_, reference)) in enumerate(zip(stored, references, strict=True))
    ]
    return jax.tree_util.tree_unflatten(treedef, restored)


def _pack(state: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A pytree as the arrays that orbax writes and a JSON description of every leaf."""
    arrays: dict[str, Any] = {}
    leaves = []
    for index, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(state)[0]):
        description = None if isinstance(leaf, jax.ShapeDtypeStruct) else _describe(leaf)
        if description is None:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)}: expected an array, a PRNG key, a number or a string, "
                f"got {type(leaf).__name__}"
            )
        if _is_key(leaf):
            description["implementation"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        leaves.append({"path": jax.tree_util.keystr(path), **description})
        if _is_stored_as_array(description):
            arrays[str(index)] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return arrays, leaves


def _describe(leaf: object) -> dict[str, Any] | None:
    """What must agree between a saved leaf and the leaf that it is restored into; None for a foreign type."""
    if isinstance(leaf, np.generic | np.ndarray | jax.Array | jax.ShapeDtypeStruct):
        description = {
            "kind": "array",
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "weak": bool(getattr(leaf, "weak_type", False)),
        }
        if _is_key(leaf):
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
            "like: expected the structure of the checkpoint; "
            f"like has {', '.join(absent) or 'nothing'} too many and lacks {', '.join(extra) or 'nothing'}",
            absent + extra,
        )
    for leaf, (_, reference) in zip(stored, references, strict=True):
        description = _describe(reference)
        if description is None or _signature(leaf) != _signature(description):
            given = type(reference).__name__ if description is None else _signature(description)
            expected = f"expected {_signature(leaf)} as in the checkpoint, got {given}"
            raise Mismatch(f"like{leaf['path']}: {expected}", [leaf["path"]])


def _signature(description: dict[str, Any]) -> str:
    if description["kind"] in ("array", "key"):
        return f"{description['dtype']}{description['shape']}"
    return str(description["kind"])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) if hasattr(leaf, "dtype") else False


def _is_stored_as_array(description: dict[str, Any]) -> bool:
    # Orbax refuses arrays without elements; their shape and dtype say everything.
    return description["kind"] in ("array", "key") and 0 not in description["shape"]


def _placement(reference: Any) -> jax.sharding.Sharding | None:
    """The sharding to restore into, or None for an array that JAX may move freely.

    An uncommitted array must come back uncommitted: a committed one on device 0 could not meet the sharded arrays
    of a mesh in one computation, so that a run would fail on resuming only.
    """
    if isinstance(reference, jax.ShapeDtypeStruct):
        return getattr(reference, "sharding", None)
    if isinstance(reference, jax.Array):
        committed = getattr(reference, "committed", None)
        if committed is None:
            committed = getattr(reference, "_committed", True)
        return reference.sharding if committed else None
    return None


def _abstract(description: dict[str, Any], reference: Any) -> Any:
    """What orbax shall read a leaf as: a numpy array, or a JAX array where `reference` is bound to devices."""
    if description["kind"] == "key":
        data = _key_data(description, reference)
        shape, dtype = data.shape, data.dtype
        sharding = None
        if isinstance(reference, jax.Array):
            sharding = _placement(jax.random.key_data(reference))
    else:
        shape, dtype = tuple(description["shape"]), jnp.dtype(description["dtype"])
        sharding = _placement(reference)
    if sharding is not None:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    return np.empty(shape, dtype)


def _key_data(description: dict[str, Any], reference: Any) -> jax.ShapeDtypeStruct:
    keys = jax.ShapeDtypeStruct(tuple(description["shape"]), reference.dtype)
    return jax.eval_shape(jax.random.key_data, keys)


def _unpack(description: dict[str, Any], array: Any, reference: Any) -> Any:
    if "value" in description:
        return description["value"]
    shape = tuple(description["shape"])
    if description["kind"] == "key":
        if array is None:
            data = _key_data(description, reference)
            array = np.empty(data.shape, data.dtype)
        return jax.random.wrap_key_data(jnp.array(array), impl=description["implementation"])
    if array is None:
        array = np.empty(shape, jnp.dtype(description["dtype"]))
    if isinstance(reference, np.generic):
        return array[()]
    if isinstance(reference, np.ndarray):
        return array
    array = jnp.array(array) if isinstance(array, np.ndarray) else array
    if description["weak"]:
        # A weak type decides what later sums are promoted to. JAX has no public cast to one, but an indexed update
        # keeps the type of the array that it updates.
        zero = jnp.asarray({"b": False, "i": 0, "u": 0, "f": 0.0, "c": 0j}[array.dtype.kind])
        array = jnp.broadcast_to(zero, shape).at[...].set(array)
    return array


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """Orbax and a checkpointer, quiet: it logs dozens of lines per save, and hints about its own options."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    # One process writes to a run, and orbax must not wait for others that compute with it.
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(process, {process}, f"ntkit-{process}")
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        leaves=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        arrays=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
    )
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)
    try:
        yield ocp, checkpointer
    finally:
        checkpointer.close()
        logger.setLevel(level)


def _remove(path: Path) -> None:
    # Renamed first: a kill in the middle must not leave half a checkpoint under a valid name.
    doomed = path.with_name(f".{path.name}{_PARTIAL}")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _remove_partial(directory: Path) -> None:
    if directory.is_dir():
        for path in directory.iterdir():
            # Orbax appends to the name that it was given.
            if path.name.startswith(".") and _PARTIAL in path.name:
                shutil.rmtree(path, ignore_errors=True)


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
