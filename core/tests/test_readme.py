"""The commands of the README's "Train on your own images", run as they are written, and plain timm at the other end."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from conformance import forked
from core.tests.photo_samples import write_photos
from vitutor_core.data.sources.open import open_source
from vitutor_core.own import HOLDOUT
from vitutor_core.schema import DataConfig

README = Path(__file__).parents[2] / "README.md"
PLAIN_TIMM = """
import json, sys
sys.modules["vitutor_core"] = sys.modules["drloc"] = None  # an import of them fails
import timm, torch
from PIL import Image
model = timm.create_model("local-dir:student", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
images = torch.stack([transform(Image.open(path).convert("RGB")) for path in sys.argv[1:]])
with torch.no_grad():
    chances = model(images).softmax(-1)
names = model.pretrained_cfg["label_names"]
print(json.dumps([[names[chance.argmax()], chance.max().item()] for chance in chances]))
"""


def commands() -> str:
    """Return the first block of the section."""
    text = README.read_text(encoding="utf-8")
    section = text[text.index("**Train on your own images.**") :]
    block = re.search(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1]


def test_own_images_are_trained_on_by_recipes_that_fit_them() -> None:
    lines = [
        line
        for page in (*README.parent.glob("*/README.md"), *README.parent.glob("docs/*.md"), README)
        for line in page.read_text(encoding="utf-8").splitlines()
        if "folder:my_images" in line and "vitutor data" not in line
    ]
    assert len(lines) >= 6
    assert [line for line in lines if not re.search(r"--scale own|scale=\"own\"|--recipe examples/", line)] == []


def test_four_commands_lead_from_photos_to_a_model_that_timm_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = commands()
    assert [line.split()[1] for line in written.splitlines()] == ["train", "evaluate", "predict", "export"]
    assert "--set" not in written
    photos = write_photos(tmp_path / "photos", train=3, val=1)
    (photos / "train").rename(tmp_path / "my_images")
    new = tmp_path / "new_images"
    new.mkdir()
    for number, path in enumerate(sorted(photos.glob("val/*/*.jpg"))[:3]):
        path.rename(new / f"{number}.jpg")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", str(forked.commands(tmp_path / "bin", {"drloc": "drloc.cli"})), prepend=os.pathsep)
    done = subprocess.run(["bash", "-ec", written], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "images    8 to train on, 4 to evaluate on, held out" in done.stderr

    record = json.loads((tmp_path / "runs" / "mine" / "metrics.json").read_text())
    evaluated = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluated["metrics"]["top1"] == record["metrics"]["top1"]
    assert (tmp_path / "evaluation" / "confusion.svg").exists()
    source = open_source(DataConfig(source=f"folder:{tmp_path / 'my_images'}", image_size=32, holdout=HOLDOUT))
    held_out = [source.evaluation.where(index) for index in range(4)]
    predicted = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    seen = forked.run(PLAIN_TIMM, *held_out, *sorted(new.iterdir()), cwd=tmp_path, check=True)
    found = json.loads(seen.stdout)
    right = sum(Path(path).parent.name == name for path, (name, _) in zip(held_out, found[:4], strict=True))
    assert 100 * right / 4 == record["metrics"]["top1"]
    for line, (name, chance) in zip(predicted, found[4:], strict=True):
        assert line["class_1"] == name
        assert float(line["probability_1"]) == pytest.approx(chance, abs=0.02)
