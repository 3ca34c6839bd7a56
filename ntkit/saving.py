"""A model kept in a file: an archive without pickle, from which the same model comes back, to the last bit."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkit._archives import read_arrays
from ntkit._checks import check_file, check_sequence, told, wrong
from ntkit._pytrees import ByIdentity, ByValue
from ntkit.runs.environment import versions
from ntkit.runs.files import atomic_write

FORMAT = 1
EXPECTED = "a file that ntkit.save wrote"
_PLAIN = (bool, int, float, str)


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Keep a kernel, a predictor, a trained network, features, or a preprocessing in a file.

    The file is an `.npz` of the arrays, with a description in JSON of what they belong to, the versions of packages,
    and a checksum. It is written under a temporary name and renamed.

    **Arguments:** `model`: a value of ntkit's own classes, or of yours: a frozen dataclass, such as
    `ntkit.pytree_dataclass` makes, or a flax module, of fields that are arrays, numbers, text, and lists, tuples and
    mappings of these. `path`: of the file; the usual ending is `.npz`.

    **Raises:** `ValueError` that names the part that cannot be kept, such as a function; `OSError` if the file cannot
    be written.
    """
    arrays: dict[str, np.ndarray] = {}
    if isinstance(model, (*_PLAIN, list, tuple, dict, type(None))):
        raise wrong("model", model, "a kernel, a predictor, a network, features or a preprocessing")
    tree = _packed(model, "model", arrays)
    text = json.dumps({"format": FORMAT, "versions": versions(), "model": tree}).encode()
    about = {
        "about": np.frombuffer(text, np.uint8),
        "sha256": np.frombuffer(_digest(text, arrays), np.uint8),
    }
    with atomic_write(path) as file:
        np.savez(file, **dict[str, Any](about | arrays))


def load(path: str | os.PathLike[str], *, classes: Sequence[type] = ()) -> Any:
    """Give back what [`save`][] kept. Nothing in the file is executed, and no class is imported that it names.

    **Arguments:** `path`: of the file. `classes`: classes of your own that the model is made of, such as a flax module
    or a kernel.

    **Returns:** the model; its predictions are the same to the last bit, on the same device and versions.

    **Raises:** `ValueError` for a file that is damaged, of something else, or of a class that is not known here;
    `OSError` if it cannot be read.
    """
    expected = "a list of classes"
    if not all(isinstance(each, type) for each in check_sequence("classes", classes, expected)):
        raise wrong("classes", classes, expected)
    file = check_file("path", path, EXPECTED)
    try:
        arrays = read_arrays(file)
        text, digest = (arrays.pop(name).tobytes() for name in ("about", "sha256"))
        if digest != _digest(text, arrays):
            raise ValueError("it does not match its checksum")
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, of ntkit {about['versions']['ntkit']}")
        known = dict(_own_classes()) | {_name(each): each for each in classes}
        return _unpacked(about["model"], arrays, known)
    # A file that is made up can make JSON, NumPy and the classes themselves raise nearly anything.
    except Exception as error:
        reason = " ".join(str(error).strip("'\"").split()) or type(error).__name__
        raise ValueError(f"path: got {os.fspath(path)!r}, expected {EXPECTED}: {reason[:300]}") from error


@functools.cache
def _own_classes() -> Mapping[str, type]:
    """The classes that a file may name. Imported here: some of them take a while."""
    from ntkit import architectures, data, features, gp, kernels, networks, regression
    from ntkit._flax import Network
    from ntkit.data.pixels import PixelModel, PixelModule
    from ntkit.kernels.closed_form import NeuralTangentsKernel
    from ntkit.kernels.fused import FusedKernel
    from ntkit.kernels.preprocessed import PixelKernel
    from ntkit.kernels.random_features import RandomFeatures
    from ntkit.networks._modules import CNN, NormalizedCNN, ResNet18

    own: tuple[type, ...] = (
        *(architectures.Dense, architectures.Conv, architectures.Activation, architectures.AveragePool),
        *(architectures.GlobalAveragePool, architectures.Flatten, architectures.Architecture),
        *(FusedKernel, NeuralTangentsKernel, RandomFeatures, PixelKernel, kernels.Sum, kernels.Product, kernels.Scaled),
        *(data.Identity, data.Standardize, data.ZCA, PixelModel, PixelModule),
        *(regression.Predictor, regression.FeaturePredictor, regression.Report, features.EigenFeatures),
        *(gp.Posterior, gp.Ensemble),
        *(networks.TrainedNetwork, networks.Linearized, Network, CNN, NormalizedCNN, ResNet18),
    )
    return {_name(each): each for each in own}


def _name(cls: type) -> str:
    """ntkit's own classes are known by their names alone, wherever a later version has them."""
    return cls.__qualname__ if cls.__module__.startswith("ntkit.") else f"{cls.__module__}.{cls.__qualname__}"


def _fields(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value) if field.init]
    if "parent" in names:
        # What flax adds to every module says where in another one it is.
        names = [name for name in names if name not in ("parent", "name")]
    return {name: getattr(value, name) for name in names}


def _packed(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    """Describe a value in JSON's types. `where`: its place in the model, for the error."""
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
            raise ValueError(f"model: got {told(value)} as {where}, expected numbers")
        array = np.asarray(value)
        kind = "jax" if isinstance(value, jax.Array) else "numpy" if isinstance(value, np.ndarray) else "scalar"
        name = str(len(arrays))
        arrays[name] = array
        weak = bool(getattr(value, "weak_type", False))
        return {"array": name, "kind": kind, "dtype": str(array.dtype), "weak": weak}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _packed(each, f"{where}[{key!r}]", arrays) for key, each in value.items()}}
    if type(value) in (list, tuple):
        items = [_packed(each, f"{where}[{i}]", arrays) for i, each in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, ByValue):
        return _packed(value.function, where, arrays)
    named_tuple = isinstance(value, tuple) and hasattr(value, "_asdict")
    if not isinstance(value, type | ByIdentity) and (dataclasses.is_dataclass(value) or named_tuple):
        fields = value._asdict() if named_tuple else _fields(value)
        packed = {name: _packed(each, f"{where}.{name}", arrays) for name, each in fields.items()}
        return {"class": _name(type(value)), "fields": packed}
    raise ValueError(
        f"model: got a {type(value).__name__} as {where}, which has no form in a file, expected arrays, numbers, text, "
        "and frozen dataclasses, lists, tuples and mappings of these"
    )


def _unpacked(packed: Any, arrays: Mapping[str, np.ndarray], known: Mapping[str, type]) -> Any:
    if packed is None or type(packed) in _PLAIN:
        return packed
    if "array" in packed:
        # NumPy's files know no bfloat16 and the like: only how many bytes a number has.
        array = arrays[packed["array"]].view(jnp.dtype(packed["dtype"]))
        if packed["kind"] != "jax":
            return array if packed["kind"] == "numpy" else array[()]
        if packed["weak"]:
            return jnp.asarray(array.item())
        found = jnp.asarray(array)
        if found.dtype != array.dtype:
            raise ValueError(f"it has numbers of {array.dtype}: jax.config.update('jax_enable_x64', True) comes first")
        return found
    if "mapping" in packed:
        return {key: _unpacked(each, arrays, known) for key, each in packed["mapping"].items()}
    for kind in (list, tuple):
        if kind.__name__ in packed:
            return kind(_unpacked(each, arrays, known) for each in packed[kind.__name__])
    if packed["class"] not in known:
        raise ValueError(f"it has a {packed['class']}, which is not known here; give the class as classes=[…]")
    fields = {name: _unpacked(each, arrays, known) for name, each in packed["fields"].items()}
    return known[packed["class"]](**fields)


def _digest(text: bytes, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A hash of all that decides a model: the text has the place and dtype of each array."""
    digest = hashlib.sha256(text)
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.digest()
