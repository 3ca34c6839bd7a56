"""What a prepared folder may hold: looked at before TFDS reads it, since a folder may come from anyone.

TFDS imports the module of any class that `features.json` names, and follows paths wherever they lead.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A TFDS name: with a config and a version; no namespace, which would be code of others.
NAME = re.compile(r"\w+(/\w[\w.+-]*)?(:[\d*]+\.[\d*]+\.[\d*]+)?")
_OWN = "tensorflow_datasets.core.features."
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def check_folder(name: str, folder: Path) -> None:
    """Raise `ValueError` unless what `folder` holds of a data set is files and directories inside of it, and the
    features that it names are TFDS's own."""
    root = os.path.realpath(folder)
    base = re.split("[/:]", name)[0]
    pending = [os.path.join(root, base)]
    seen = set()
    while pending:
        path = pending.pop()
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        real = check_inside(name, path, root)
        if stat.S_ISDIR(mode):
            if real not in seen:
                seen.add(real)
                pending += [entry.path for entry in os.scandir(path)]
        elif not stat.S_ISREG(mode):
            raise ValueError(f"name: got {name!r}, of which {path} is a pipe, a socket or a device, expected files")
        elif os.path.basename(path) == "features.json":
            _check_features(name, path)


def check_inside(name: str, path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """Give the real path of a file or directory, or raise `ValueError` if it is not inside of a folder."""
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
        raise ValueError(f"name: got {name!r}, of which {os.fspath(path)} lies outside of {root}, expected it inside")
    return real


def _check_features(name: str, path: str) -> None:
    def check(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        # All pairs, since of a key that is there twice readers take one or the other.
        for key, value in pairs:
            # Of a feature's name TFDS makes that of a file with the names of classes.
            if key.startswith("/") or ".." in key.split("/"):
                raise ValueError(f"name: got {name!r}, whose features.json names {key!r}, expected no paths")
            if key in _CLASS_KEYS and isinstance(value, str) and "." in value and not value.startswith(_OWN):
                raise ValueError(
                    f"name: got {name!r}, whose features.json names {value!r}, expected TFDS's own feature classes"
                )
        return dict(pairs)

    try:
        with open(path, encoding="utf-8") as file:
            json.load(file, object_pairs_hook=check)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"name: got {name!r}, whose features.json is no JSON ({type(error).__name__})") from error
