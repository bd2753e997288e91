"""The commands as Python calls, as core's README shows them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from core.tests.photo_samples import CLASSES, photo_settings
from core.tests.train_samples import same, weights
from vitutor_core.api import evaluate, predict, train
from vitutor_core.errors import ConfigError
from vitutor_core.paper import Paper

TOY = Paper("toypaper", config="vitutor_core.schema:RunConfig", method="vitutor_core.train.supervised:Supervised")


@pytest.fixture
def installed(monkeypatch, toypaper):
    for place in ("vitutor_core.api", "vitutor_core.baseline"):
        monkeypatch.setattr(f"{place}.installed_paper", lambda name: {"toypaper": TOY}[name])


def test_a_run_is_the_same_by_command_and_by_call(installed, toypaper, call, photos, tmp_path):
    settings = (*photo_settings(photos), "train.epochs=2")
    seen = []
    record = train("toypaper", tmp_path / "call", settings=settings, callbacks=[lambda step, _: seen.append(step)])
    assert max(seen) == record.updates == 4
    assert record.command == "vitutor_core.api.train"
    options = [word for text in settings for word in ("--set", text)]
    assert call(toypaper, "train", *options, "--out", tmp_path / "command")[0] == 0
    assert same(weights(tmp_path / "call"), weights(tmp_path / "command"))
    pairs = (text.partition("=") for text in settings)
    values = {path: {"null": None, "2": 2, "16": 16, "32": 32}.get(text, text) for path, _, text in pairs}
    assert train("toypaper", tmp_path / "call", settings=values) == record  # said otherwise, it is the finished run


def test_what_is_trained_is_evaluated_and_predicts(installed, toypaper, call, photo_run, photos, tmp_path):
    found = evaluate(photo_run, ema=True)
    code, output, _ = call(toypaper, "evaluate", photo_run, "--ema")
    assert (code, json.loads(output)) == (0, found)
    predictions = list(predict(photo_run, [photos / "val"], top=2))
    right = sum(prediction.classes[0][0] == prediction.path.parent.name for prediction in predictions)
    assert 100 * right / len(predictions) == evaluate(photo_run)["top1"]
    assert {name for prediction in predictions for name, _ in prediction.classes} <= set(CLASSES)
    with pytest.raises(ConfigError, match="no such file or folder"):
        predict(photo_run, [tmp_path / "nothing"])


def test_the_calls_import_nothing_heavy():
    code = (
        "import sys, vitutor_core.api; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
