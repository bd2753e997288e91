"""Evaluate one finished run class by class, also on other images, or with its averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.accuracy import Measured
from vitutor_core.evaluate.confusion import by_class
from vitutor_core.evaluate.labelled import evaluate_elsewhere, evaluate_file
from vitutor_core.jobs.evaluate import evaluate_one
from vitutor_core.jobs.models import run_weights
from vitutor_core.models.weights import read_card
from vitutor_core.paper import Paper, load
from vitutor_core.report.confusion import write_by_class
from vitutor_core.runs import RunRecord
from vitutor_core.terminal import say


def evaluate_by_class(
    paper: Paper, run: Path, out: Path | None, *, source: str | None, split: str | None, ema: bool, speed: bool
) -> dict[str, Any]:
    """Measure one finished run also class by class, and write that into ``out`` if given; return what to show.

    Without a choice of images or weights these are all figures of the run, else its accuracy. ``run`` may be a weights
    file, with the ``source`` of its images.
    """
    load(paper.method)  # registers the paper's models with timm
    if run.is_file():
        return _shown(run, run, _of_file(run, source, split, ema=ema), out, source=source, split=split, ema=False)
    record = RunRecord.read(run, paper.package)
    weights = run_weights(run, ema=ema)
    if source is None and split is None and not ema:
        measured = evaluate_one(paper, run, speed=speed)
    else:
        config = load(paper.config).from_mapping(record.config, where=str(run / "metrics.json"))
        measured = evaluate_elsewhere(weights, config, source=source, split=split)
    return _shown(run, weights, measured, out, source=source, split=split, ema=ema)


def _of_file(file: Path, source: str | None, split: str | None, *, ema: bool) -> Measured:
    if source is None or ema:
        raise ConfigError(f"{file}: a weights file, not a run; give --source, the images, and leave --ema out")
    return evaluate_file(file, source=source, split=split)


def _shown(run: Path, weights: Path, measured: Measured, out: Path | None, **chosen: Any) -> dict[str, Any]:
    card = read_card(weights)
    if measured.answers is None or card is None:
        return dict(measured.metrics)
    found = by_class(measured.answers, card.class_names)
    if out is not None:
        for path in write_by_class({"run": str(run), **chosen, "metrics": measured.metrics, **found}, out):
            say(str(path), err=True)
    of_classes = {line["class"]: line["top1"] for line in found["classes"]}
    return {**measured.metrics, "balanced_top1": found["balanced_top1"], "class_top1": of_classes}
