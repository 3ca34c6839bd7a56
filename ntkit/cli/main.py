"""Parse, run, and turn whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ntkit._checks import told
from ntkit.cli.streams import unfailing_streams
from ntkit.runs import Interrupted, Interruptible

# The module and the class of each command.
COMMANDS = {
    "distill": ("ntkit.cli.distill", "Distill"),
    "label-solve": ("ntkit.cli.label_solve", "LabelSolve"),
    "evaluate": ("ntkit.cli.evaluate", "Evaluate"),
    "attack": ("ntkit.cli.attack", "Attack"),
    "dynamics": ("ntkit.cli.dynamics", "Dynamics"),
    "features": ("ntkit.cli.features", "Features"),
    "score": ("ntkit.cli.score", "Score"),
    "info": ("ntkit.cli.info", "Info"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line `ntkit …` and exit: 0 if all went well, 2 for bad input, 128 + signal if interrupted.

    The status is that of the work, whatever becomes of what it prints.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # What is printed of an error begins with it.
    name = " ".join(["ntkit", *(argument for argument in arguments[:1] if argument in COMMANDS)])
    shows_warning = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: print(f"{name}: warning: {message}", file=sys.stderr)
    with unfailing_streams():
        try:
            with Interruptible():
                _run(name, arguments)
        except KeyboardInterrupt as error:
            interrupted = error if isinstance(error, Interrupted) else Interrupted("stopped", signal.SIGINT)
            print(f"{name}: {interrupted}", file=sys.stderr)
            sys.exit(128 + interrupted.signal)
        finally:
            warnings.showwarning = shows_warning


def _run(name: str, arguments: list[str]) -> None:
    # tyro and the commands are imported here, so that the module costs nothing to whoever imports ntkit.
    import tyro

    from ntkit.cli.distributed import DistributedOptions
    from ntkit.cli.options import as_flag, kernel_at_fault
    from ntkit.cli.ranges import check_ranges

    options: Any = None
    try:
        with _one_line_errors(name):
            if arguments[:1] and arguments[0] in COMMANDS:
                # Only what is asked for is imported.
                options = tyro.cli(_command(arguments[0]), prog=name, args=arguments[1:])
            else:
                options = tyro.extras.subcommand_cli_from_dict(
                    {command: _command(command) for command in COMMANDS},
                    prog="ntkit",
                    description="Neural tangent kernels to work with: distil a data set, and look at what came out.",
                    args=arguments,
                )
        check_ranges(options)
        if isinstance(options, DistributedOptions):
            # Before anything is computed: what a run has to say of itself, for one, asks for the device.
            options.start()
        if hasattr(options, "completed"):
            with _one_line_errors(name):
                options = options.completed(arguments[1:])
            check_ranges(options)
        try:
            options.run()
        except (ValueError, FloatingPointError) as error:
            if (fault := kernel_at_fault(options)) is None:
                raise
            raise ValueError(fault) from error
    except OSError as error:
        _exit(name, as_flag(_of_a_file(error, options), options))
    except (ValueError, FloatingPointError, ImportError) as error:
        _exit(name, as_flag(str(error), options))
    except MemoryError as error:
        _exit(name, f"out of memory: {error}")
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # of a device
            _exit(name, str(error).splitlines()[0])
        if type(error) is not RuntimeError:  # a subclass is a fault of ours or of XLA's: its traceback is wanted
            raise
        _exit(name, as_flag(str(error), options))


def _command(name: str) -> Any:
    module, of = COMMANDS[name]
    return getattr(importlib.import_module(module), of)


def _of_a_file(error: OSError, options: Any) -> str:
    """Say what the system has against a file, and by which option it was given."""
    message = error.strerror or str(error)
    if error.filename is None:
        return message
    path = os.fsdecode(error.filename)
    for field in dataclasses.fields(options) if options is not None else ():
        given = getattr(options, field.name)
        if isinstance(given, Path) and path.startswith(str(given)):
            return f"{field.name}: got {told(path)}: {message}"
    return f"{told(path)}: {message}"


def _exit(name: str, message: str) -> NoReturn:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _unboxed(text: str) -> str:
    """Give what stands between the title and the first rule; where the output has no encoding, the box has no frame."""
    framed = "│" in text
    parts = re.split(r"[─-]{8,}", re.sub(r"^╭.*╮$", "", text, flags=re.M))
    body = parts[0] if framed or len(parts) == 1 else parts[1]
    return re.sub(r"[│╭╮╰╯─]", " ", body)


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Say a parsing error in one line, where tyro draws a box around it."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            yield
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        _exit(name, _unboxed(captured.getvalue()))
    sys.stderr.write(captured.getvalue())
