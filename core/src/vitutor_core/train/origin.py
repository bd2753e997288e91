"""What a run's folder says of how the run was made, whether it is unfinished, killed, finished or published."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitutor_core.config import differences
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.train.run_folder import check_same
from vitutor_core.train.session import fingerprint_of

AS_MADE = "a step is replayed as it was made"


@dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    Attributes:
        run: its folder.
        package: the paper's package, or "supervised".
        config: the values of its whole config.
        made_with: the circumstances of each session; see `session.circumstances`.
        identity: what decides its result; None of a published run.
        fingerprint: that of the identity of a published run.

    """

    run: Path
    package: str
    config: dict[str, Any]
    made_with: tuple[dict[str, Any], ...]
    identity: dict[str, Any] | None = None
    fingerprint: str = ""

    @classmethod
    def read(cls, run: Path) -> Origin:
        """Read a folder; raises `CheckpointError` where it is no run, or one of a version that did not say enough."""
        run = run.absolute()
        path = run / "run.json"
        if not path.exists() and RunDir(run).metrics.exists():
            record = RunRecord.read(run)
            then = {"processes": record.processes, "threads": record.threads, "versions": record.versions}
            return cls(run, record.paper, record.config, (then,), fingerprint=record.fingerprint)
        try:
            found = json.loads(path.read_text())
            names = ("processes", "device", "threads", "versions")
            made_with = tuple({name: session[name] for name in names} for session in found["sessions"])
            config = found["sessions"][-1]["config"]
            return cls(run, found["identity"]["method"], config, made_with, identity=found["identity"])
        except FileNotFoundError:
            raise CheckpointError(f"{run}: no run; name a folder with run.json or metrics.json") from None
        except KeyError as error:
            missing = error.args[0]
            raise CheckpointError(
                f"{path}: lacks '{missing}'; runs begun by an older version cannot be replayed"
            ) from None
        except (OSError, ValueError, LookupError, TypeError):
            raise CheckpointError(f"{path}: not readable") from None

    @property
    def processes(self) -> int:
        """Return how many processes trained it; raises `ConfigError` where these changed on the way."""
        counts = sorted({int(made["processes"]) for made in self.made_with})
        if len(counts) > 1:
            raise ConfigError(f"{self.run}: trained by {counts[0]} and by {counts[-1]} processes; {AS_MADE}")
        return counts[0]

    def check(self, identity: dict[str, Any]) -> None:
        """Raise `ConfigError` where ``identity`` is not that of the run."""
        if self.identity is not None:
            check_same(self.run, self.identity, identity, AS_MADE)
        elif self.fingerprint != fingerprint_of(identity):
            raise ConfigError(f"{self.run}: config, images, teachers or first weights are not those of then; {AS_MADE}")

    def recorded(self, epoch: int) -> dict[str, float]:
        """Return the line of curves.csv of an epoch, counted from 0; empty where there is none yet."""
        try:
            with RunDir(self.run).curves.open(newline="") as file:
                line = next(line for line in csv.DictReader(file) if line["epoch"] == str(epoch))
        except (OSError, StopIteration, KeyError):
            return {}
        return {name: float(value) for name, value in line.items() if value}

    def crash_loss(self, step: int, indices: list[int]) -> float | None:
        """Return the non-finite loss that the run noted for this step, if its images were ``indices``."""
        try:
            details = json.loads((self.run / "crash" / f"step-{step:08d}.json").read_text())
            return float(details["last_losses"][-1]) if details["sample_indices"] == indices else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def notes(self, here: Mapping[str, Any]) -> list[str]:
        """Say why the last digits may differ under the circumstances ``here``; nothing where they cannot."""

        def flat(of: Mapping[str, Any]) -> dict[str, Any]:
            # A published run of an older version does not say everything.
            return {**{name: of.get(name) or here[name] for name in ("device", "threads")}, **of["versions"]}

        changes = [change for made in self.made_with for change in differences(flat(made), flat(here))]
        causes = [f"{change} since it was trained" for change in dict.fromkeys(changes)]
        if here["device"] != "cpu":
            causes.append("a GPU adds in any order")
        return [f"{cause}: the last digits may differ" for cause in causes]
