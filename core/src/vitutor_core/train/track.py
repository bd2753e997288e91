"""What a run reports while it trains: to trackers found by entry point, and to a caller's own functions.

A tracker is a class of the entry-point group ``vitutor.trackers``, named in ``runtime.track``:

    class Mine:
        package = "what it imports"            # optional: its absence is said before the run

        def __init__(self, facts: Facts) -> None: ...
        def log(self, step: int, values: dict[str, float]) -> None: ...
        def close(self) -> None: ...
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vitutor_core.config import nearest
from vitutor_core.errors import ConfigError, first_line

GROUP = "vitutor.trackers"
Callback = Callable[[int, dict[str, float]], object]
"""Gets the number of updates that are done, and values by name."""


@dataclass(frozen=True)
class Facts:
    """What a tracker may know: a folder to keep files in, a name for the run, its config, where it goes on from."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    first_step: int


class Tracker(Protocol):
    """Where values go. Whatever it raises is said once, and it is not asked again."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take what was read after ``step`` updates: each log interval, and once more after an epoch."""

    def close(self) -> None:
        """Finish; also called where the run fails."""


@dataclass(frozen=True)
class _Function:
    call: Callback

    def log(self, step: int, values: dict[str, float]) -> None:
        self.call(step, values)

    def close(self) -> None:
        pass


@dataclass
class Tracking:
    """The trackers of one run; on other processes than the first there are none."""

    classes: Mapping[str, Callable[[Facts], Tracker]]
    callbacks: Sequence[Callback] = ()
    _open: dict[str, Tracker] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], callbacks: Sequence[Callback] = ()) -> Tracking:
        """Look trackers up; raises `ConfigError` for one that is not installed, or whose package is not."""
        found = {entry.name: entry for entry in entry_points(group=GROUP)}
        classes: dict[str, Any] = {}
        for name in names:
            if name not in found:
                hint = nearest(name, found) or f"; there are {', '.join(sorted(found)) or 'none'}"
                raise ConfigError(f"runtime.track: no tracker '{name}' is installed{hint}")
            classes[name] = found[name].load()
            package = getattr(classes[name], "package", None)
            if package is not None and find_spec(package) is None:
                raise ConfigError(f"runtime.track: {name} needs the package {package}; pip install {package}")
        return cls(classes, callbacks)

    def start(self, facts: Facts, *, enabled: bool) -> None:
        """Open the trackers, on the first process alone."""
        if not enabled:
            return
        for number, callback in enumerate(self.callbacks, start=1):
            self._open[f"callback {number}"] = _Function(callback)
        for name, make in self.classes.items():
            try:
                self._open[name] = make(facts)
            except Exception as error:  # whatever a service does
                _give_up(name, error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass values on."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(step, dict(values))
            except Exception as error:  # whatever a service does
                del self._open[name]
                _give_up(name, error)

    def close(self) -> None:
        """Finish all; may be called again."""
        while self._open:
            name, tracker = self._open.popitem()
            try:
                tracker.close()
            except Exception as error:  # whatever a service does
                _give_up(name, error)


def _give_up(name: str, error: Exception) -> None:
    reason = first_line(error)
    warnings.warn(f"tracker {name}: {reason}; the run goes on without it", stacklevel=3)
