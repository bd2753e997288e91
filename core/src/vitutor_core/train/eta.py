"""How long it still takes, from what was done so far. Imports nothing heavy."""

from __future__ import annotations

import time

_LEAST_SHARE = 0.01
"""Of the work, before a time is named."""


class Eta:
    """Estimates the time that is left of ``total`` units, ``done`` of which were there before it began.

    The rate is the slope of a line through all moments at which something got done (least squares). The start is no
    such moment, so what comes before the first unit, such as imports, does not count. ``streams`` work side by side and
    may report at the same moments; so nothing is said until each can have reported twice.
    """

    def __init__(self, total: int, done: int = 0, *, streams: int = 1) -> None:
        self._total, self._begun, self._done, self._streams = total, done, done, streams
        self._start = self._latest = time.monotonic()
        self._points = 0
        self._sums = [0.0] * 4  # of t, n, tt and tn

    def update(self, done: int, total: int | None = None) -> None:
        """Note that ``done`` units are done, of ``total`` where that is known only now."""
        self._total = self._total if total is None else total
        if done <= self._done:
            return
        self._done, self._latest = done, time.monotonic()
        t, n = self._latest - self._start, done - self._begun
        self._points += 1
        self._sums = [old + new for old, new in zip(self._sums, (t, n, t * t, t * n), strict=True)]

    def left_s(self) -> float | None:
        """Return the seconds that are left; None while nobody can know."""
        own = self._done - self._begun
        if self._points < 2 or own < max(2 * self._streams, _LEAST_SHARE * (self._total - self._begun)):
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
