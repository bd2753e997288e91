"""The errors a user can cause. Each is one line (what, where, what to do) and has its own exit code."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class VitutorError(Exception):
    """Base of every error that is shown as one line, without a traceback (``--debug`` shows it)."""

    exit_code = 1


class ConfigError(VitutorError):
    """A config, an option or a combination of models and data that cannot work."""

    exit_code = 2


class DataError(VitutorError):
    """Data that is missing, corrupt or not what the config says."""

    exit_code = 3


class CheckpointError(VitutorError):
    """A checkpoint or weights file that is missing, damaged or of another run."""

    exit_code = 4


class NonFiniteError(VitutorError):
    """The loss or the gradient norm became NaN or infinite."""

    exit_code = 5


class ResourceError(VitutorError):
    """Out of memory, out of disk, or a folder that cannot be written."""

    exit_code = 6


class BusyError(VitutorError):
    """The run folder is in use by another process."""

    exit_code = 7


class InterruptedRun(VitutorError):
    """The run was asked to stop and has saved a checkpoint; ``exit_code`` is 128 plus the signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where there is none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


@contextmanager
def named(who: str, remedy: str = "") -> Iterator[None]:
    """Put ``who`` before the message of an error, and after one that another config avoids how to set it."""
    try:
        yield
    except VitutorError as error:
        end = f"; {remedy}" if remedy and isinstance(error, ConfigError | ResourceError) else ""
        error.args = (f"{who}: {error}{end}",)
        raise


@contextmanager
def goes_on() -> Iterator[None]:
    """Say of Ctrl-C in a command that keeps what it has done, as a decorator or around a block, that it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRun("interrupted; run it again to go on", signal.SIGINT) from None


def are_files_exhausted(error: BaseException) -> bool:
    """Return whether this process or the system has too many open files, which says nothing about the file itself."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
