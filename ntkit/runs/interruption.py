"""Ctrl-C, SIGTERM and SIGHUP: to a loop a request that it heeds after its step, to a program an exception."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# Windows has no SIGHUP, which comes when the terminal is closed.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

# Seconds after which an exception that was lost is raised again, and the signal of that timer, which Windows lacks.
_AGAIN = 0.2
_ALARM = getattr(signal, "SIGALRM", None)


class Interrupted(KeyboardInterrupt):
    """A loop or a program was asked to stop: it finished its step, saved what it could, and says where.

    **Fields:** `signal`: the signal that asked; a command line exits with 128 plus it.
    """

    def __init__(self, message: str, signal: signal.Signals) -> None:
        super().__init__(message)
        self.signal = signal


class Interruption:
    """A context in which Ctrl-C (SIGINT), SIGTERM and SIGHUP set a flag instead of ending the process.

        with Interruption() as interruption:
            for step in range(steps):
                ...
                if interruption.requested:
                    break

    A second Ctrl-C raises `KeyboardInterrupt` at once. The previous handlers are back when the block ends. Only the
    main thread may handle signals; in any other the context does nothing. SIGHUP stays ignored where it is, as under
    `nohup`.

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
            for number in SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
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
        if self.signal is not None:
            if number == signal.SIGINT:
                raise Interrupted("stopped at once", self.signal)
            return
        self.signal = signal.Signals(number)
        hint = " (Ctrl-C again to stop at once)" if number == signal.SIGINT else ""
        # Not print: a signal may come in the middle of another print, whose buffer cannot be entered twice.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), f"\n{self.signal.name}: finishing the step…{hint}\n".encode())


class _Waiting(Interruption):
    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals wait until the block ends, which makes, writes or removes what belongs together."""
    waiting = _Waiting()
    try:
        with waiting:
            yield
    finally:
        if waiting.signal is not None:
            signal.raise_signal(waiting.signal)


class Interruptible(Interruption):
    """A context that Ctrl-C, SIGTERM and SIGHUP end, with `Interrupted`: for a program, whose cleaning up then runs.

    Python drops an exception that is raised in a destructor or in a callback of the garbage collector, of which JAX has
    one, and the import of an extension makes another one of it. So it is raised again until it arrives here, and
    whatever arrives here after a signal is `Interrupted`.
    """

    def __enter__(self) -> "Interruptible":
        self._report, sys.unraisablehook = sys.unraisablehook, self._unraisable
        super().__enter__()
        if self._previous and _ALARM is not None:
            self._previous[_ALARM] = signal.signal(_ALARM, self._look_again)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _ALARM in self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        super().__exit__(kind, error, trace)
        sys.unraisablehook = self._report
        if error is not None and self.signal is not None and not isinstance(error, Interrupted):
            raise (interrupt_in(error) or Interrupted("stopped", self.signal)) from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        if _ALARM in self._previous:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        if not _on_its_way():
            raise Interrupted("stopped", self.signal)

    def _look_again(self, number: int, frame: FrameType | None) -> None:
        if _on_its_way():
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        elif self.signal is not None:
            # To whoever handles it by now: a loop, once it has begun, finishes its step.
            signal.raise_signal(self.signal)

    def _unraisable(self, lost: Any) -> None:
        if not isinstance(lost.exc_value, Interrupted):
            self._report(lost)


def _on_its_way() -> bool:
    """Whether what cleans up after an interrupt is running."""
    error = sys.exc_info()[1]
    return error is not None and interrupt_in(error) is not None


def interrupt_in(error: BaseException) -> Interrupted | None:
    """Give the interrupt that an error is, or that others made it of; None if it is none."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    if seen is None or isinstance(seen, Interrupted):
        return seen
    return Interrupted("stopped", signal.SIGINT)
