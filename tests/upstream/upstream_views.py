"""A pytest plugin: neural-tangents' own tests, a package called `tests`, see the views of JAX that it sees itself.

They use names that left JAX, too.
"""

import builtins
import functools
import importlib.machinery
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax

import ntkit
from ntkit import _neural_tangents as repair

__all__ = ["ntkit"]


@functools.cache
def _jax() -> repair._View:
    """Give neural-tangents' tests the random numbers that they were published with.

    They draw different arrays from one key. Since 0.5, JAX makes one of these a prefix of the other, so that batches
    meant to be different are the same.
    """

    def as_published(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def draw(*args: Any, **kwargs: Any) -> Any:
            with jax.threefry_partitionable(False):
                return function(*args, **kwargs)

        return draw

    functions = {name: value for name, value in vars(jax.random).items() if callable(value) and name[0] != "_"}
    random = repair._View("jax.random", jax.random, {name: as_published(value) for name, value in functions.items()})
    return repair._View("jax", repair._views()["jax"], {"random": random})


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    module = repair._import(name, globals, locals, fromlist, level)
    return _jax() if module is repair._views()["jax"] else module


class _Loader(repair._Loader):
    """Run a file of the tests with the `__import__` above."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        importlib.machinery.SourceFileLoader.exec_module(self, module)


class _Finder(repair._Finder):
    package = "tests"
    loader = _Loader


_Finder().go_first()
