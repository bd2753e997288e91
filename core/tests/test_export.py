"""An exported folder is all that plain timm needs: the same logits and the same accuracy, without ViTutor."""

from __future__ import annotations

import json
import math
import os

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from conformance import forked
from conformance.records import made_up_card
from core.tests.photo_samples import CLASSES
from core.tests.train_samples import same, weights
from vitutor_core.api import predict
from vitutor_core.data.augment.resample import eval_transform
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.named import named_images
from vitutor_core.jobs.export import Targets, export_run
from vitutor_core.models.timm_folder import package_of, save_timm_folder, timm_crop
from vitutor_core.models.weights import load_model, read_card

PLAIN_TIMM = """
import sys
from pathlib import Path

sys.modules["vitutor_core"] = None  # an import of it would fail
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

folder, images, out = sys.argv[1:]
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))
paths = sorted(Path(images).glob("*/*.jpg"))
batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
names = model.pretrained_cfg["label_names"]
with torch.inference_mode():
    logits = model(batch)
right = sum(names[place] == path.parent.name for place, path in zip(logits.argmax(1).tolist(), paths))
save_file({"logits": logits}, out)
print(100 * right / len(paths), model.head.in_features)
"""


def by_plain_timm(folder, photos, tmp_path):
    """Return accuracy and logits of the evaluation photos, by timm in a process that cannot import ViTutor."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = (folder, photos / "val", tmp_path / "logits.safetensors")
    done = forked.run(PLAIN_TIMM, *arguments, env=environment, cwd=tmp_path, check=True)
    return float(done.stdout.split()[0]), load_file(tmp_path / "logits.safetensors")["logits"]


@pytest.mark.parametrize("name", ["student.pth", "student.onnx"])
def test_no_folder_is_called_like_a_file(photo_run, tmp_path, name):
    with pytest.raises(ConfigError, match=rf"--to .*{name}: weights are written as NAME\.safetensors"):
        export_run(photo_run, Targets(tmp_path / name), "toypaper")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("ema", [False, True])
def test_plain_timm_finds_the_same_logits_and_accuracy(photo_run, photos, tmp_path, ema):
    record = json.loads((photo_run / "metrics.json").read_text())
    (line,) = export_run(photo_run, Targets(tmp_path / "out"), "toypaper", ema=ema)
    assert line == f'folder  {tmp_path}/out: timm.create_model("local-dir:{tmp_path}/out", pretrained=True)'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    top1, logits = by_plain_timm(tmp_path / "out", photos, tmp_path)
    prefix = "ema_" if ema else ""
    assert top1 == record["metrics"][f"{prefix}top1"]
    assert read_card(tmp_path / "out" / "model.safetensors").metrics["top1"] == top1
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"Top-1 {top1:.2f} % on 24 held-out images" in page
    for line in (
        "| method | toypaper, plain, scale digits, seed 0 |",
        f"| data | folder:set, 32 images, fingerprint {record['data_fingerprint']} |",
        "| length | 8 epochs, 16 updates |",
        f"| config | fingerprint {record['fingerprint']} |",
    ):
        assert line in page
    assert str(photos) not in page
    model, card = load_model(photo_run / ("student_ema.safetensors" if ema else "student.safetensors"))
    own = eval_transform(card)
    paths = named_images([str(photos / "val")])
    pixels = torch.stack([own(image) for image in map(read, paths)]).float() / 255
    normalised = (pixels - torch.tensor(card.mean)[:, None, None]) / torch.tensor(card.std)[:, None, None]
    with torch.inference_mode():
        torch.testing.assert_close(logits, model.eval()(normalised), rtol=0, atol=1e-6)


def read(path):
    from vitutor_core.data.sources.images import read_image

    return read_image(path, str(path))


def test_the_code_of_the_card_names_a_turned_photo_as_predict_does(photo_run, photos, tmp_path, monkeypatch):
    export_run(photo_run, Targets(tmp_path / "out"), "toypaper")
    with Image.open(photos / "val" / "roof" / "0.jpg") as photo:
        exif = photo.getexif()
        exif[0x0112] = 6  # as a phone that is held upright stores it
        photo.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102  # our own page, as a reader runs it
    (predicted,) = predict(photo_run, ["photo.jpg"], top=1)
    assert predicted.classes[0][1] == pytest.approx(float(names["logits"].softmax(-1).max()), abs=1e-5)


def test_the_config_says_what_timm_must_know(photo_run, tmp_path):
    export_run(photo_run, Targets(tmp_path / "out"), "toypaper")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_args"]["num_heads"] == 2
    assert config["label_names"] == list(CLASSES)
    assert not config["pretrained_cfg"].keys() & {"tag", "license", "file", "url"}
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    assert "36 px (bicubic)" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_writes_files_and_folders(photo_run, toypaper, call, tmp_path, monkeypatch):
    assert call(toypaper, "export", photo_run, "--to", tmp_path / "w.safetensors")[0] == 0
    assert "36 px (bicubic)" in (tmp_path / "w.md").read_text()
    assert call(toypaper, "export", photo_run, "--to", tmp_path / "out", "--ema")[0] == 0
    assert call(toypaper, "export", photo_run, "--to", tmp_path / "out")[0] == 0  # one of ours is replaced
    assert same(load_file(tmp_path / "out" / "model.safetensors"), weights(photo_run))
    assert call(toypaper, "export", tmp_path / "out", "--to", tmp_path / "again")[0] == 0  # and may be exported again
    assert same(load_file(tmp_path / "again" / "model.safetensors"), weights(photo_run))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own")
    for target, code, part in (
        (tmp_path / "mine", 2, f"{tmp_path}/mine: holds something else"),
        (tmp_path / "w.md", 2, f"{tmp_path}/w.md: is a file"),
        (tmp_path / "w.md" / "out", 6, "cannot write"),
    ):
        found, _, errors = call(toypaper, "export", photo_run, "--to", target)
        assert (found, len(errors.splitlines())) == (code, 1)
        assert part in errors
    assert (tmp_path / "mine" / "README.md").read_text() == "my own"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert call(toypaper, "export", photo_run, "--to", ".")[0] == 0
    assert 'create_model("local-dir:here"' in (tmp_path / "here" / "README.md").read_text()


OWN = {
    "resnet8_tiny": {},
    "resnet50_cifar": {},
    "rednet26": {},
    "cvt_13": {},
    "t2t_vit_14": {},
    "convnext_atto": {},  # its description has another size and crop for tests
    "swin_tiny_patch4_window7_224": {"img_size": 224},
}


@pytest.mark.parametrize("name", OWN)
def test_architectures_of_ours_and_of_timm_are_rebuilt(name, tmp_path):
    names = ("a", "b", "c")
    kwargs = OWN[name]
    model = timm.create_model(name, num_classes=3, **kwargs).eval()
    card = made_up_card(
        name=name,
        kwargs={**kwargs, "in_chans": 3},
        class_names=names,
        image_size=224,
        crop_ratio=0.9,
        metrics={"top1": 1.0},
    )
    save_timm_folder(tmp_path, model, card)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model(images), again(images))
    assert timm.data.resolve_data_config(model=again)["interpolation"] == "bilinear"
    is_timms = name.startswith(("convnext", "swin"))
    assert package_of(card) == (None if is_timms else "vitutor_core")


@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.875, 0.95, 0.33])
def test_timm_resizes_as_we_do(ratio):
    for side in range(8, 512):
        assert math.floor(side / timm_crop(side, ratio)) == round(side / ratio)
