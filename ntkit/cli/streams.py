"""Streams that never end the work: what cannot be shown is no reason to lose what was computed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, Any


class _Unfailing(io.FileIO):
    """A file that drops what it cannot write, or gives it to another one; a pipe without a reader wants nothing."""

    def __init__(self, descriptor: int, instead: IO[str] | None = None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._instead = instead

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
            if written is not None:  # as it is where the reader of a non-blocking stream is too slow
                return written
        except BrokenPipeError:
            pass
        except OSError as error:
            if self._instead is not None:
                print(f"stdout: {error.strerror}; what it should show:", file=self._instead)
                self._instead.write(bytes(data).decode(errors="replace"))
        return len(data)


@contextlib.contextmanager
def unfailing_streams() -> Iterator[None]:
    """Let stdout and stderr take anything in the block, whatever the locale, and whether or not they are open.

    Where a program has put streams of its own they stay.
    """
    before = sys.stdout, sys.stderr
    try:
        if sys.stderr is sys.__stderr__:
            sys.stderr = _stream(sys.stderr, 2)
        if sys.stdout is sys.__stdout__:
            sys.stdout = _stream(sys.stdout, 1, sys.stderr)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _stream(old: Any, descriptor: int, instead: IO[str] | None = None) -> IO[str]:
    if old is None:  # it was closed
        return open(os.devnull, "w")
    old.flush()
    buffer = io.BufferedWriter(_Unfailing(descriptor, instead))
    # As Python does for stderr: a sign that the encoding lacks is written as its number.
    return io.TextIOWrapper(
        buffer, old.encoding, "backslashreplace", line_buffering=descriptor == 2 or old.line_buffering
    )
