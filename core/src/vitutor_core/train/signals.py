"""Stop politely: the first SIGTERM, SIGINT or SIGUSR1 asks the loop to save and end, a second one ends at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is what schedulers are asked to send before the time of a job is over."""


class StopRequest:
    """Context manager that catches the stop signals and sees a file called ``STOP`` in the run folder."""

    def __init__(self, run_folder: Path) -> None:
        self._file = run_folder / "STOP"
        self.signal_number: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def look_for_file(self) -> None:
        """Treat a STOP file as SIGTERM and remove it; cheap enough for once in a log interval."""
        if self.signal_number is None and self._file.exists():
            self._file.unlink(missing_ok=True)
            self.signal_number = signal.SIGTERM

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            for child in multiprocessing.active_children():  # workers are deaf to signals that ask
                child.kill()
            os._exit(128 + number)
        self.signal_number = number
