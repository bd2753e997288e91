"""The one record of a run, and where its files lie. Imports nothing heavy."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitutor_core.errors import CheckpointError, VitutorError
from vitutor_core.files import check_replaceable, replace_folder, write_json
from vitutor_core.hub import WEIGHTS, named_file
from vitutor_core.provenance import here

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Record(BaseModel):
    """Base of everything that is read back from a JSON file: frozen, no unknown keys, finite numbers, strict types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, text: str | bytes, *, where: str, error: type[VitutorError], advice: str) -> Self:
        """Validate JSON text; raises ``error`` with every mistake and the ``advice`` in one line."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as problem:
            found = [f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in problem.errors()]
            raise error(f"{where}: {'; '.join(found)}; {advice}") from None

    @classmethod
    def load(cls, path: Path, *, error: type[VitutorError], advice: str) -> Self:
        """Read a file; raises as `parse` does."""
        try:
            text = path.read_bytes()
        except OSError as problem:
            raise error(f"{path.absolute()}: {problem.strerror}; {advice}") from None
        return cls.parse(text, where=str(path.absolute()), error=error, advice=advice)


class Git(Record):
    """The commit that a run was made with; nulls outside a checkout."""

    commit: str | None
    dirty: bool | None

    def __str__(self) -> str:
        if self.commit is None:
            return "no checkout"
        return self.commit[:10] + (" with uncommitted changes" if self.dirty else "")


class Provenance(Record):
    """The code, packages and machine that a process trained with."""

    git: Git
    versions: dict[str, str]
    machine: dict[str, Any]


class Teacher(Record):
    """A frozen teacher: its model, the SHA-256 of its weights, and its accuracy in percent if that is known."""

    name: str
    sha256: str
    top1: float | None


class RunRecord(Record):
    """The content of a ``metrics.json``; what was measured without training has no epochs and no updates.

    ``correct`` says, for an accuracy, which evaluation images were right; see `evaluate.accuracy.pack`. Of a run that
    was resumed, ``earlier`` holds the circumstances of the processes before, where they were not those of the last.
    """

    paper: str
    row: str
    scale: str
    seed: int = Field(ge=0)
    metrics: dict[str, float]
    correct: dict[str, str] = {}
    epochs: int = Field(0, ge=0)
    updates: int = Field(0, ge=0)
    train_images: int = Field(ge=1)
    fraction: float = Field(1.0, gt=0, le=1)
    own_metrics: bool = False
    events: dict[str, int] = {}
    stored_logits: dict[str, float] | None = None
    processes: int = Field(1, ge=1)
    threads: int | None = None
    code: str | None = None
    fingerprint: str
    data_fingerprint: str
    teachers: dict[str, Teacher]
    command: str
    git: Git
    versions: dict[str, str]
    machine: dict[str, Any]
    earlier: list[Provenance] = []
    config: dict[str, Any]
    seconds: float = Field(ge=0)
    """Of all processes that trained the run one after another, without the start of the earlier ones and without steps
    that a kill undid."""

    @property
    def made_with(self) -> list[Provenance]:
        """Return the circumstances of the process that ended the run, then those of the earlier ones."""
        return [Provenance(git=self.git, versions=self.versions, machine=self.machine), *self.earlier]

    @property
    def commits(self) -> str:
        """Return the commit that ended the run, and the others that it was trained with."""
        last, *others = dict.fromkeys(str(process.git) for process in self.made_with)
        return last + (f", before that {', '.join(others)}" if others else "")

    @property
    def evaluated_on(self) -> tuple[Any, ...]:
        """Return what tells which images were evaluated, and in which order."""
        data = self.config.get("data") or {}
        return data.get("source"), data.get("class_list"), self.metrics.get("images")

    def right(self, accuracy: str) -> NDArray[np.bool_] | None:
        """Return which images were right, (images,), for a metric that is an accuracy; None where it is not known.

        Raises `ValueError` where that does not give the accuracy.
        """
        import numpy as np

        if accuracy not in self.correct:
            return None
        images = int(self.metrics[f"{accuracy.removesuffix('top1')}images"])
        packed = np.frombuffer(bytes.fromhex(self.correct[accuracy]), dtype=np.uint8)
        found = np.unpackbits(packed).astype(bool)[:images]
        if len(packed) != -(-images // 8) or not math.isclose(100 * found.sum() / images, self.metrics[accuracy]):
            raise ValueError(f"'correct' does not give the {accuracy} of {self.metrics[accuracy]:g} %")
        return found

    @classmethod
    def of(cls, *, paper: str, **values: Any) -> Self:
        """Make a record of something that ran here; without ``git``, with the code and packages that are here now."""
        now = {} if "git" in values else here(paper)
        return cls.model_validate_json(json.dumps({"paper": paper, **now, **values}))

    @classmethod
    def read(cls, run: Path, package: str | None = None, *, error: type[VitutorError] = CheckpointError) -> Self:
        """Read what a finished run says of itself; raises ``error`` if it is none, or none of ``package``."""
        path = RunDir(run).metrics
        if not path.exists():
            raise error(f"{path.absolute()}: not a finished run; train it to its end first")
        found = cls.load(path, error=error, advice="delete this file, and the command that made it makes it again")
        if package is not None and found.paper != package:
            raise error(f"{run.absolute()}: a run of {found.paper}, not of {package}")
        return found

    def write(self, run: Path) -> None:
        """Write the record of a run into its folder; raises `ResourceError`."""
        write_json(RunDir(run).metrics, self.model_dump(mode="json"))


class RunDir:
    """Where the files of a run lie, be it in training, finished or published."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "student.safetensors"
        self.ema_weights = path / "student_ema.safetensors"
        self.method = path / "method.safetensors"  # of the whole method, where its figures need more than the student
        self.metrics = path / "metrics.json"
        self.curves = path / "curves.csv"
        self.inputs = path / "inputs.json"  # what decided the result of a published run
        self.tracking = path / "tracking"  # what trackers keep; it is not published
        self.pictures = path / "pictures"
        self._results = (self.metrics, self.weights, self.ema_weights, self.method, self.curves, self.inputs)
        self._patterns = (*(file.name for file in self._results), "pictures/*.png")

    def check_target(self) -> None:
        """Raise `ConfigError` if a finished run cannot be published here, since the folder holds something else."""
        check_replaceable(self.path, *self._patterns)

    def publish(self, target: Path) -> None:
        """Copy the results of a finished run to ``target``; raises as `replace_folder` does."""
        with replace_folder(target, *self._patterns) as partial:
            for file in (*self._results, *self.pictures.glob("*.png")):
                if file.exists():
                    copied = partial / file.relative_to(self.path)
                    copied.parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, copied)


def weights_file(path: Path) -> Path:
    """Return the weights of a run folder, or the file that ``path`` is itself.

    ``path`` may also be a name with ``local-dir:`` or ``hf-hub:`` in front; see `hub`.
    """
    named = named_file(str(path), WEIGHTS)
    if named is not None:
        return named
    return RunDir(path).weights if path.is_dir() else path
