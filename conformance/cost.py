"""What a command costs."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence
from typing import Any


def cpu_seconds(command: Sequence[str], **options: Any) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run a command and return its CPU time, which, unlike the clock, is indifferent to other work on the machine."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    return used() - before, done
