"""Ctrl-C and SIGTERM as a request: the loop finishes its step, saves, and stops by itself."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A loop was asked to stop: it finished its step, saved what it could, and says where.

    **Fields:** `signal`: the signal that asked; a command line exits with 128 plus it.
    """

    def __init__(self, message: str, signal: signal.Signals) -> None:
        super().__init__(message)
        self.signal = signal


class Interruption:
    """A context in which Ctrl-C (SIGINT) and SIGTERM set a flag instead of ending the process.

        with Interruption() as interruption:
            for step in range(steps):
                ...
                if interruption.requested:
                    break

    A second Ctrl-C raises `KeyboardInterrupt` at once. The previous handlers are back when the block ends. Only the
    main thread may handle signals; in any other the context does nothing.

    **Fields:**

    - `signal`: the first signal that came, or None. A command line exits with 128 plus it.
    """

    signal: signal.Signals | None

    def __init__(self) -> None:
        self.signal = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python: there is no way to put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = signal.Signals(number)
        hint = " (Ctrl-C again to stop at once)" if number == signal.SIGINT else ""
        # Not print: a signal may come in the middle of another print, whose buffer cannot be entered twice.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), f"\n{self.signal.name}: finishing the step…{hint}\n".encode())
