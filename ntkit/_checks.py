"""Checks of arguments at the library's doors: one for each kind, whoever takes it.

Each is given the argument's name as the caller's user knows it, and the value; it gives the value back, converted, or
raises `ValueError` with one line, `name: got X, expected Y`. Checks of the library's own classes stand beside these.
"""

from __future__ import annotations

import contextlib
import numbers
import operator
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntkit._pytrees import static

T = TypeVar("T")

# Counts and indices are 32-bit integers in compiled code.
MOST = 2**31 - 1


def wrong(name: str, value: object, expected: str) -> ValueError:
    """Give the error of an argument that is not what was expected."""
    return ValueError(f"{name}: got {told(value)}, expected {expected}")


def told(value: object) -> str:
    """Say in one short line what a value is."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, np.ndarray | jax.Array):
        if value.shape == () and not isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, jnp.number):
            return repr(value.item())
        return f"{value.dtype} of shape {value.shape}"
    try:
        text = " ".join(repr(value).split())
    except Exception:
        # Others' `__repr__` may raise anything, and what is to be told is another fault.
        text = type(value).__name__
    return text if len(text) <= 100 else type(value).__name__


def traced(*values: object) -> bool:
    """Whether any leaf of these pytrees is a tracer, of `jit`, `grad` or `vmap`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


# --- Numbers


def check_integer(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """An integer from `least` to `most`; no bool, and no float that happens to be one."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        # Nobody who gives a float or −1 wants to know of the last 32-bit integer, and the like.
        open_ended = most >= 1000 and (number is None or number < least)
        raise wrong(name, value, f"an integer {_between(least, None if open_ended else most)}")
    return number


def check_integers(name: str, values: Any, least: int = 1, most: int = MOST) -> tuple[int, ...]:
    """One integer or more, in a sequence."""
    expected = f"one or more integers {_between(least, None if most == MOST else most)}"
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise wrong(name, values, expected)
    try:
        found = tuple(check_integer(name, value, least, most) for value in values)
    except (TypeError, ValueError):  # an array without axes is iterable by its type alone
        found = ()
    if not found:
        raise wrong(name, values, expected)
    return found


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    infinite: bool = False,
    unit: str = "",
) -> float:
    """A real number, not a tracer, that is finite unless `infinite`, and in the range that is given."""
    number = _real(value)
    inside = (
        number is not None
        and (np.isfinite(number) or (infinite and number == np.inf))
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
    )
    if number is None or not inside:
        where = f"above {above:g}" if above is not None else _between(least, most) if least is not None else ""
        where += f" and at most {most:g}" if most is not None and (above is not None or least is None) else ""
        kind = "number" if infinite or most is not None else "finite number"
        expected = f"a {kind} {where}".strip() + (", or infinity" if infinite else "")
        raise wrong(name, value, expected + (f", in {unit}" if unit else ""))
    return number


def check_positive(name: str, value: Any, *, unit: str = "") -> float:
    """A finite number above 0."""
    return check_number(name, value, above=0, unit=unit)


def check_scalar(name: str, value: Any, *, infinite: bool = False) -> Any:
    """A finite number of at least 0 that may be traced, so that it can be differentiated by.

    The value as it is, but for numbers that JAX does not know, such as large integers of Python's.
    """
    if isinstance(value, jax.core.Tracer):
        if value.shape != () or not _is_real(value.dtype):
            raise wrong(name, value, "a scalar of at least 0")
        return value
    number = check_number(name, value, least=0, infinite=infinite)
    return value if isinstance(value, float | np.generic | np.ndarray | jax.Array) else number


def check_seconds(name: str, value: Any) -> float:
    """A time to wait: a number of seconds, or infinity for never."""
    number = _real(value)
    if number is None or not number >= 0:
        raise wrong(name, value, "at least 0 seconds")
    return number


def _real(value: Any) -> float | None:
    """A real number as a float; None for anything else, a tracer among it."""
    if isinstance(value, bool | np.bool_ | jax.core.Tracer):
        return None
    array = isinstance(value, np.ndarray | np.generic | jax.Array)
    if array and (value.shape != () or not _is_real(value.dtype)):
        return None
    if not array and not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def _is_real(dtype: Any) -> bool:
    # JAX's view of dtypes, not NumPy's: bfloat16 is a float too.
    return bool(jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating))


def _between(least: float | None, most: float | None) -> str:
    low, high = (f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in (least, most))
    return f"of at least {low}" if most is None else f"from {low} to {high}"


# --- Choices, functions, objects


def check_flag(name: str, value: Any) -> bool:
    """True or False, and nothing that merely is true or false."""
    if not isinstance(value, bool | np.bool_):
        raise wrong(name, value, "True or False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable[str], others: str = "") -> str:
    """One of a few strings. `others`: what else the caller takes, for the message."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        one_of = "one of " if len(known) > 2 or others else ""
        shown = ", ".join(map(repr, known)) if one_of else " or ".join(map(repr, known))
        raise wrong(name, value, f"{one_of}{shown}" + (f", or {others}" if others else ""))
    return value


def check_option(name: str, value: Any, options: Mapping[str, T], others: str) -> T:
    """What one of a few strings stands for, or a function as it is. `others`: what function it may be."""
    if callable(value) and not isinstance(value, type):
        return static(value)
    return options[check_choice(name, value, options, others)]


def check_text(name: str, value: Any) -> str:
    """A string, such as a name."""
    if not isinstance(value, str):
        raise wrong(name, value, "a string")
    return value


def check_callable(name: str, value: Any, expected: str) -> Callable[..., Any]:
    """A function, or an object that can be called; not a class, which is what a forgotten `()` gives."""
    if not callable(value) or isinstance(value, type):
        raise wrong(name, value, expected)
    return value


def check_outputs(name: str, found: Any, n: int) -> int:
    """The number of outputs of a network or model that gives `found`, an array or its abstract value, for n inputs."""
    expected = f"an array ({n}, outputs)"
    if not hasattr(found, "shape") or not hasattr(found, "dtype"):
        raise ValueError(f"{name}: got {_of_type(found)} as outputs, expected {expected}")
    if len(found.shape) != 2 or found.shape[0] != n or found.shape[1] == 0:
        many = "one input" if n == 1 else f"{n} inputs"
        raise ValueError(f"{name}: got outputs of shape {found.shape} for {many}, expected {expected}")
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name}: got outputs of dtype {found.dtype}, expected floats, such as logits")
    return int(found.shape[1])


def training_error(name: str, error: Exception) -> ValueError | None:
    """What to say of an error by which flax and Equinox tell that a network was called as it trains; None of others."""
    if type(error).__name__ not in _AS_IT_TRAINS and "Dropout requires a key" not in str(error):
        return None
    return ValueError(
        f"{name}: got a network that draws random numbers or changes its state ({type(error).__name__}), expected it "
        "as it is evaluated: without dropout, and with the running averages of batch normalization"
    )


_AS_IT_TRAINS = ("InvalidRngError", "ModifyScopeVariableError", "TraceContextError")


def _of_type(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


@contextlib.contextmanager
def calling(name: str) -> Iterator[None]:
    """Call a user's function: what it raises for want of fitting what it is given is a fault of the argument `name`."""
    try:
        yield
    except Exception as error:
        if (told_already := training_error(name, error)) is not None:
            raise told_already from error
        if isinstance(error, _NO_SUCH_FAULTS):
            raise
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and reason.startswith(("x: ", f"{name}: ")):
            # Told at a door behind this one, of an argument of the same name.
            raise
        raise ValueError(
            f"{name}: got one that fails with {type(error).__name__} ({reason[:200]}), expected one that takes "
            "what it is given"
        ) from error


# The first is of a function of NumPy's arrays, which some callers can use.
_NO_SUCH_FAULTS = (jax.errors.TracerArrayConversionError, OSError, MemoryError, RuntimeError, ArithmeticError, Warning)


def check_call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Trace a user's function without computing anything, and give the shapes of what it returns."""
    with calling(name):
        return jax.eval_shape(function, *arguments)


def changed(name: str, function: Callable[..., Any], images: Array, *arguments: Any, **named: Any) -> Array:
    """Call a user's function that is to give images like those that it is given, in compiled code."""
    with calling(name):
        found = function(*arguments, **named)
    if getattr(found, "shape", None) != images.shape or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name}: got one that gives {told(found)}, expected images as it is given, {told(images)}")
    return found


def check_optimizer(name: str, optimizer: Any, others: str = "") -> Any:
    """An optimizer of optax, or what has its two functions. `others`: what else the caller takes, for the message."""
    parts = (getattr(optimizer, "init", None), getattr(optimizer, "update", None))
    if isinstance(optimizer, type) or not all(map(callable, parts)):
        raise wrong(name, optimizer, f"{others}an optax.GradientTransformation such as optax.adam(0.01)")
    return optimizer


def check_instance(name: str, value: Any, kind: type[T], expected: str) -> T:
    """An object of a class."""
    if not isinstance(value, kind):
        raise wrong(name, value, expected)
    return value


def check_named(name: str, values: Any, expected: str) -> Mapping[str, Any]:
    """A mapping from names, strings, to whatever the caller looks at next."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise wrong(name, values, expected)
    return values


def check_sequence(name: str, values: Any, expected: str) -> Sequence[Any]:
    """A list or tuple, or the like: not a string, which is one of its letters."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise wrong(name, values, expected)
    return values


def check_key(name: str, key: Any) -> Array:
    """One key of `jax.random`, of the new kind or the old one (2,); it may be traced."""
    new = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not isinstance(key, jax.Array) or not (key.shape == () if new else key.shape == (2,) and key.dtype == np.uint32):
        raise wrong(name, key, "jax.random.key(seed)")
    return key


# --- Arrays


def check_array(name: str, value: Any, expected: str = "an array of numbers") -> np.ndarray | Array:
    """An array, JAX's or NumPy's, as it is, or what NumPy makes of lists of numbers."""
    array = value
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name}: got a masked array, expected {expected} without a mask")
    if not isinstance(value, np.ndarray | jax.Array) or isinstance(value, np.matrix):
        try:
            array = np.asarray(value)
        except Exception:
            # Of an object of any kind NumPy asks this and that, which may raise anything.
            raise wrong(name, value, expected) from None
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise wrong(name, value, expected)
    if isinstance(array, np.ndarray) and array.dtype.kind in "iufc":
        # JAX takes neither another byte order nor numbers of more than 64 bits.
        native = np.dtype(np.float64) if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
        array = array if array.dtype == native else array.astype(native)
    return array


def check_real(name: str, value: Any) -> np.ndarray | Array:
    """An array of real numbers of any kind, in which NaN and infinity may be."""
    array = check_array(name, value)
    if not _is_real(array.dtype) and array.dtype != np.bool_:
        raise ValueError(f"{name}: got dtype {array.dtype}, expected real numbers")
    return array


def check_floats(name: str, value: Any, expected: str = "floats") -> np.ndarray | Array:
    """An array of real floating-point numbers, of any shape."""
    array = check_array(name, value, f"an array of {expected}")
    # JAX's view of dtypes, not NumPy's: bfloat16 is a float too.
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name}: got dtype {array.dtype}, expected {expected}")
    return array


def check_batch(name: str, value: Any) -> np.ndarray | Array:
    """Inputs to a kernel or a network: floats (n, height, width, channels) or (n, d), none of these 0.

    Only shape and dtype are looked at: values may be traced, and reading them would wait for the device.
    """
    array = check_array(name, value, "an array of floats")
    if array.ndim not in (2, 4):
        raise ValueError(f"{name}: got shape {array.shape}, expected (n, height, width, channels) or (n, d)")
    check_floats(name, array, "floats (images in [0, 1], or preprocessed)")
    if 0 in array.shape:
        raise ValueError(f"{name}: got shape {array.shape}, expected at least one input and one value in it")
    return array


def check_targets(name: str, value: Any, n: int) -> np.ndarray | Array:
    """Regression targets: floats (n, outputs), a row for each of n inputs."""
    array = check_array(name, value, f"an array of floats ({n}, outputs)")
    if array.ndim != 2 or len(array) != n or array.shape[1] == 0:
        raise ValueError(f"{name}: got shape {array.shape}, expected ({n}, outputs), one row of targets per input")
    return check_floats(name, array, "floats (ntkit.data.one_hot makes them of labels)")


def check_finite(name: str, value: Any, expected: str = "finite numbers") -> np.ndarray:
    """An array of finite real numbers on the host, in float64; not empty."""
    array = check_array(name, value)
    if isinstance(array, jax.core.Tracer):
        raise ValueError(f"{name}: got a traced array, expected one outside of jit, grad and vmap")
    if not _is_real(array.dtype):
        raise ValueError(f"{name}: got dtype {array.dtype}, expected real numbers")
    array = np.asarray(array, np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name}: got {'no numbers' if array.size == 0 else 'NaN or infinity'}, expected {expected}")
    return array


def check_square(name: str, value: Any) -> np.ndarray:
    """A Gram matrix on the host: finite numbers (n, n), in float64, symmetric but for rounding."""
    array = check_finite(name, value)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"{name}: got shape {array.shape}, expected a square")
    if np.abs(array - array.T).max() > 1e-3 * np.abs(array).max():
        raise ValueError(f"{name}: got one that is not symmetric, expected a Gram matrix")
    return array


# --- Paths


def check_path(name: str, value: Any) -> Path:
    """A path, as a string or a `pathlib.Path`; nothing is asked of what is there."""
    if not isinstance(value, str | os.PathLike) or not isinstance(path := os.fspath(value), str) or not path:
        raise wrong(name, value, "a path")
    if "\0" in path:
        raise wrong(name, value, "a path without a zero character")
    if any(len(os.fsencode(part)) > 255 for part in Path(path).parts):
        raise wrong(name, value, "a path of names of at most 255 characters")
    return Path(path)


def check_file(name: str, value: Any, expected: str) -> Path:
    """A regular file that is there: opening a pipe would wait for whoever writes to it, and a device for ever.

    **Raises:** `FileNotFoundError` if there is nothing; `ValueError` if it is something else.
    """
    path = check_path(name, value)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{name}: got {str(path)!r}, which does not exist, expected {expected}") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ValueError(f"{name}: got {str(path)!r}, which is {kind}, expected {expected}")
    return path
