"""Training that is killed or stopped at random times, again and again, must end as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conformance.suite import assert_equal_weights
from vitutor_core.errors import VitutorError

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Killed(NamedTuple):
    """Of ``injections`` signals that reached a run, ``survived`` cost its result no bit."""

    injections: int
    survived: int


def kill_often(train: Callable[[Path], object], folder: Path, *, kills: int, seed: int = 0) -> Killed:
    """Call ``train(out)`` in processes that get a signal at a random time, until ``kills`` signals have hit one.

    Each run is started again until it ends by itself, and its weights are compared with those of a run that was left
    alone. All signals of a run that ends otherwise, or fails, count as lost.
    """
    started = time.monotonic()
    assert _wait(_start(train, folder / "whole")) == 0
    seconds = time.monotonic() - started
    random = np.random.default_rng(seed)
    injections = survived = 0
    while injections < kills:
        out = folder / f"run-{injections}"
        hits, code, number = 0, -signal.SIGKILL, signal.SIGKILL
        while code in (-number, 128 + number):
            process = _start(train, out)
            # Longer each time, so that a run gets somewhere also where the machine has become slower.
            time.sleep(random.uniform(0, seconds * 1.1**hits))
            number = SIGNALS[random.integers(len(SIGNALS))]
            os.killpg(process, number)
            code = _wait(process)
            hits += code != 0
        injections += hits
        survived += hits if code == 0 and _is_equal(folder / "whole", out) else 0
    return Killed(injections, survived)


def _is_equal(whole: Path, out: Path) -> bool:
    try:
        assert_equal_weights(whole, out)
    except (AssertionError, OSError):
        return False
    return not list(out.rglob("*.tmp*"))


def _start(train: Callable[[Path], object], out: Path) -> int:
    """Fork a process, with a group of its own, that trains into ``out``; this one has loaded all packages already."""
    process = os.fork()
    if process:
        os.setpgid(process, process)
        return process
    os.setpgid(0, 0)
    code = 1
    try:
        train(out)
        code = 0
    except KeyboardInterrupt:  # before the run listens
        code = 128 + signal.SIGINT
    except VitutorError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def _wait(process: int) -> int:
    """Return the exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
