from __future__ import annotations

import json
import math

import pytest
import timm
import torch

from core.tests.train_samples import run
from vitutor_core.cli.entry import run as run_command
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.models.weights import load_model, save_model
from vitutor_core.report.analyses import analysis_pictures


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in (("one", ()), ("other", ("student.kwargs.depth=2", "student.kwargs.patch_size=4"))):
        run(folder / name, "train.epochs=1", *settings)
    return folder


@pytest.fixture
def call(capsys):
    def called(*arguments):
        with pytest.raises(SystemExit) as caught:
            run_command(vitutor, ["analyze", *map(str, arguments)])
        return caught.value.code or 0, *capsys.readouterr()

    return called


def test_two_models_are_compared(runs, call, tmp_path):
    code, output, _ = call(runs / "one", runs / "other", "--images", 40, "--batch", 16, "--out", tmp_path)
    assert code == 0
    found = json.loads((tmp_path / "analysis.json").read_text())
    assert found["images"] == 32
    first, second = "test, seed 0 (1)", "test, seed 0 (2)"
    assert (found["cka"]["first"], found["cka"]["second"]) == (first, second)
    assert [len(found["cka"]["values"]), len(found["cka"]["values"][0])] == [2, 3]
    other = found["models"][second]
    assert other["layers"] == ["embedding", "block 1", "block 2"]
    assert [len(heads) for heads in other["distance"]] == [2, 2]
    assert all(0 < value < math.log(16) for heads in other["entropy"] for value in heads)
    assert [curve[0] for curve in other["fourier"]] == [0.0] * 3
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "analysis.json",
        "cka.svg",
        "fourier.svg",
        *(f"attention-test--seed-0--{n}-.svg" for n in (1, 2)),
    }
    assert str(tmp_path / "cka.svg") in output


def test_a_report_shows_each_figure_once(runs, call, tmp_path):
    for name in ("a", "b"):
        out = tmp_path / "figures" / name
        call(runs / "one", runs / "other", "--images", 16, "--batch", 16, "--out", out)
    pictures = analysis_pictures(tmp_path / "figures", tmp_path)
    titles = [picture.title for picture in pictures]
    assert len(titles) == len(set(titles)) == 4
    assert all(picture.path.read_bytes() for picture in pictures)
    assert pictures[0].path.name == "a-cka.svg"
    assert analysis_pictures(tmp_path / "none", tmp_path) == []


def test_one_model_is_compared_with_itself(runs, call, tmp_path):
    assert call(runs / "one", "--images", 24, "--batch", 24, "--out", tmp_path)[0] == 0
    found = json.loads((tmp_path / "analysis.json").read_text())
    assert [found["cka"]["values"][layer][layer] for layer in range(2)] == pytest.approx([1.0, 1.0])
    assert list(found["models"]) == ["test, seed 0"]


def test_the_quirks_of_the_released_tools(runs, call, tmp_path):
    options = [(), ("--released",), ("--true-nyquist",)]
    found = []
    for number, option in enumerate(options):
        # All 896 images, so that their order does not matter.
        call(runs / "other", "--images", 896, "--batch", 896, *option, "--out", tmp_path / str(number))
        found.append(json.loads((tmp_path / str(number) / "analysis.json").read_text())["models"]["test, seed 0"])
    plain, released, nyquist = found
    assert torch.tensor(released["distance"]) == pytest.approx(torch.tensor(plain["distance"]) * 14 / 4, rel=1e-4)
    assert released["entropy"] != plain["entropy"]
    assert torch.tensor(released["entropy"]) == pytest.approx(torch.tensor(plain["entropy"]), abs=1e-3)
    assert [len(curve) for curve in nyquist["fourier"]] == [1 + len(curve) for curve in plain["fourier"]]


def test_mistakes_are_one_line(runs, call, tmp_path):
    file = tmp_path / "model.safetensors"
    save_model(file, *load_model(runs / "one" / "student.safetensors"))
    code, _, errors = call(file, "--out", tmp_path / "out")
    assert code == 2
    assert "give --source" in errors
    assert call(file, "--source", "digits", "--images", 20, "--batch", 20, "--out", tmp_path / "out")[0] == 0
    # The first run among the models says which images are taken.
    assert call(file, runs / "one", "--images", 20, "--batch", 20, "--out", tmp_path / "both")[0] == 0
    assert call(file, file, file, "--out", tmp_path / "out")[0] == 2
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty", "--out", tmp_path / "out")[0] == 4


def test_a_model_of_timm_is_named(call, tmp_path, monkeypatch):
    asked = []

    def offline(name, found, kwargs):
        asked.append((name, kwargs["num_classes"]))
        return timm.create_model(found.architecture, num_classes=0)

    monkeypatch.setattr("vitutor_core.models.weights._create_pretrained", offline)
    name = "test_vit.r160_in1k"
    options = ("--source", "digits", "--images", 8, "--batch", 8, "--out", tmp_path)
    assert call(name, *options)[0] == 0
    assert asked == [(name, 0)]
    assert list(json.loads((tmp_path / "analysis.json").read_text())["models"]) == [name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tinny_patch16_224", "there is no such run or file, and no such model: model 'vit_tinny_patch16_224'"),
        ("resnet8_tiny", "resnet8_tiny: timm has no weights for it; give a run, or a file of 'vitutor convert'"),
    ],
)
def test_a_name_without_weights_is_refused(name, expected, call, tmp_path):
    code, _, errors = call(name, "--source", "digits", "--out", tmp_path / "out")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert expected in errors


def test_images_are_of_the_classes_that_a_run_knows(call, tmp_path):
    run(tmp_path / "few", "train.epochs=1", "data.class_list=['3', '5']")
    assert call(tmp_path / "few", "--images", 1000, "--batch", 16, "--out", tmp_path / "out")[0] == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["images"] < 200  # of 896 evaluation images of ten classes
