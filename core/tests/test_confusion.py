"""Accuracy class by class, on the run's own images, another split or another source, and of averaged weights."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from core.tests.photo_samples import CLASSES, photo_settings
from core.tests.report_samples import texts_of
from core.tests.train_samples import tiny_config
from vitutor_core.evaluate.accuracy import Answers
from vitutor_core.evaluate.confusion import by_class, confusion_matrix
from vitutor_core.jobs.evaluate import evaluate_row
from vitutor_core.report.confusion import write_by_class
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised

GIVEN = torch.tensor([0, 0, 1, 1, 1, 0, 3, 3])
WANTED = torch.tensor([0, 0, 0, 1, 1, 1, 3, 0])


@pytest.fixture
def evaluate(call, toypaper, photo_run):
    """Evaluate the run; return the exit code, and what was printed, or the messages."""

    def called(*arguments, run=photo_run):
        code, output, errors = call(toypaper, "evaluate", run, *arguments)
        return (0, json.loads(output)) if code == 0 else (code, errors)

    return called


def test_by_hand_and_as_scikit_learn_counts():
    from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score
    from sklearn.metrics import confusion_matrix as counted

    answers, names = Answers(GIVEN, WANTED), ["a", "b", "c", "d"]
    matrix = confusion_matrix(answers, 4)
    assert matrix.tolist() == [[2, 1, 0, 1], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert matrix.tolist() == counted(WANTED, GIVEN, labels=range(4)).tolist()
    found = by_class(answers, names)
    assert found["balanced_top1"] == pytest.approx(100 * (2 / 4 + 2 / 3 + 1) / 3)
    assert found["balanced_top1"] == pytest.approx(100 * balanced_accuracy_score(WANTED, GIVEN))
    assert [line["images"] for line in found["classes"]] == [4, 3, 0, 1]
    assert [line["top1"] for line in found["classes"]][2] is None
    for name, score in (("top1", recall_score), ("precision", precision_score)):
        values = score(WANTED, GIVEN, labels=range(4), average=None, zero_division=0)
        assert [line[name] or 0.0 for line in found["classes"]] == pytest.approx((100 * values).tolist())


def test_a_run_is_evaluated_class_by_class(photo_run, evaluate, tmp_path):
    record = json.loads((photo_run / "metrics.json").read_text())
    code, found = evaluate("--out", tmp_path / "out")
    assert code == 0
    assert {name: found[name] for name in record["metrics"]} == record["metrics"]
    assert set(found["class_top1"]) == set(CLASSES)
    assert np.mean(list(found["class_top1"].values())) == pytest.approx(record["metrics"]["top1"])  # 6 images of each
    assert found["balanced_top1"] == pytest.approx(record["metrics"]["top1"])
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["metrics"]["top1"] == record["metrics"]["top1"]
    with (tmp_path / "out" / "confusion.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["class", *CLASSES]
    assert [[int(count) for count in line[1:]] for line in lines[1:]] == written["confusion"]
    assert 100 * np.trace(written["confusion"]) / 24 == record["metrics"]["top1"]
    with (tmp_path / "out" / "classes.csv").open(newline="") as file:
        assert [(line["class"], line["images"]) for line in csv.DictReader(file)] == [(name, "6") for name in CLASSES]
    assert set(CLASSES) < set(texts_of(tmp_path / "out" / "confusion.svg"))
    assert evaluate()[1] == found


def test_other_splits_sources_and_averaged_weights(photo_run, photos, evaluate, tmp_path):
    metrics = json.loads((photo_run / "metrics.json").read_text())["metrics"]
    averaged = evaluate("--ema")[1]
    assert (averaged["top1"], averaged["loss"]) == (metrics["ema_top1"], metrics["ema_loss"])
    trained_on = evaluate("--split", "train")[1]
    assert trained_on["images"] == 32
    # a folder of two of the classes, in an order of their own, without splits
    for name in ("sky", "petals"):
        shutil.copytree(photos / "val" / name, tmp_path / "new" / name)
    part = evaluate("--source", f"folder:{tmp_path}/new")[1]
    whole = evaluate()[1]
    assert part["images"] == 12
    assert part["class_top1"] == {
        name: whole["class_top1"].get(name) if name in ("sky", "petals") else None for name in CLASSES
    }
    assert evaluate("--source", f"folder:{photos}")[1]["top1"] == metrics["top1"]
    again = evaluate("--source", f"folder:{photos}", "--split", "TRAIN")[1]
    assert again["class_top1"] == trained_on["class_top1"]


def test_a_test_split_beside_a_holdout(photos, evaluate, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "set" / "train")
    shutil.copytree(photos / "val", tmp_path / "set" / "test")
    settings = photo_settings(tmp_path / "set")
    out = tmp_path / "run"
    config = tiny_config(*settings, "data.holdout=0.25", "train.epochs=1")
    train(config, Supervised.build, label=RunLabel("toypaper", "plain", "digits", "test"), out=out)
    own = ("--source", f"folder:{tmp_path}/new/../set")  # said again, it does not bring back the images trained on
    asked = ((), own, ("--split", "test"), ("--split", "train"), (*own, "--split", "train"))
    assert [evaluate(*chosen, run=out)[1]["images"] for chosen in asked] == [8, 8, 24, 24, 24]
    (tmp_path / "set" / "test").rename(tmp_path / "set" / "more")
    found, errors = evaluate("--split", "test", run=out)
    assert found == 2
    assert errors.endswith("splits: none; without --split, the images that the run held out are evaluated\n")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("--split", "tset"), 2, "--split: data.eval_split: "),
        (("--split", "tset"), 2, "no 'tset' to evaluate on"),
        (
            ("--source", "folder:{new}", "--split", "sky"),
            2,
            "--split: {new} has no 'sky', nor other splits; without --split, all of its images are evaluated",
        ),
        (
            ("--source", "folder:{new}/split", "--split", "vol"),
            2,
            "--split: {new}/split has no 'vol'; did you mean 'val'?; splits: test, val",
        ),
        (
            ("--source", "folder:{new}"),
            2,
            "folder:{new}: the model does not know the class 'skyy'; did you mean 'sky'?",
        ),
        (("--source", "folder:{new}/none"), 3, "{new}/none: no such folder"),
        (("--source", "digits"), 2, "the model does not know the class '0'"),
        (("--source", "digits", "--split", "val"), 2, "data.eval_split: digits has no choice of it"),
    ],
)
def test_mistakes_are_one_line(evaluate, tmp_path, arguments, code, part):
    (tmp_path / "skyy").mkdir()
    for name in ("test", "val", "volt"):  # one of them is no split
        (tmp_path / "split" / name).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "skyy" / "1.png")
    found, errors = evaluate(*(argument.format(new=tmp_path) for argument in arguments))
    assert found == code
    (line,) = errors.splitlines()
    assert part.format(new=tmp_path) in line


def test_runs_without_an_average_and_rows(photo_run, evaluate, tmp_path):
    copy = shutil.copytree(photo_run, tmp_path / "copy")
    (copy / "student_ema.safetensors").unlink()
    code, errors = evaluate("--ema", run=copy)
    assert (code, errors) == (
        4,
        f"error: {copy}: it kept no average of its weights; train it with train.ema_decay set\n",
    )
    code, errors = evaluate("--ema", "--out", tmp_path / "out", run=photo_run.parent)
    assert (code, "--source, --split and --ema are for one of them" in errors) == (2, True)


def test_the_records_of_a_row_are_as_before(photo_run, toypaper, tmp_path):
    from toypaper.cli import PAPER

    evaluate_row(PAPER, photo_run.parent, tmp_path / "out", None, speed=False)
    before = json.loads((photo_run / "metrics.json").read_text())
    after = json.loads((tmp_path / "out" / "seed-0" / "metrics.json").read_text())
    assert set(after["metrics"]) - set(before["metrics"]) == {"parameters", "flops"}
    after["metrics"] = before["metrics"]
    assert after == before
    assert sorted(path.name for path in (tmp_path / "out" / "seed-0").iterdir()) == ["curves.csv", "metrics.json"]


def test_names_of_classes_are_printed_as_they_are(evaluate, call, toypaper, photo_run, monkeypatch):
    odd = ['"\u202e"', "a\u00a0b", "\u00ad", "\x7f", "\U000e0001", "\udcff"]
    found = {"class_top1": {"\u00e9t\u00e9": 1.0, **dict.fromkeys(odd)}}
    monkeypatch.setattr("vitutor_core.jobs.evaluate.evaluate_by_class", lambda *_, **__: found)
    assert evaluate() == (0, found)
    _, output, _ = call(toypaper, "evaluate", photo_run)
    assert "\u00e9t\u00e9" in output
    assert "\u202e" not in output  # it would turn the rest of the line round


def test_many_classes_and_odd_names_are_drawn(tmp_path):
    names = [f"$class_{number}$ \u732b {'x' * 40}" for number in range(300)]
    targets = torch.arange(300).repeat(2)
    found = by_class(Answers(targets.roll(1), targets), names)
    assert found["balanced_top1"] == 0
    assert all(path.stat().st_size for path in write_by_class(found, tmp_path))
