"""Values and functions as arguments of compiled functions."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import types
from collections.abc import Iterable
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np


def static_field(**options: Any) -> Any:
    """Give a field of a [`pytree_dataclass`][] that is no leaf: hashable, and part of what is compiled.

    **Arguments:** `options`: `default` and the others of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def pytree_dataclass(cls: type | None = None, /, *, eq: bool = True) -> Any:
    """Make a class a frozen dataclass that is a JAX pytree.

        @ntkit.pytree_dataclass
        class RBF(ntkit.Kernel):
            scale: float                                 # a leaf: traced, differentiated
            name: str = ntkit.static_field(default="")   # decides what is compiled

    **Arguments:** `eq`: whether values are compared, and hashed, by their fields; not where these are arrays.

    `jax.tree_util.register_dataclass` is not enough: JAX 0.10 to 0.12 compares the structures of dataclasses by their
    fields and not by their types. Where two types have the same ones, a compiled function is now and then run with what
    it was compiled for the other.

    `__post_init__` is where a user's arguments are checked. JAX, which builds values again with tracers, arrays, `None`
    or objects of its own as leaves, goes past it.
    """

    def make(cls: type) -> type:
        return _registered(dataclasses.dataclass(frozen=True, eq=eq)(cls))

    return make if cls is None else make(cls)


def _registered(cls: type) -> type:
    fields = dataclasses.fields(cls)
    static = [field.name for field in fields if field.metadata.get("static")]
    leaves = [field.name for field in fields if field.name not in static]

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in leaves]
        return children, tuple(getattr(value, name) for name in static)

    def unflatten(others: tuple[Any, ...], children: Iterable[Any]) -> Any:
        value: Any = object.__new__(cls)
        vars(value).update(zip(leaves, children, strict=True))
        vars(value).update(zip(static, others, strict=True))
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


def as_pytree(function: Any) -> Any:
    """Give a function that can be handed to a compiled one: itself if it is a pytree, such as a `Predictor`.

    Any other is wrapped. It is compiled once, with what it closes over at that time; see [`as_it_is`][]. So is a pytree
    whose structure cannot be compared, which JAX does not take.
    """
    if jax.tree_util.all_leaves([function]):
        return _Function(ByIdentity(function))
    if not is_hashable(jax.tree.structure(function)):
        return _Function(ByIdentity(function))
    return traceable(function)


def traceable(tree: Any) -> Any:
    """Give a pytree as JAX can trace it: itself if all leaves are numbers, else a `Partly`.

    Libraries that write networks as pytrees, such as Equinox, leave functions and flags among the leaves.
    """
    leaves, structure = jax.tree.flatten(tree)
    if all(_is_array(leaf) or isinstance(leaf, int | float | complex) for leaf in leaves) and not any(
        isinstance(leaf, bool) for leaf in leaves
    ):
        return tree
    arrays = tuple(leaf for leaf in leaves if _is_array(leaf))
    return Partly(arrays, structure, tuple(None if _is_array(leaf) else ByIdentity(leaf) for leaf in leaves))


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return True
    return isinstance(leaf, np.ndarray | np.generic) and (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number))


def as_it_is(function: Any, x: Any) -> Any:
    """Give a function of `as_pytree` that is compiled again if what it does to `x` is not what it was before.

    Objects and what functions close over can change, and compiled code would not know. What was wrapped is marked with
    what JAX traces of the function, its derivative and the arrays in it; to trace takes much less time than to compile.
    """
    parts, tree = jax.tree.flatten(function, is_leaf=_is_wrapped)
    if not any(map(_is_wrapped, parts)):
        return function
    mark = _digest(function, x)
    return jax.tree.unflatten(
        tree, [dataclasses.replace(part, mark=mark) if _is_wrapped(part) else part for part in parts]
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ByIdentity:
    """A function, or other thing, as a key of a cache: equal if they are the same one, or the same method of one.

    Numbers and strings are equal by value. What others say of that is no key: equality may leave out fields, and be no
    single truth where there are arrays.
    """

    function: Any

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)

    def __hash__(self) -> int:
        return hash(self._identity())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._identity() == other._identity()

    def _identity(self) -> tuple[Any, ...]:
        if isinstance(self.function, bool | int | float | complex | str | bytes):
            return type(self.function), self.function
        # The others are held as long as this is, and nothing else gets their place.
        if isinstance(self.function, types.MethodType):
            return id(self.function.__self__), id(self.function.__func__)
        return (id(self.function),)


class ByValue(ByIdentity):
    """What has a hash, such as a module of flax, as a key of a cache: equal if it says so itself."""

    def _identity(self) -> tuple[Any, ...]:
        return (type(self.function), self.function) if is_hashable(self.function) else super()._identity()


def is_hashable(value: Any) -> bool:
    """Whether a value can decide, by what it is, what is compiled."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def static(function: Any) -> Any:
    """Give a function that a compiled one can be made for: itself, or one that is known by being the same."""
    return function if is_hashable(function) else ByIdentity(function)


@pytree_dataclass
class _Function:
    """A function that is no pytree as one without leaves. `mark`: of what it is now."""

    held: ByIdentity = static_field()
    mark: str = static_field(default="")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.held.function(*arguments, **named)


@pytree_dataclass
class Partly:
    """A pytree of which its arrays alone are traced. What its other leaves are decides what is compiled.

    **Fields:** `others`: the leaves, with `None` in the place of an array.
    """

    arrays: tuple[Any, ...]
    structure: Any = static_field()
    others: tuple[ByIdentity | None, ...] = static_field()

    def whole(self) -> Any:
        """Give the pytree as it was."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if other is None else other.function for other in self.others]
        return jax.tree.unflatten(self.structure, leaves)

    def floats(self) -> list[Any]:
        """Give those of its arrays that can be differentiated by."""
        return [array for array in self.arrays if _is_float(array)]

    def with_floats(self, floats: Iterable[Any]) -> Any:
        """Give the pytree with others in the place of these."""
        given = iter(floats)
        return dataclasses.replace(
            self, arrays=tuple(next(given) if _is_float(array) else array for array in self.arrays)
        ).whole()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.whole()(*arguments, **named)


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _is_wrapped(part: Any) -> bool:
    return isinstance(part, _Function)


def _digest(function: Any, x: Any) -> str:
    """Give a digest of a function as JAX traces it for one row of `x`, with its derivative if it has one."""
    row = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)

    def both(function: Any, x: Any) -> Any:
        outputs, pull = jax.vjp(function, x)
        return outputs, pull(outputs)

    for traced in (both, lambda function, x: function(x)):
        try:
            closed = jax.make_jaxpr(traced)(function, row)
            break
        except Exception:
            # A rule that is missing shows as one of many exceptions; what is no function of JAX its caller finds out.
            continue
    else:
        return ""
    if any(isinstance(value, jax.core.Tracer) for value in closed.consts):
        return ""
    # Where Python holds what it was traced with is another place each time.
    found = hashlib.blake2b(re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
    for value in closed.consts:
        is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        found.update(np.asarray(jax.random.key_data(value) if is_key else value).tobytes())
    return found.hexdigest()
