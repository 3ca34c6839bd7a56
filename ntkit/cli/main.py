"""Parse, run, and turn whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from ntkit.runs import Interrupted


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line `ntkit …` and exit: 0 if all went well, 2 for bad input, 128 + signal if interrupted."""
    # tyro and the commands are imported here, so that the module costs nothing to whoever imports ntkit.
    import tyro

    from ntkit.cli.attack import Attack
    from ntkit.cli.distill import Distill
    from ntkit.cli.dynamics import Dynamics
    from ntkit.cli.evaluate import Evaluate
    from ntkit.cli.features import Features
    from ntkit.cli.info import Info
    from ntkit.cli.label_solve import LabelSolve
    from ntkit.cli.options import DistributedOptions, as_flag
    from ntkit.cli.score import Score

    commands: dict[str, Any] = {
        "distill": Distill,
        "label-solve": LabelSolve,
        "evaluate": Evaluate,
        "attack": Attack,
        "dynamics": Dynamics,
        "features": Features,
        "score": Score,
        "info": Info,
    }
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = " ".join(["ntkit", *(argument for argument in arguments[:1] if argument in commands)])
    options: Any = None
    shows_warning = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: print(f"{name}: warning: {message}", file=sys.stderr)
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
        if isinstance(options, Distill | Evaluate):
            with _one_line_errors(name):
                options = options.completed(arguments[1:])
        options.run()
        sys.stdout.flush()
    except Interrupted as interrupted:
        print(f"{name}: {interrupted}", file=sys.stderr)
        sys.exit(128 + interrupted.signal)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # With a number but no file name str() would put "[Errno 13]" before the message.
        _exit(name, as_flag(str(error) if error.filename or not error.strerror else error.strerror, options))
    except (ValueError, FloatingPointError, ImportError) as error:
        _exit(name, as_flag(str(error), options))
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # a subclass is a fault of ours or of XLA's: its traceback is wanted
            raise
        _exit(name, as_flag(str(error), options))
    finally:
        warnings.showwarning = shows_warning


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
