"""Running commands in this process, and what all of them do with bad input."""

import shlex

from ntkit.cli import main


def status(name, *arguments) -> int:
    """Run `ntkit name …`; give its exit status."""
    try:
        main([name, *map(str, arguments)])
    except SystemExit as exit_:
        return exit_.code
    return 0


def check_one_line(name, options: str, message: str, capsys) -> None:
    """Require exit status 2, and of the output one line on stderr that begins with the message."""
    out = () if "--out" in options else ("--out", "x")
    assert status(name, *shlex.split(options), *out) == 2
    output, errors = capsys.readouterr()
    assert errors.count("\n") == 1
    assert errors.startswith(f"ntkit {name}: {message}")
    assert not output
