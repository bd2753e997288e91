"""The folder of one run: its lock, who it belongs to, its checkpoints, curves and results.

``run.json`` explains the run without the shell history; ``checkpoints/`` holds what a resumption needs;
``curves.csv`` has a line per epoch, ``pictures/`` what the method shows; ``student.safetensors`` and ``metrics.json``
are written when the run is done.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import socket
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image
from torch import Tensor

from vitutor_core.config import differences, dotted
from vitutor_core.errors import BusyError, CheckpointError, ConfigError, NonFiniteError, ResourceError
from vitutor_core.files import atomic, discard, discard_partial, write_json, write_text
from vitutor_core.runs import RunDir
from vitutor_core.train import checkpoint

_LOCK_WAIT_S = 30.0
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")
"""Of which the beginning is enough to see that it is another."""


class RunFolder:
    """A locked run folder. Use it as a context manager.

    A run that fails before its first checkpoint leaves no claim on the folder, and nothing of a folder that it made;
    of one whose loss is not finite, what `train.replay` needs stays.
    Of several processes of one run only the ``owner`` locks and writes; the others read.
    Raises `ResourceError` if the folder cannot be written and `BusyError` if another process holds it.
    """

    def __init__(self, path: Path, *, owner: bool = True) -> None:
        self.path = path.absolute()
        self.files = RunDir(self.path)
        self.checkpoints = self.path / "checkpoints"
        self._created = [folder for folder in (self.path, *self.path.parents) if owner and not folder.exists()]
        self._claimed = False
        self._lock = self._take_lock() if owner else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        if kind is not None and not _has_work(self.path):
            ours = ["run.json"] if self._claimed and not isinstance(error, NonFiniteError) else []
            ours += [".lock", "curves.csv", "pictures"] if self._created else []
            for name in ours:
                discard(self.path / name)
            discard_partial(self.checkpoints)
            with contextlib.suppress(OSError):  # somebody has put something there, or a crash is described there
                for folder in (self.checkpoints, *self._created):
                    if folder.exists():
                        folder.rmdir()
        os.close(self._lock)

    @property
    def is_finished(self) -> bool:
        return self.files.metrics.exists()

    def claim(self, identity: dict[str, Any], details: dict[str, Any]) -> list[dict[str, Any]]:
        """Record whose run this is, or check that it is the same run as before, if there is anything of that.

        ``identity`` decides (method, config, data, teachers); ``details`` (versions, machine, command) is recorded,
        and a warning says which versions, or what number of processes, are not those of the session before. Returns the
        details of the sessions whose work goes on.
        Raises `CheckpointError` for another method and `ConfigError`, with the differences, for another config.
        """
        if self._lock is None:
            return []
        path = self.path / "run.json"
        sessions: list[dict[str, Any]] = []
        if path.exists():
            try:
                before = json.loads(path.read_text())
                sessions = [*before["sessions"]]
                changed = differences(_circumstances(sessions[-1]), _circumstances(details))
                if _has_work(self.path):
                    check_same(self.path, before["identity"], identity)
                else:
                    sessions, changed = [], []
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                raise CheckpointError(f"{path}: not readable; choose another --out") from None
            if changed and not self.is_finished:
                warnings.warn(f"{self.path}: resumed with {'; '.join(changed)}; the result may differ", stacklevel=2)
        discard_partial(self.path)
        discard_partial(self.checkpoints)
        self._claimed = True
        if not self.is_finished:
            write_json(path, {"identity": identity, "sessions": [*sessions, details]})
        return sessions

    def latest_checkpoint(self, identity: dict[str, Any]) -> checkpoint.Checkpoint | None:
        """Return the checkpoint to resume from, after checking that it belongs to this run."""
        found = checkpoint.latest(self.checkpoints)
        if found is not None:
            check_same(self.path, found.identity, identity)
        return found

    def warn_if_short(self, tensors: int) -> None:
        """Warn, before anything is trained, if the disk has no room for two checkpoints of so many bytes."""
        if self._lock is not None:
            checkpoint.warn_if_short(self.checkpoints, tensors)

    def write_curves(self, lines: list[dict[str, Any]]) -> None:
        """Write all curve lines; columns are the union of theirs, in order of appearance."""
        columns = list(dict.fromkeys(name for line in lines for name in line))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_text(self.files.curves, text.getvalue())

    def write_crash(self, step: int, details: dict[str, Any]) -> None:
        """Write what is known of a step that failed; every process does, into a file of its own."""
        process = "" if self._lock is not None else f"-process-{os.environ.get('RANK', os.getpid())}"
        write_json(self.path / "crash" / f"step-{step:08d}{process}.json", details)

    def keep_pictures(self, epoch: int, pictures: dict[str, Tensor]) -> None:
        """Write pictures, (3, H, W) in [0, 1], as ``pictures/<name>-<epoch>.png``; the owner does."""
        if self._lock is None:
            return
        for name, picture in pictures.items():
            pixels = picture.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
            with atomic(self.files.pictures / f"{name}-{epoch:04d}.png") as partial:
                Image.fromarray(pixels).save(partial, "PNG")

    def _take_lock(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".probe"
            probe.write_text("")
            probe.unlink()
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._not_writable(error) from None
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(descriptor):
            holder = _read_holder(self.path / ".lock")
            # Workers of a killed run inherit its lock and outlive it by some seconds: wait for those only.
            if time.monotonic() > deadline or _is_alive(holder):
                os.close(descriptor)
                raise BusyError(f"{self.path}: in use by {_describe(holder)}; wait for it or choose another --out")
            time.sleep(0.2)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat("T", "seconds"),
        }
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise self._not_writable(error) from None
        return descriptor

    def _not_writable(self, error: OSError) -> ResourceError:
        return ResourceError(f"{self.path}: cannot write there ({error.strerror}); choose another --out")


def refuse_another(folder: Path, identity: dict[str, Any]) -> None:
    """Raise as `RunFolder.claim` would, if the run in ``folder`` is another by what is known already.

    ``identity`` is that part of an identity. A folder that cannot be read is left to `RunFolder`.
    """
    if not _has_work(folder):
        return
    try:
        before = json.loads((folder / "run.json").read_text())["identity"]
        known = {name: before[name] for name in identity}
        known["config"] = {**before["config"]}
    except (OSError, ValueError, LookupError, TypeError):
        return
    check_same(folder.absolute(), known, identity)


def _has_work(folder: Path) -> bool:
    return RunDir(folder).metrics.exists() or bool(checkpoint.folders(folder / "checkpoints"))


def check_same(path: Path, old: dict[str, Any], new: dict[str, Any], advice: str = "choose another --out") -> None:
    """Raise `CheckpointError` where two identities are of different methods, `ConfigError` where they differ else."""
    if old["method"] != new["method"]:
        raise CheckpointError(f"{path}: this folder holds a run of {old['method']}, not of {new['method']}; {advice}")
    fields = ({**identity, **identity.get("config", {}), "config": None} for identity in (old, new))
    changed = differences(*map(dotted, fields))
    if changed:
        shown = _HASH.sub(r"\1...", "; ".join(changed))
        raise ConfigError(f"{path}: this folder holds another run ({shown}); {advice}")


def _circumstances(session: dict[str, Any]) -> dict[str, Any]:
    """Return what a session ran with that can change the last digits of a result."""
    return {"processes": session.get("processes", 1), **session.get("versions", {})}


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname() or "pid" not in holder:
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _describe(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
