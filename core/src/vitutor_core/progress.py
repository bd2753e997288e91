"""Progress of long work: a bar with ETA on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

QUIET = "VITUTOR_QUIET"
"""Environment variable that silences progress, set for the seeds of a row, whose parent shows one bar for all."""


def is_silent() -> bool:
    """Return whether another process speaks to the user: the parent of a row's seeds, or the first of several."""
    return os.environ.get("RANK", "0") != "0" or os.environ.get(QUIET) == "1"


_LOG_EVERY_S = 15.0
_SHOW_EVERY_S = 5.0
_LEAST_SHARE = 0.01
"""Of the work, before a time is named."""
_ENOUGH = 0.25
"""Of the work, after which one is, however many units a report has."""


class Eta:
    """Estimates the time that is left of ``total`` units, ``done`` of which were there before it began.

    The rate is the slope of a line through all moments at which something got done (least squares). The start is no
    such moment, so what comes before the first unit, such as imports, does not count. ``streams`` work side by side and
    may report at about the same moments, several units at once; so nothing is said until each can have reported twice.
    """

    def __init__(self, total: int, done: int = 0, *, streams: int = 1) -> None:
        self._total, self._begun, self._done, self._streams = total, done, done, streams
        self._start = self._latest = time.monotonic()
        self._points = 0
        self._step = total  # the fewest units of a report
        self._sums = [0.0] * 4  # of t, n, tt and tn

    def update(self, done: int, total: int | None = None) -> None:
        """Note that ``done`` units are done, of ``total`` where that is known only now."""
        self._total = self._total if total is None else total
        if done <= self._done:
            return
        self._step = min(self._step, done - self._done)
        self._done, self._latest = done, time.monotonic()
        t, n = self._latest - self._start, done - self._begun
        self._points += 1
        self._sums = [old + new for old, new in zip(self._sums, (t, n, t * t, t * n), strict=True)]

    def left_s(self) -> float | None:
        """Return the seconds that are left; None while nobody can know."""
        own, whole = self._done - self._begun, self._total - self._begun
        twice = min(2 * self._streams * self._step, max(2 * self._streams, _ENOUGH * whole))
        if self._points < 2 or own < max(twice, _LEAST_SHARE * whole):
            return None
        t, n, tt, tn = self._sums
        spread = self._points * tt - t * t
        rate = (self._points * tn - t * n) / spread if spread > 0 else 0.0
        if rate <= 0:
            return None
        return max((self._total - self._done) / rate - (time.monotonic() - self._latest), 0.0)

    def __str__(self) -> str:
        left = self.left_s()
        return "estimating" if left is None else f"{duration(left)} left"


def duration(seconds: float) -> str:
    """Write a time with its two largest units: 45 s, 3 min 20 s, 2 h 5 min, 1 d 7 h."""
    whole = round(seconds)
    for large, small, unit, name in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"


class RunProgress:
    """Shows ``done`` of ``total`` steps, and what is said with `say`. Durations come from the monotonic clock.

    Where another process speaks to the user (`is_silent`), nothing is shown.
    ``streams`` is how many processes or threads do the steps, side by side; see `Eta`. Where they may not end together,
    ``in_turn`` is how many steps come one after another, on the longest way to the end; time is told by these alone.
    With ``patience_s`` the bar comes only after so many seconds, and goes when the work is done.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        streams: int = 1,
        in_turn: int | None = None,
        enabled: bool = True,
        patience_s: float = 0.0,
    ) -> None:
        self._title, self._total, self._in_turn = title, total, in_turn
        self._eta = Eta(total, done, streams=streams) if in_turn is None else Eta(in_turn)
        self._enabled = enabled = enabled and not is_silent()
        self._console = Console(stderr=True, soft_wrap=True)
        self._live = enabled and sys.stderr.isatty()
        self._last_line = self._last_update = time.monotonic()
        self._first_shown = self._last_line + patience_s
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=patience_s > 0,
            disable=not self._live,
        )
        self._task: TaskID = self._bar.add_task(title, total=total, completed=done, left="", note="")

    def __enter__(self) -> Self:
        self._show_if_due()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def is_due(self) -> bool:
        """Return whether nothing was shown for a while, as when a single step takes seconds."""
        return time.monotonic() - self._last_update >= _SHOW_EVERY_S

    def update(self, done: int, note: str, *, in_turn: int = 0) -> None:
        """Show that ``done`` steps are done and, where it counts, that ``in_turn`` are left one after another.

        A log gets at most one line every 15 seconds.
        """
        if self._in_turn is None:
            self._eta.update(done, self._total)
        else:
            self._eta.update(self._in_turn - in_turn)
        self._show_if_due()
        self._bar.update(self._task, completed=done, left=str(self._eta), note=note)
        now = self._last_update = time.monotonic()
        if not self._live and now - self._last_line >= _LOG_EVERY_S:
            self._last_line = now
            self.say(", ".join(filter(None, (f"{self._title}: {done}/{self._total}", str(self._eta), note))))

    def _show_if_due(self) -> None:
        if not self._bar.live.is_started and time.monotonic() >= self._first_shown:
            self._bar.start()

    def of(self, done: int, total: int) -> None:
        """Show ``done`` of ``total`` where the total is known only now."""
        if total != self._total:
            self._total = total
            self._bar.update(self._task, total=total)
        self.update(done, "")

    def epoch(self, text: str, *, last: bool) -> None:
        """Say how an epoch went; a log gets the last one and those that come at least 15 seconds apart."""
        now = time.monotonic()
        if self._live or last or now - self._last_line >= _LOG_EVERY_S:
            self._last_line = now
            self.say(text)

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        if self._enabled:
            self._console.print(text, highlight=False, markup=False)
