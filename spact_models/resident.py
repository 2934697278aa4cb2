"""What this process has of the machine: its cores, and how much memory it has needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cores() -> int:
    """Those this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_mb() -> float:
    """This process' largest resident memory so far, in MB of 2^20 bytes; 0 on Windows.

    On Linux from /proc: ``getrusage`` there also tells what the parent held when it started this process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):
        pass
    if sys.platform == "win32":  # has no such counter in the standard library
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, others KiB
