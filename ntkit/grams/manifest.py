"""`gram.json`: what a store is of, so that nobody takes it for another matrix."""

from __future__ import annotations

import datetime
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntkit._checks import check_file
from ntkit.grams.tiles import Tiling
from ntkit.runs import environment
from ntkit.runs.files import atomic_write

FORMAT = 1
# What decides the numbers of a matrix, beside what decides their rounding.
IDENTITY = ("kernel", "sample", "x1", "x2")
_PACKAGES = ("ntkit", "jax", "jaxlib", "neural-tangents")


def write(directory: Path, identity: Mapping[str, Any], tiling: Tiling) -> dict[str, Any]:
    """Write the manifest of a new store, and give it."""
    manifest = {
        "format": FORMAT,
        **identity,
        "block": [tiling.rows, tiling.columns],
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": _versions(),
    }
    with atomic_write(directory / "gram.json", "w") as file:
        file.write(json.dumps(manifest, indent=2) + "\n")
    return manifest


def read(directory: Path) -> dict[str, Any] | None:
    """Read a manifest; None if there is none. `ValueError` if it is not one that this version can read."""
    path = directory / "gram.json"
    try:
        text = check_file("store", path, "a store's manifest").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = dict(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"store: got {str(path)!r}, which is not whole ({error}), expected JSON") from None
    if manifest.get("format") != FORMAT:
        raise ValueError(f"store: got {str(path)!r} of format {manifest.get('format')!r}, expected format {FORMAT}")
    absent = {*IDENTITY, "shape", "symmetric", "dtype", "block", "versions"} - manifest.keys()
    if absent:
        raise ValueError(f"store: got {str(path)!r} without {', '.join(sorted(absent))}, expected a store's manifest")
    return manifest


def check(directory: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise `ValueError` that shows what differs, unless a store is of the kernel and the inputs of `identity`."""
    differences = [
        "{}: got {}, expected {}".format(key, *_difference(manifest[key], expected))
        for key, expected in identity.items()
        if manifest[key] != expected and not (key == "sample" and _close(manifest[key], expected))
    ]
    if differences:
        raise ValueError(f"store: {str(directory)!r} holds another Gram matrix; its " + "; its ".join(differences))
    block, shape, versions = manifest["block"], manifest["shape"], manifest["versions"]
    sides = isinstance(block, list) and len(block) == 2 and all(type(side) is int for side in block)
    if not (sides and all(0 < side <= n for side, n in zip(block, shape, strict=True)) and isinstance(versions, dict)):
        raise ValueError(
            f"store: got {str(directory / 'gram.json')!r} with blocks of {reprlib.repr(block)} and versions "
            f"{reprlib.repr(versions)}, expected a store's manifest"
        )


def changed_versions(manifest: Mapping[str, Any]) -> list[str]:
    """Give the packages that had another version when the store was begun, with that version."""
    now = _versions()
    return [f"{name} {version}" for name, version in manifest["versions"].items() if version != now.get(name)]


def _versions() -> dict[str, str]:
    found = environment.versions()
    return {name: found[name] for name in _PACKAGES if name in found}


def _close(stored: Any, given: Any) -> bool:
    """Compare values of the kernel, whose rounding differs from one device to another."""
    try:
        return np.shape(stored) == np.shape(given) and np.allclose(stored, given, rtol=1e-3, atol=0, equal_nan=True)
    except (TypeError, ValueError):  # what no array of numbers is made of
        return False


def _difference(stored: object, given: object) -> tuple[str, str]:
    """Show two values from shortly before where they begin to differ."""
    first, second = str(stored), str(given)
    same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    start = max(0, same - 30)
    before = "…" if start else ""
    return before + first[start : same + 50], before + second[start : same + 50]
