"""Generate the batches of a set of images, in any number of processes, and put them together.

A work folder holds ``train/<class>/<batch>-<number>.png`` and, for every finished batch, ``batches/<batch>.json``,
which is written last. A batch is a function of config, teacher and its index, so one that was interrupted is made
again, and several processes need not know of each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dearkd.generation.batch import GeneratedBatch, generate_batch
from dearkd.generation.config import GenerationConfig
from dearkd.generation.teacher import open_competitor, open_teacher
from vitutor_core.config import fingerprinted_fields
from vitutor_core.distributed import choose_device
from vitutor_core.errors import ConfigError, DataError, ResourceError
from vitutor_core.files import check_replaceable, discard, file_sha256, replace_folder, write_json, write_text
from vitutor_core.progress import RunProgress

MANIFEST = "manifest.json"
"""Every image with target, teacher's prediction, confidence and SHA-256; the same for the same images."""
RECORD = "generation.json"
"""What made them: config, networks, versions, command."""
_OWN = (RECORD, MANIFEST, "train/*/*.png")


class Generation:
    """A set of images in the making: its networks, its identity and its work folder below ``work``.

    Raises `ConfigError` for networks that do not fit the config.
    """

    def __init__(self, config: GenerationConfig, name: str, work: Path) -> None:
        if config.runtime.threads is not None:
            torch.set_num_threads(config.runtime.threads)
        self.config = config
        self._device = choose_device(config.runtime.device)
        self._teacher, self._info = open_teacher(config, self._device)
        self._competitor = None
        networks = {"teacher": self._teacher.facts}
        if config.competitor is not None:
            student, self._competitor = open_competitor(config.competitor, self._info, self._device)
            networks["competitor"] = student.facts
        self.networks = networks
        _check_names(self._info.class_names)
        identity = {
            "config": fingerprinted_fields(config),
            "networks": {role: facts["sha256"] for role, facts in networks.items()},
        }
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = work / f"{name}-{self.fingerprint[:12]}"

    def missing(self, shard: tuple[int, int] = (1, 1)) -> list[int]:
        """Return the batches of shard ``i`` of ``n`` that are not finished: those with index = i - 1 modulo n."""
        if (self.folder / MANIFEST).exists():
            return []
        own = range(shard[0] - 1, self.config.num_batches, shard[1])
        return [index for index in own if self._batch(index) is None]

    def run(self, batches: Sequence[int]) -> None:
        """Generate batches; raises `ResourceError` if they cannot be written."""
        each, noted = self.config.iterations, time.monotonic()
        with RunProgress(f"generating, {self.config.num_images} images in all", len(batches) * each) as progress:
            for number, index in enumerate(batches):

                def tick(done: int, figures: dict[str, float], number: int = number, index: int = index) -> None:
                    nonlocal noted
                    progress.update(number * each + done, _note(figures))
                    if time.monotonic() - noted > 1:
                        noted = time.monotonic()
                        write_text(self._record(index).with_suffix(".iteration"), str(done))

                batch = generate_batch(
                    self._teacher.model,
                    self._info,
                    self.config,
                    index,
                    device=self._device,
                    competitor=self._competitor,
                    tick=tick,
                )
                self._write(index, batch)

    def iterations_done(self) -> int:
        """Return the iterations of all finished batches and, to a second, of those that processes work at."""
        done = (self.config.num_batches - len(self.missing())) * self.config.iterations
        for path in self.folder.glob("batches/*.iteration"):
            with contextlib.suppress(FileNotFoundError, ValueError):  # the batch has just been finished
                done += int(path.read_text())
        return done

    def publish(self, out: Path, details: dict[str, Any]) -> dict[str, Any]:
        """Copy the finished set to ``out``, with manifest and record, delete it here, and return the record.

        ``details`` (scale, command, origin) are recorded. Raises as `replace_folder` does.
        """
        if not (self.folder / MANIFEST).exists():
            self._summarise(details)
        with replace_folder(out, *_OWN) as partial:
            left_out = shutil.ignore_patterns("batches")
            shutil.copytree(self.folder, partial, dirs_exist_ok=True, ignore=left_out, copy_function=shutil.copyfile)
        discard(self.folder)
        return read_record(out)

    def published(self, out: Path) -> dict[str, Any] | None:
        """Return the record at ``out`` if it is of this very set, and every image is as the manifest says."""
        if not (out / MANIFEST).exists() or not (out / RECORD).exists():
            return None
        record = read_record(out)
        if record["fingerprint"] != self.fingerprint or not _is_intact(out):
            return None
        discard(self.folder)  # of a command that was killed after publishing
        return record

    def _batch(self, index: int) -> dict[str, Any] | None:
        """Return what a finished batch consists of, or None."""
        try:
            batch: dict[str, Any] = json.loads(self._record(index).read_text())
            return batch if batch["images"] and batch["log"] else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _record(self, index: int) -> Path:
        return self.folder / "batches" / f"{index:06d}.json"

    def _write(self, index: int, batch: GeneratedBatch) -> None:
        images = []
        try:
            for number, pixels in enumerate(batch.pixels):
                target = self._info.class_names[int(batch.labels[number])]
                file = Path("train") / target / f"{index:06d}-{number:04d}.png"
                content = encode_png(pixels)
                path = self.folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                images.append(
                    {
                        "file": file.as_posix(),
                        "target": target,
                        "prediction": self._info.class_names[int(batch.predictions[number])],
                        "confidence": round(float(batch.confidences[number]), 6),
                        "sha256": hashlib.sha256(content).hexdigest(),
                    }
                )
        except OSError as error:
            raise ResourceError(f"{self.folder.absolute()}: cannot write ({error.strerror}); free some space") from None
        write_json(self._record(index), {"images": images, "log": batch.log})
        self._record(index).with_suffix(".iteration").unlink(missing_ok=True)

    def _summarise(self, details: dict[str, Any]) -> None:
        records = [batch for index in range(self.config.num_batches) if (batch := self._batch(index)) is not None]
        images = [image for record in records for image in record["images"]]
        last = [record["log"][-1] for record in records]
        record = {
            "fingerprint": self.fingerprint,
            **details,
            "num_images": len(images),
            "teacher_accuracy": 100 * sum(image["target"] == image["prediction"] for image in images) / len(images),
            "mean_confidence": 100 * sum(image["confidence"] for image in images) / len(images),
            "last_iteration": {name: sum(line[name] for line in last) / len(last) for name in last[0]},
            "networks": self.networks,
            "config": self.config.model_dump(mode="json"),
        }
        write_json(self.folder / RECORD, record)
        # It identifies the images, so it says nothing of the circumstances; and it is written last.
        write_json(self.folder / MANIFEST, {"class_names": list(self._info.class_names), "images": images})


def encode_png(pixels: Tensor) -> bytes:
    """Return pixels (C, H, W) in [0, 1], grey or RGB, as an 8-bit RGB PNG."""
    values = (pixels * 255).round().to(torch.uint8).expand(3, -1, -1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).numpy())).save(file, "PNG")
    return file.getvalue()


def check_target(out: Path) -> None:
    """Raise `ConfigError` if ``out`` holds anything but a set of generated images, which would be replaced."""
    check_replaceable(out, *_OWN)


def read_record(folder: Path) -> dict[str, Any]:
    """Read what a set of generated images was made with; raises `DataError`."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        record["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path.absolute()}: no readable record; make the images with 'dearkd generate'") from None
    return record


def _is_intact(out: Path) -> bool:
    try:
        images = json.loads((out / MANIFEST).read_text())["images"]
        return all(file_sha256(out / image["file"]) == image["sha256"] for image in images)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _check_names(class_names: tuple[str, ...]) -> None:
    for name in class_names:
        if name != Path(name).name or name.startswith("."):
            raise ConfigError(
                f"teacher: class '{name}' cannot be the name of a folder; rename it in the teacher's card"
            )


def _note(figures: dict[str, float]) -> str:
    shown = ("loss", "bn", "teacher_accuracy")
    return ", ".join(f"{name} {figures[name]:.3g}" for name in shown if name in figures)
