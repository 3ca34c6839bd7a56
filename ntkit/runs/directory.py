"""A run: a directory that holds what a long computation was asked, how far it got and what came out."""

import dataclasses
import datetime
import json
import os
import reprlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ntkit._checks import check_file, check_instance, check_integer, check_path, wrong
from ntkit.runs import checkpoints, environment, lock, metrics
from ntkit.runs.files import atomic_write, is_temporary
from ntkit.runs.report import png, write_report
from ntkit.runs.result import Result

State = TypeVar("State")

_ABSENT = object()
# Of values within values in a configuration.
_DEEPEST = 50


class Run:
    """A run directory, made by `Run.create` and opened again by `Run.resume`.

    It holds `config.json`, `metrics.jsonl` and `checkpoints/`; results go beside them, through `atomic_write` to
    `run.path / "distilled.npz"` and the like. A loop whose step is a pure function of its state ends, after any
    number of kills, with the bits of an undisturbed run:

        run = Run.resume(path, config) if resume else Run.create(path, config)
        step, state = run.restore(state) or (0, state)
        while step < steps:
            state, loss = update(state)
            step += 1
            run.log(step, loss=loss)
            if step % 100 == 0 or step == steps or interruption.requested:
                run.save(step, state)

    Only one process at a time may write to a run: the first `log`, `save` or `restore` of a second one raises
    `BlockingIOError`.

    **Fields:**

    - `path`: the directory.
    - `config`: the configuration as read back from JSON (tuples are lists).
    - `versions`: the package versions at creation.
    - `device`: JAX's platform, device kind and count, and settings at creation.
    - `created`: when the run was created, ISO 8601 with time zone.
    """

    path: Path
    config: dict[str, Any]
    versions: dict[str, str]
    device: dict[str, Any]
    created: str

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.config = content["config"]
        self.versions = content["versions"]
        self.device = content["device"]
        self.created = content["created"]
        self._mended = False

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any]) -> "Run":
        """Begin a run in a new or empty directory; directories above it are made as needed.

        **Arguments:**

        - `path`: the run directory.
        - `config`: everything needed to repeat the run: numbers, strings, booleans, None, paths, and lists and
          string-keyed mappings of them.

        **Raises:**

        - `FileExistsError`: the directory holds a run already, or other things.
        - `OSError`: the directory cannot be made or written to.
        - `ValueError`: a value in `config` has no JSON form.
        """
        content = {
            "config": _mapping(config),
            "versions": environment.versions(),
            "device": environment.device(),
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        directory = check_path("path", path)
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(f"path: got {str(path)!r}, which is a file, expected a directory for the run")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if (directory / "config.json").exists():
                raise FileExistsError(
                    f"path: {str(path)!r} already holds a run; resume it, or choose another directory"
                )
            others = sorted(
                entry.name for entry in directory.iterdir() if entry.name != ".lock" and not is_temporary(entry)
            )
            if others:
                raise FileExistsError(
                    f"path: got {str(path)!r}, which contains {others[0]!r}"
                    + (f" and {len(others) - 1} more" if len(others) > 1 else "")
                    + ", expected a new or empty directory for the run"
                )
            lock.acquire(directory)
        except OSError as error:
            if error.filename is None:
                raise
            raise OSError(error.errno, f"path: cannot make the run directory {str(path)!r}: {error.strerror}") from None
        with atomic_write(directory / "config.json", "w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
        return cls(directory, json.loads(json.dumps(content)))

    @classmethod
    def resume(cls, path: str | os.PathLike[str], config: Mapping[str, Any] | None = None) -> "Run":
        """Open a run, to go on with it or to read it; nothing in the directory changes by that.

        Other package versions or another device than at creation are a warning, since bits may then differ.

        **Arguments:**

        - `path`: the run directory.
        - `config`: if given, the configuration that the run must have been created with.

        **Raises:**

        - `FileNotFoundError`: there is no directory, or no `config.json` in it.
        - `ValueError`: `config.json` is broken, or its configuration is not `config`: every key that differs is listed
          with both values.
        """
        directory = check_path("path", path)
        content = _read_config(directory, str(path))
        run = cls(directory, content)
        if config is not None:
            differences = _differences(run.config, _mapping(config))
            if differences:
                raise ValueError(
                    f"config: got other values, expected those of the run in {str(path)!r}; these keys differ: "
                    + "; ".join(differences)
                )
        changed = _differences(run.versions, environment.versions()) + _differences(
            run.device, json.loads(json.dumps(environment.device()))
        )
        if changed:
            warnings.warn(
                f"the run in {str(path)!r} was begun under other conditions, so results may differ in their bits: "
                + "; ".join(changed),
                stacklevel=2,
            )
        return run

    def discard(self) -> None:
        """Remove a run that has come to nothing: its directory, if only the configuration is in it.

        For a run that was created before its arguments turned out to be bad, so that the path can be used again.
        """
        lock.acquire(self.path)
        if {entry.name for entry in self.path.iterdir()} <= {"config.json", ".lock"}:
            lock.release(self.path)
            for name in ("config.json", ".lock"):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    @property
    def step(self) -> int | None:
        """The step of the latest checkpoint, or None if there is none."""
        return max(checkpoints.finished(self._checkpoints), default=None)

    def log(self, step: int, **values: object) -> None:
        """Append one record to `metrics.jsonl`; when this returns a kill no longer loses it.

        **Arguments:**

        - `step`: the number of steps done.
        - `values`: numbers, strings, or arrays or lists of them. A JAX array is waited for.

        **Raises:**

        - `ValueError`: a value has no JSON form.
        """
        self._begin_writing()
        metrics.append(self._metrics, {"step": check_integer("step", step, 0), **values})

    def metrics(self) -> list[dict[str, Any]]:
        """All records of `log`, oldest first; a last line torn by a kill is left out."""
        return metrics.read(self._metrics)

    def write(self, result: Result) -> list[str]:
        """Write a result: `results.json`, its arrays as `results.npz`, its figures as PNGs, and `report.html`.

        What an earlier call wrote is replaced. **Returns:** the names of the files.
        """
        check_instance("result", result, Result, "an ntkit.runs.Result")
        self._begin_writing()
        with atomic_write(self.path / "results.json", "w") as file:
            file.write(json.dumps(result.numbers(), indent=2) + "\n")
        names = ["report.html", "results.json"]
        if result.arrays:
            with atomic_write(self.path / "results.npz") as file:
                np.savez_compressed(file, **dict[str, Any](result.arrays))
            names.append("results.npz")
        pictures = {name: png(name, figure) for name, figure in result.figures.items()}
        for name, content in pictures.items():
            with atomic_write(self.path / f"{name}.png") as file:
                file.write(content)
            names.append(f"{name}.png")
        write_report(
            self.path / "report.html",
            dataclasses.replace(result, figures=pictures),
            config=self.config,
            versions=self.versions,
            device=self.device,
            footer=f"Made by ntkit {self.versions['ntkit']}, {self.created}.",
        )
        return names

    def save(self, step: int, state: object) -> None:
        """Write a checkpoint and return when it is on disk. The last two steps are kept.

        Beside the state it holds the configuration and the records, which `restore` compares with those of the run.

        **Arguments:**

        - `step`: the number of steps done; not before the latest checkpoint.
        - `state`: a pytree of JAX or numpy arrays, PRNG keys, and Python numbers and strings.

        **Raises:**

        - `ValueError`: `state` has a leaf of another type, `step` is negative, or lies before the latest checkpoint.
        """
        step = check_integer("step", step, 0)
        self._begin_writing()
        notes = {"config": self.config, "metrics": metrics.text(self._metrics)}
        checkpoints.save(self._checkpoints, step, state, notes)

    def restore(self, like: State) -> tuple[int, State] | None:
        """Go back to the latest checkpoint: its `(step, state)`, or None if there is none.

        The records in `metrics.jsonl` after that step (all of them, if there is no checkpoint) are dropped: the
        run writes them again. Those up to that step are in the checkpoint too: if the file has lost any of them they
        are put back, with a warning. A damaged checkpoint is set aside with a warning, and the one before it is taken.

        **Arguments:**

        - `like`: a pytree with the structure, shapes, dtypes and devices of the saved state, such as the initial state;
          its values do not matter.

        **Raises:**

        - `ValueError`: the run has another configuration than when it was saved, or the saved state another structure,
          or other shapes or dtypes.
        - `OSError`: there are checkpoints, but none can be read; they are left as they are.
        """
        self._begin_writing()
        stored = checkpoints.latest(self._checkpoints)
        step, state, text = 0, like, ""
        if stored is not None:
            step, text = stored.step, stored.notes["metrics"]
            if differences := _differences(stored.notes["config"], self.config):
                raise ValueError(
                    f"config: got other values in {str(self.path / 'config.json')!r}, expected those of the run at its "
                    f"checkpoint of step {step}; these keys differ: {'; '.join(differences)}"
                )
            state = stored.into(like)
        elif metrics.text(self._metrics):
            warnings.warn(f"{str(self.path)!r} has no checkpoint, so the run and its records begin anew", stacklevel=2)
        if metrics.go_back(self._metrics, text, step):
            warnings.warn(
                f"{str(self._metrics)!r} had lost or changed records up to step {step}; they are put back from the "
                "checkpoint",
                stacklevel=2,
            )
        for entry in (*self.path.iterdir(), *self._checkpoints.glob("*")):
            if is_temporary(entry):
                entry.unlink(missing_ok=True)
        return None if stored is None else (step, state)

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _begin_writing(self) -> None:
        lock.acquire(self.path)
        if not self._mended:
            metrics.mend(self._metrics)
            self._mended = True


def _read_config(directory: Path, given: str) -> dict[str, Any]:
    path = directory / "config.json"
    if not directory.exists():
        raise FileNotFoundError(f"path: got {given!r}, which does not exist, expected a run directory")
    if not directory.is_dir():
        raise NotADirectoryError(f"path: got {given!r}, which is a file, expected a run directory")
    try:
        text = check_file("path", path, "a run's configuration").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"path: got {given!r}, which has no config.json, expected a run directory") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"path: got {str(path)!r}, which is not whole, expected JSON ({error})") from None
    kinds = {"config": dict, "versions": dict, "device": dict, "created": str}
    not_a_run = f"path: {str(path)!r} is not a run's: expected the keys {', '.join(kinds)}"
    if not isinstance(content, dict):
        raise ValueError(not_a_run)
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind) or _too_deep(content[key]):
            raise ValueError(f"{not_a_run}, got {reprlib.repr(content.get(key))} for {key}")
    versions = content["versions"]
    if not (isinstance(versions.get("python"), str) and all(isinstance(version, str) for version in versions.values())):
        raise ValueError(f"{not_a_run}, got {reprlib.repr(versions)} for versions")
    return content


def _mapping(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise wrong("config", config, "a mapping")
    if _too_deep(config):
        raise wrong("config", reprlib.repr(config), f"at most {_DEEPEST} levels")
    return json.loads(json.dumps(_plain("config", config)))


def _too_deep(value: object) -> bool:
    """Whether values lie deeper in one another than Python could follow them everywhere."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        below: list[Any] = []
        for each in level:
            if isinstance(each, Mapping | list | tuple):
                below += each.values() if isinstance(each, Mapping) else each
        level = below
    return bool(level)


def _plain(name: str, value: object) -> object:
    """`value` in JSON's types; `name` is its place in the configuration, for the error."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise wrong(name, key, "strings as keys")
        return {key: _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{index}]", item) for index, item in enumerate(value)]
    raise wrong(name, value, "a number, a string, a boolean, None, a path, or lists and mappings of them")


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One phrase for every key, dotted where nested, whose values differ."""
    found = []
    for key in sorted({*stored, *given}):
        old, new = stored.get(key, _ABSENT), given.get(key, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        # As JSON text, since there NaN equals NaN, and 1 is not 1.0.
        elif _show(old) != _show(new):
            found.append(f"{prefix}{key}: the run has {_show(old)}, given {_show(new)}")
    return found


def _show(value: object) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value, sort_keys=True)
