"""Run the test suite that neural-tangents 0.6.5 was published with, as repaired by ntkit.

    python tests/upstream/run.py [--budget SECONDS] [--files NAME ...] [-- PYTEST_ARGUMENT ...]

Each file of the suite runs in a process of its own, which imports ntkit first. The exit status is 1 if a test failed.
"""

import argparse
import collections
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

RELEASE = "neural-tangents-0.6.5"
OUTCOME = re.compile(r"^tests/\S+::\S+ (PASSED|FAILED|SKIPPED|ERROR)", re.MULTILINE)

# `experimental` needs TensorFlow models, and the others download data sets.
LEFT_OUT = ("experimental/", "function_space_test", "imdb_test", "infinite_fcn_test", "weight_space_test")


def obtain(cache: Path) -> Path:
    """Download and unpack the release, unless it is there already."""
    source = cache / RELEASE
    if not source.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        requirement = "==".join(RELEASE.rsplit("-", 1))
        download = ["download", "--no-deps", "--no-binary", "neural-tangents", "--dest", str(cache), requirement]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        (archive,) = cache.glob("neural?tangents-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(cache, filter="data")
    return source


def run(source: Path, test: Path, budget: float, arguments: list[str]) -> collections.Counter[str]:
    """Run one file, with what it printed beside it, and count the outcomes."""
    # As a plugin it is imported before any test and after pytest has installed its own import hook.
    command = [sys.executable, "-m", "pytest", "-p", "upstream_views", "-v", "--tb=short", "-p", "no:cacheprovider"]
    log = source / (".".join(test.relative_to(source).with_suffix("").parts) + ".log")
    with log.open("w") as output:
        try:
            status = subprocess.run(
                [*command, str(test.relative_to(source)), *arguments],
                cwd=source,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(Path(__file__).parent)])},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=budget,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    counts = collections.Counter(OUTCOME.findall(log.read_text()))
    counts["UNFINISHED"] = status is None
    counts["ERROR"] += status not in (0, 1, None) and not counts["FAILED"]
    return counts


def main() -> int:
    """Run what the command line asks for and print one line per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ntkit" / "upstream"
    parser.add_argument("--cache", type=Path, default=cache, help="where the release is kept (%(default)s)")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for each file (%(default)s)")
    parser.add_argument("--files", nargs="*", default=[""], help="only files whose path contains one of these")
    parser.add_argument("arguments", nargs="*", help="passed on to pytest, after --")
    options = parser.parse_args()

    source = obtain(options.cache.resolve())
    total: collections.Counter[str] = collections.Counter()
    for test in sorted((source / "tests").rglob("*_test.py")):
        name = test.relative_to(source / "tests").as_posix()
        asked_for = any(part and part in name for part in options.files)
        if not asked_for and (options.files != [""] or name.startswith(LEFT_OUT)):
            continue
        start = time.monotonic()
        counts = run(source, test, options.budget, options.arguments)
        total += counts
        print(f"{name:32} {time.monotonic() - start:6.0f} s  {describe(counts)}", flush=True)
    print(f"{'total':32} {'':6}    {describe(total)}")
    return 1 if total["FAILED"] or total["ERROR"] else 0


def describe(counts: collections.Counter[str]) -> str:
    """Write the counts that aren't zero in words."""
    return ", ".join(f"{count} {outcome.lower()}" for outcome, count in sorted(counts.items()) if count) or "no tests"


if __name__ == "__main__":
    sys.exit(main())
