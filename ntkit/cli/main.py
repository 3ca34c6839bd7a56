"""Parse, run, and turn whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

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

    from ntkit.cli.options import DistributedOptions, as_flag

    commands = {command: getattr(importlib.import_module(module), of) for command, (module, of) in COMMANDS.items()}
    options: Any = None
    try:
        with _one_line_errors(name):
            options = tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="ntkit",
                description="Neural tangent kernels to work with: distil a data set, and look at what came out.",
                args=arguments,
            )
        if isinstance(options, DistributedOptions):
            # Before anything is computed: what a run has to say of itself, for one, asks for the device.
            options.start()
        if hasattr(options, "completed"):
            with _one_line_errors(name):
                options = options.completed(arguments[1:])
        options.run()
    except OSError as error:
        # With a number but no file name str() would put "[Errno 13]" before the message.
        _exit(name, as_flag(str(error) if error.filename or not error.strerror else error.strerror, options))
    except (ValueError, FloatingPointError, ImportError) as error:
        _exit(name, as_flag(str(error), options))
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # a subclass is a fault of ours or of XLA's: its traceback is wanted
            raise
        _exit(name, as_flag(str(error), options))


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
