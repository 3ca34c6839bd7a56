"""Long runs: a directory that can be killed and resumed, progress, interruption and a report to look at."""

from ntkit.runs.bars import Progress, progress
from ntkit.runs.directory import Run
from ntkit.runs.files import atomic_write
from ntkit.runs.interruption import Interrupted, Interruptible, Interruption, uninterrupted
from ntkit.runs.loop import columns, iterate
from ntkit.runs.method import Method
from ntkit.runs.report import write_report
from ntkit.runs.result import Result, Share
from ntkit.runs.session import Session

__all__ = [
    "Interrupted",
    "Interruptible",
    "Interruption",
    "Method",
    "Progress",
    "Result",
    "Run",
    "Session",
    "Share",
    "atomic_write",
    "columns",
    "iterate",
    "progress",
    "uninterrupted",
    "write_report",
]
