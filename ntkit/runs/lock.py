"""One writer per run directory: a second process that resumes a live run would cut off its metrics."""

import os
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # not a POSIX system: the check is left out there
    fcntl = None

# Record locks belong to the process, and closing any descriptor of the file drops them, so each is opened once
# and kept until it is released or the process ends, however it ends. The values are process and descriptor.
_held: dict[tuple[int, int], tuple[int, int]] = {}


def acquire(directory: Path) -> None:
    """Become the process that writes to a run directory, or raise `BlockingIOError` if another one is.

    Calls after the first cost one `stat`. Where the file system has no locks nothing is checked.
    """
    if fcntl is None:
        return
    path = directory / ".lock"
    try:
        status = os.stat(path)
        if _held.get((status.st_dev, status.st_ino), (None,))[0] == os.getpid():
            return
    except FileNotFoundError:
        pass
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise BlockingIOError(
            f"run directory {str(directory)!r}: another process is writing to this run; "
            "wait for it to end or stop it, then resume"
        ) from None
    except OSError:
        os.close(descriptor)
        return
    status = os.fstat(descriptor)
    # A forked child inherits this table but not the lock, hence the process id.
    _held[status.st_dev, status.st_ino] = (os.getpid(), descriptor)


def release(directory: Path) -> None:
    """Cease to be the process that writes to a directory, if this one is."""
    status = os.stat(directory / ".lock")
    process, descriptor = _held.pop((status.st_dev, status.st_ino), (None, -1))
    if process == os.getpid():
        os.close(descriptor)
