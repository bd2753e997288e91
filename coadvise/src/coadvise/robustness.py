"""Every head of a student out of distribution (Co-advise, Tables 1 and 9): ImageNet-A, -R and -C."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from coadvise.method import CLASS
from vitutor_core.cli.stage import left_out
from vitutor_core.data.locate import data_root, require_folder
from vitutor_core.data.mixing import Normalise
from vitutor_core.distributed import choose_device
from vitutor_core.evaluate.shifts import head_accuracies
from vitutor_core.files import write_json
from vitutor_core.models.weights import load_model
from vitutor_core.runs import RunDir, RunRecord

_FIGURES = ("a", "r", "mce")


def measure_row(runs: Path, out: Path, device_name: str, plan: Path | None) -> None:
    """Measure the runs ``seed-N`` below ``runs`` and write ``out/seed-N.json``.

    Of the student: ``a`` and ``r``, the accuracy in percent, and ``mce``, the plain mean of the error in percent over
    all sets of ImageNet-C. Of each head, where there are several: ``HEAD_a``, ``HEAD_r`` and ``HEAD_c``.
    """
    if left_out(plan, f"{runs.name}: not measured", out):
        return
    for run in sorted(runs.glob("seed-*")):
        metrics = measure_run(run, choose_device(device_name))
        write_json(out / f"{run.name}.json", {"metrics": metrics})
        click.echo(f"{runs.name}, {run.name}: " + ", ".join(f"{name} {metrics[name]:.2f} %" for name in _FIGURES))


def measure_run(run: Path, device: torch.device) -> dict[str, float]:
    """Return the figures of one finished run."""
    record = RunRecord.read(run, "coadvise")
    model, card = load_model(RunDir(run).weights)
    model.to(device).eval()
    normalise = Normalise(card.mean, card.std, device)
    heads = _heads(model, tuple(record.teachers))

    def accuracies(folder: Path) -> dict[str, float]:
        return head_accuracies(heads, run, folder, card.class_names, normalise, device)

    metrics: dict[str, float] = {}
    for name in ("a", "r"):
        metrics |= {f"{head}{name}": value for head, value in accuracies(_folder(f"imagenet-{name}")).items()}
    sets = sorted(path for path in _folder("imagenet-c").glob("*/*") if path.is_dir())
    found = [accuracies(folder) for folder in sets]
    for head in found[0] if found else ():
        metrics[f"{head}c" if head else "mce"] = sum(100 - one[head] for one in found) / len(found)
    return metrics


def _folder(name: str) -> Path:
    folder = data_root() / name
    require_folder(folder, "a folder per class" if name != "imagenet-c" else "CORRUPTION/SEVERITY/CLASS folders")
    return folder


def _heads(model: Any, roles: tuple[str, ...]) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Return the prediction, named by an empty text, and the logits of each token, named as `token_metrics` does."""

    def heads(images: Tensor) -> dict[str, Tensor]:
        if not hasattr(model, "token_logits"):
            return {"": model(images)}
        tokens = model.forward_features(images)
        logits = model.token_logits(tokens)
        names = [CLASS, *(roles if roles and len(logits) > 1 else (f"token{n}" for n in range(1, len(logits))))]
        return {"": model.forward_head(tokens), **{f"{n}_": own for n, own in zip(names, logits, strict=True)}}

    return heads
