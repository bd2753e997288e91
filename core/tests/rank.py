"""One of two processes of a tiny run; the second fails. Arguments: rank, port, folder, how and when to fail."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from core.tests.train_samples import run
from vitutor_core.errors import DataError
from vitutor_core.terminal import exit_after
from vitutor_core.train import session
from vitutor_core.train.update import Updater

ERRORS = {"bad data": DataError("bad image"), "bug": ValueError("bug"), "full": OSError(28, "No space left on device")}


def fail(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ERRORS[how]


def main(rank: str, port: str, folder: str, how: str, moment: str) -> None:
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, (rank, rank, "2", "127.0.0.1", port), strict=True))
    update = Updater.update

    def failing(updater: Updater, micro_batches: Any, clock: Any) -> None:
        if clock.step == 3:
            fail(how)
        update(updater, micro_batches, clock)

    if rank == "1" and moment == "step":
        Updater.update = failing
    elif rank == "1":
        session.build_data = lambda *_, **__: fail(how)
    exit_after(lambda: run(Path(folder)))
