"""The command `ntkit`, ready for Ctrl-C and for closed streams before anything that takes time is imported."""

import contextlib
import os
import signal
import sys
from types import FrameType

# What the command ended with, once it has.
_status: int | None = None


def main() -> None:
    """Run the command line and exit."""
    global _status
    for number in ("SIGINT", "SIGTERM", "SIGHUP"):
        _stop_at(getattr(signal, number, None))
    # A file opened under the number of a closed stream would get what is printed there.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    try:
        from ntkit.cli import main as command  # takes a second, and the signals over for as long as it runs

        command()
        _status = 0
    except SystemExit as exit_:
        _status = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
        if _status > 128:
            _end(_status)
        raise


def _stop_at(number: signal.Signals | None) -> None:
    if number is not None and (number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN):
        signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    # Nothing has begun, or all is done. An exception would be printed by the import that it comes from.
    if _status is None:
        with contextlib.suppress(OSError):
            os.write(2, b"ntkit: stopped\n")
    _end(128 + number if _status is None else _status)


def _end(status: int) -> None:
    """Exit without what Python does at the end of a program.

    A computation that was stopped may go on in XLA's threads, and reads memory then that Python has freed: now and
    then a segmentation fault came after the last line. By now all files are written and closed. Processes that work
    together have more to do: they take leave of each other.
    """
    # Of a JAX that is half imported there is nothing yet.
    distributed = getattr(sys.modules.get("jax"), "distributed", None)
    if getattr(distributed, "is_initialized", bool)():
        return
    for stream in (sys.stdout, sys.stderr):
        # RuntimeError: the signal came while this very stream was written to.
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            stream.flush()
    os._exit(status)
