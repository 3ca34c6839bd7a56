"""Long runs: a directory that can be killed and resumed, progress, interruption and a report to look at."""

from ntkit.runs.directory import Run
from ntkit.runs.files import atomic_write
from ntkit.runs.interruption import Interrupted, Interruptible, Interruption, uninterrupted
from ntkit.runs.loop import Loop, columns
from ntkit.runs.progress import Progress, progress
from ntkit.runs.report import write_report

__all__ = [
    "Interrupted",
    "Interruptible",
    "Interruption",
    "Loop",
    "Progress",
    "Run",
    "atomic_write",
    "columns",
    "progress",
    "uninterrupted",
    "write_report",
]
