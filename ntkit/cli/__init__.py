"""The command line: `ntkit distill`, `label-solve`, `evaluate` and `info`."""

from ntkit.cli.main import main

__all__ = ["main"]
