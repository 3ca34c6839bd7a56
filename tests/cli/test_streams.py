"""What becomes of the work when its output cannot be shown: nothing."""

import os
import shlex
import subprocess
import sys

import pytest

import ntkit.cli.streams
import ntkit_command

# The module alone, since importing the whole package takes a second.
SHOW = f"""
import runpy, sys
with runpy.run_path({ntkit.cli.streams.__file__!r})["unfailing_streams"]():
    print("the table: 94.2 \\xb1 1.3 " + "." * 10_000)
    print("a warning: \\u03c4", file=sys.stderr)
    sys.stdout.flush()
    print("and the end")
open("done", "w").close()
"""
TABLE = f"the table: 94.2 ± 1.3 {'.' * 10_000}\nand the end\n"


def run(redirections, code, cwd, **environment):
    """Give status, stdout and stderr of Python code, whose streams the shell redirects."""
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {redirections}"
    child = subprocess.run(
        ["bash", "-c", command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, check=False
    )
    return child.returncode, child.stdout.decode(), child.stderr.decode()


@pytest.mark.parametrize(
    ("redirections", "output", "errors"),
    [
        ("", TABLE, "a warning: τ\n"),
        (">&-", "", "a warning: τ\n"),
        ("2>&-", TABLE, ""),
        (">&- 2>&-", "", ""),
        ("2>/dev/full", TABLE, ""),
        (">/dev/full 2>/dev/full", "", ""),
        ("| true; exit ${PIPESTATUS[0]}", "", "a warning: τ\n"),
    ],
)
def test_streams_that_take_nothing(redirections, output, errors, tmp_path):
    assert run(redirections, SHOW, tmp_path, PYTHONUTF8="1") == (0, output, errors)
    assert (tmp_path / "done").exists()


def test_a_full_disk_under_stdout_shows_it_on_stderr(tmp_path):
    status, _, errors = run(">/dev/full", SHOW, tmp_path, PYTHONUTF8="1")
    assert status == 0
    assert "stdout: No space left on device; what it should show:\n" in errors
    assert "the table: 94.2 ± 1.3 ." in errors
    assert "and the end\n" in errors


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_locale_without_the_sign(locale, tmp_path):
    status, output, errors = run("", SHOW, tmp_path, PYTHONCOERCECLOCALE="0", **locale)
    assert status == 0
    assert output.startswith(r"the table: 94.2 \xb1 1.3 .")
    assert errors == "a warning: \\u03c4\n"


def test_streams_of_a_program_stay(capsys):
    before = sys.stdout, sys.stderr
    with ntkit.cli.streams.unfailing_streams():
        assert (sys.stdout, sys.stderr) == before
        print("table")
    assert capsys.readouterr().out == "table\n"


def test_what_is_printed_under_the_number_of_a_closed_stream_goes_into_no_file(tmp_path):
    (tmp_path / "ntkit").mkdir()
    (tmp_path / "ntkit" / "__init__.py").touch()
    (tmp_path / "ntkit" / "cli.py").write_text(
        "import os\n"
        "def main():\n"
        "    with open('result', 'w') as file:\n"
        "        file.write('whole')\n"
        "        for number in (0, 1, 2):\n"
        "            os.write(number, b'a message of a C++ library')\n"
    )
    path = {"PYTHONPATH": os.path.dirname(ntkit_command.__file__)}
    status, *_ = run("<&- >&- 2>&-", "import ntkit_command; ntkit_command.main()", tmp_path, **path)
    assert status == 0
    assert (tmp_path / "result").read_text() == "whole"


@pytest.mark.parametrize("redirections", ["<&- >&- 2>&-", "| true; exit ${PIPESTATUS[0]}", ">/dev/full 2>/dev/full"])
def test_the_command(redirections, tmp_path):
    path = {"PYTHONPATH": os.path.dirname(ntkit_command.__file__), "PYTHONIOENCODING": "ascii"}
    code = "import sys, ntkit_command; sys.argv = ['ntkit', 'info']; ntkit_command.main()"
    assert run(redirections, code, tmp_path, **path)[0] == 0
