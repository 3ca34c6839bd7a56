"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, overload

from ntkit._checks import check_choice, check_path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


@overload
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["wb"] = "wb"
) -> contextlib.AbstractContextManager[IO[bytes]]: ...


@overload
def atomic_write(path: str | os.PathLike[str], mode: Literal["w"]) -> contextlib.AbstractContextManager[IO[str]]: ...


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: Literal["wb", "w"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` complete, when the block ends without an error, or not at all.

    The file is written under a hidden temporary name in the same directory, forced to disk and renamed. If the
    block raises, the temporary file is removed and whatever was at `path` stays as it was. A new file has the
    permissions that `open` would have given it, a replaced one keeps its own, and a symbolic link keeps
    pointing at the file that it pointed at.

    **Arguments:**

    - `path`: where the file shall be; its directory must exist.
    - `mode`: "wb" for bytes (the default), "w" for UTF-8 text.

    **Raises:**

    - `ValueError`: `mode` is neither of the two.
    - `OSError`: `path` cannot be written; the message is one line that names it.
    """
    check_choice("mode", mode, ("wb", "w"))
    given = str(check_path("path", path))
    # Replacing the link itself would leave the file behind it stale.
    target = Path(os.path.realpath(given))
    if target.is_dir():
        raise IsADirectoryError(f"path: got {given!r}, which is a directory, expected a file to write")
    if target.exists() and not target.is_file():
        # A rename would replace a device such as /dev/null by an ordinary file.
        raise OSError(f"path: got {given!r}, which is a device or a pipe, expected a regular file to write")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        # 0o666 is what `open` asks for: the umask has the last word.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise cannot_write(given, error) from None
    text: dict[str, Any] = {"encoding": "utf-8", "newline": "\n"} if mode == "w" else {}
    try:
        with open(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
        sync_directory(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # Of a full disk too, of which the system says where it is as little as it says the name of the file.
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise cannot_write(given, error) from None
        raise


def cannot_write(path: str | os.PathLike[str], error: OSError) -> OSError:
    """Retell an `OSError`, of a temporary name or of none, as one about the path that the caller gave."""
    # OSError picks its subclass (PermissionError, …) from the number.
    return OSError(error.errno, f"path: cannot write {os.fspath(path)!r}: {error.strerror or error}")


def sync_directory(path: Path) -> None:
    """Force the names in a directory to disk, on systems where a directory can be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems refuse; the rename itself has happened by then.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Whether `path` bears the temporary name of an `atomic_write`, such as a killed process leaves behind."""
    return _TEMPORARY.fullmatch(path.name) is not None
