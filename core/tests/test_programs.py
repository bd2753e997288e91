"""A model leaves as a program: run without any code of ours, on real images and batches of any size."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch

from conformance.records import made_up_card
from core.tests.train_samples import same
from vitutor_core.data.augment.resample import eval_transform
from vitutor_core.data.sources.images import read_image
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.evaluate.named import named_images
from vitutor_core.jobs.export import Targets, export_run
from vitutor_core.models import program
from vitutor_core.models.program import save_exported, save_onnx
from vitutor_core.models.weights import ModelCard, load_model

NO_ONNX = "needs onnx, onnxscript and onnxruntime: the extra 'onnx' of vitutor-core"
RUN_EXPORTED = """
import sys

for name in ("vitutor_core", "timm"):
    sys.modules[name] = None  # an import of it would fail
import torch
from safetensors.torch import load_file, save_file

card = {"vitutor": ""}
model = torch.export.load(sys.argv[1], extra_files=card).module()
images = load_file(sys.argv[2])["images"]
save_file({"logits": torch.cat([model(images[:1]), model(images[1:4]), model(images[4:])])}, sys.argv[2])
print(card["vitutor"])
"""


def real_inputs(run, photos):
    """Return the model of a run, its card, and the evaluation photos as it gets them."""
    model, card = load_model(run / "student.safetensors")
    own = eval_transform(card)
    pixels = torch.stack([own(read_image(path, str(path))) for path in named_images([str(photos / "val")])])
    normalised = (pixels.float() / 255 - torch.tensor(card.mean)[:, None, None]) / torch.tensor(card.std)[:, None, None]
    return model.eval(), card, normalised


def test_an_exported_program_runs_without_timm_and_without_us(photo_run, photos, tmp_path):
    from safetensors.torch import load_file, save_file

    (line,) = export_run(photo_run, Targets(torch_export=tmp_path / "student.pt2"), "toypaper")
    assert line.startswith(f"program {tmp_path}/student.pt2: logits of 16 images differ by ")
    model, card, images = real_inputs(photo_run, photos)
    save_file({"images": images}, tmp_path / "x.safetensors")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_EXPORTED, tmp_path / "student.pt2", tmp_path / "x.safetensors"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ModelCard.model_validate_json(done.stdout) == card
    with torch.inference_mode():
        torch.testing.assert_close(load_file(tmp_path / "x.safetensors")["logits"], model(images), rtol=0, atol=1e-4)


def test_onnxruntime_finds_the_same_logits(photo_run, photos, tmp_path):
    pytest.importorskip("onnxscript", reason=NO_ONNX)
    runtime = pytest.importorskip("onnxruntime", reason=NO_ONNX)
    export_run(photo_run, Targets(onnx=tmp_path / "student.onnx"), "toypaper", ema=True, source=f"folder:{photos}")
    session = runtime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    _, card, images = real_inputs(photo_run, photos)
    model, card = load_model(photo_run / "student_ema.safetensors")
    assert [one.name for one in (*session.get_inputs(), *session.get_outputs())] == ["images", "logits"]
    stored = session.get_modelmeta().custom_metadata_map["vitutor"]
    assert ModelCard.model_validate_json(stored) == card
    with torch.inference_mode():
        for count in (1, 5, len(images)):
            (found,) = session.run(None, {"images": images[:count].numpy()})
            torch.testing.assert_close(torch.from_numpy(found), model.eval()(images[:count]), rtol=0, atol=1e-4)


OURS = {
    "resnet8_tiny": (32, {}),
    "rednet_tiny": (32, {}),
    "cvt_13": (32, {"depths": (1, 1, 1)}),  # a block of each kind: an export takes a second for each block
    "t2t_vit_14": (64, {"img_size": 64, "depth": 2}),
}


@pytest.fixture
def exported_once(monkeypatch):
    """Let both programs of a model come from one export, which takes half of the time of each."""
    export, made = torch.export.export, []

    def once(*arguments, **options):
        made.append(made[0] if made else export(*arguments, **options))
        return made[0]

    monkeypatch.setattr(torch.export, "export", once)
    return made


@pytest.mark.parametrize("name", OURS)
def test_architectures_of_ours_are_programs_too(name, tmp_path, exported_once):
    size, kwargs = OURS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **kwargs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    card, images = made_up_card(name=name, image_size=size), torch.rand(3, 3, size, size)

    def check(save):
        assert save(tmp_path / "file", model, card, images) < 1e-4
        assert model.training
        assert same(model.state_dict(), before)
        assert b"vitutor::" not in (tmp_path / "file").read_bytes()  # an operator that only we have

    check(save_exported)
    pytest.importorskip("onnxscript", reason=NO_ONNX)
    pytest.importorskip("onnxruntime", reason=NO_ONNX)
    check(save_onnx)
    assert len(exported_once) == 2


def test_a_program_that_says_something_else_is_not_written(photo_run, tmp_path, monkeypatch):
    load = torch.export.load

    def changed(file):
        module = load(file).module()
        return SimpleNamespace(module=lambda: lambda images: module(images) + 0.001)

    monkeypatch.setattr(program.torch.export, "load", changed)
    with pytest.raises(CheckpointError, match=r"x\.pt2: not written, its logits differ by more than 0\.0001"):
        export_run(photo_run, Targets(torch_export=tmp_path / "x.pt2"), "toypaper")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_one_line(photo_run, toypaper, call, tmp_path, monkeypatch):
    for options, part in (
        ((), "nothing to write; give --to, --onnx or --torch-export"),
        (("--push", "me/mine", "--onnx", tmp_path / "x"), "--push: it pushes the folder of --to"),
        (("--push", "me/mine", "--to", tmp_path / "x.safetensors"), "--push: it pushes the folder of --to"),
        (("--torch-export", tmp_path / "x", "--source", "digits"), "the model does not know the class"),
    ):
        code, _, errors = call(toypaper, "export", photo_run, *options)
        assert (code, len(errors.splitlines())) == (2, 1)
        assert part in errors
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"--onnx: .*pip install 'vitutor-core\[onnx\]'"):
        export_run(photo_run, Targets(onnx=tmp_path / "x"), "toypaper")
    assert list(tmp_path.iterdir()) == []
