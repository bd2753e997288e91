"""Averages of the losses over an epoch, kept on the device until they are read."""

from __future__ import annotations

import time
from collections import deque

import torch
from torch import Tensor

from vitutor_core.distributed import Processes, sum_over_processes
from vitutor_core.train.method import StepOutput


class Meter:
    """Sums loss and parts over the images of an epoch; survives a resumption through `sums`.

    Also measures throughput and the share of time spent waiting for data, by the monotonic clock.
    """

    def __init__(self, processes: Processes, sums: dict[str, float]) -> None:
        self._processes = processes
        device = processes.device
        if not processes.is_main:
            sums = dict.fromkeys(sums, 0.0)  # what was saved is the sum over all processes
        self._sums = {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in sums.items()}
        self.recent: deque[Tensor] = deque(maxlen=50)
        self.latest = float("nan")
        """The loss that was read last."""
        self._restart_clock()

    def add(self, output: StepOutput, images: int) -> None:
        """Add one micro-batch."""
        loss = output.loss.detach()
        self.recent.append(loss)
        for name, value in {"train_loss": loss, **output.parts, "images": None}.items():
            weighted = images if value is None else value.detach().double() * images
            if name in self._sums:
                self._sums[name] += weighted
            else:
                self._sums[name] = loss.new_zeros((), dtype=torch.float64) + weighted
        self._images += images

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for a batch."""
        self._waited_s += seconds

    def read(self) -> None:
        """Read the latest loss; the one host sync of a log interval."""
        if self.recent:
            self.latest = float(self.recent[-1])

    def note(self) -> str:
        """Describe the latest loss and the throughput in a few words."""
        return f"loss {self.latest:.3f}, {self._images_per_s():.0f} images/s"

    def sums(self) -> dict[str, float]:
        """Return the sums so far, of all processes, to be saved."""
        names = sorted(self._sums)
        if not names:
            return {}
        total = sum_over_processes(torch.stack([self._sums[name] for name in names]))
        return dict(zip(names, total.tolist(), strict=True))

    def epoch_line(self) -> dict[str, float]:
        """Return the epoch's means, throughput and data wait, and start anew."""
        sums = self.sums()
        images = sums.pop("images", 0.0)
        line = {name: value / images for name, value in sums.items()}
        elapsed = max(time.monotonic() - self._start, 1e-9)
        line |= {"images_per_s": self._images_per_s(), "data_wait": self._waited_s / elapsed}
        self._sums = {}
        self._restart_clock()
        return {"train_loss": line.pop("train_loss"), **line}

    def _images_per_s(self) -> float:
        return self._images * self._processes.world_size / max(time.monotonic() - self._start, 1e-9)

    def _restart_clock(self) -> None:
        self._start = time.monotonic()
        self._images = 0
        self._waited_s = 0.0
