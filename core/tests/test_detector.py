from __future__ import annotations

import json
import os
import socket
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models.detection.image_list import ImageList

from conformance import forked
from conformance.suite import Crash
from core.tests.detection_samples import few_scenes, run, tiny_config
from core.tests.train_samples import before_update, crash, curves, same, weights
from core.tests.train_samples import run as run_classifier
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.data.build import build_data
from vitutor_core.data.types import Batch
from vitutor_core.errors import ConfigError
from vitutor_core.schema import DetectorConfig
from vitutor_core.train import optim
from vitutor_core.train.detector import Detector
from vitutor_core.train.evaluation import evaluate_run
from vitutor_core.train.method import Clock

CPU = torch.device("cpu")
FRESH = ("train.epochs=3",)
"""Two updates an epoch."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("detector") / "run"
    run(out, *FRESH)
    return out


def build(*settings: str) -> Detector:
    torch.manual_seed(0)
    config = tiny_config(*settings)
    return Detector.build(config, build_data(config, device=CPU).info)


def test_a_run_has_the_losses_of_mask_r_cnn_and_coco_metrics(whole):
    lines = curves(whole)
    losses = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"]
    for line in lines:
        assert sum(float(line[name]) for name in losses) == pytest.approx(float(line["train_loss"]))
    metrics = json.loads((whole / "metrics.json").read_text())["metrics"]
    assert {"box_ap", "box_ap50", "mask_ap", "mask_ap75"} <= metrics.keys()
    assert metrics["images"] == 6


@pytest.mark.parametrize("step", [3, 4])
def test_an_interrupted_run_ends_as_one_that_was_left_alone(whole, tmp_path, step):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_update(patch, step, crash)
        with pytest.raises(Crash):
            run(out, *FRESH)
    assert (out / "checkpoints").exists()
    run(out, *FRESH)
    assert same(weights(out), weights(whole))
    assert same(weights(out, "method"), weights(whole, "method"))
    assert curves(out) == curves(whole)
    one, other = (json.loads((folder / "metrics.json").read_text())["metrics"] for folder in (out, whole))
    assert one == other


def test_a_finished_run_is_measured_again_from_its_weights(whole):
    record = run(whole, *FRESH)  # nothing is trained again
    with mock.patch("vitutor_core.data.detection.load.open_annotated", return_value=few_scenes()):
        measured = evaluate_run(whole, record, DetectorConfig, Detector.build).metrics
    assert {name: measured[name] for name in record.metrics} == record.metrics


def test_layer_decay_is_of_the_student_alone():
    method = build()
    groups = optim.build_optimizer(method, tiny_config().optim, 4).param_groups
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    scales = {names[id(p)]: group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    assert scales["student.patch_embed.proj.weight"] == pytest.approx(0.8**3)
    assert scales["student.blocks.1.mlp.fc1.weight"] == pytest.approx(0.8)
    assert {scale for name, scale in scales.items() if not name.startswith("student.")} == {1.0}
    trained = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert scales.keys() == trained
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays["student.pos_embed"] == 0
    assert decays["pyramid.levels.0.1.weight"] > 0


def test_every_trained_parameter_gets_a_gradient_also_without_objects():
    method = build()
    method.train()
    images = torch.zeros(2, 3, 48, 48)
    output = method(Batch(images, torch.zeros(2, dtype=torch.int64), torch.arange(2)), Clock(0, 1, 1))
    assert output.loss.isfinite()
    output.loss.backward()
    # DDP waits for all of them.
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]


def test_what_is_detected_lies_in_the_image():
    method = build()
    for found in method.detect(torch.randn(2, 3, 48, 48)):
        assert ((found["boxes"] >= 0) & (found["boxes"] <= 48)).all()
        assert ((found["labels"] >= 0) & (found["labels"] < 10)).all()
        assert found["masks"].shape[1:] == (1, 28, 28)
    assert method.training


def test_boxes_keep_their_precision_where_a_step_is_computed_in_bf16():
    method = build()
    seen = []
    method.rpn.register_forward_hook(lambda _module, _given, found: seen.extend(found[0]))
    nothing = Batch(torch.randn(2, 3, 48, 48), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    with torch.autocast("cpu", torch.bfloat16):
        method.train()(nothing, Clock(0, 1, 1)).loss.backward()
        found = method.detect(torch.randn(2, 3, 48, 48))
    assert {proposals.dtype for proposals in (*seen, *(one["boxes"] for one in found))} == {torch.float32}


def test_anchors_are_centred_where_the_cells_of_their_level_are():
    method = build()
    levels = method.pyramid(method._read(method.student, torch.zeros(1, 3, 48, 48)))
    images = ImageList(torch.zeros(1, 3, 48, 48), [(48, 48)])
    (anchors,) = method.rpn.anchor_generator(images, list(levels.values()))
    centres = (anchors[::3, :2] + anchors[::3, 2:]) / 2
    # 48 px in patches of 8: strides 2, 4, 8, 16 and 32; the 2 x 2 cells of the last are larger than the image.
    grid = [(32.0 * column, 32.0 * row) for row in range(2) for column in range(2)]
    assert [tuple(centre) for centre in centres[-4:].tolist()] == grid
    widths = (anchors[1::3, 2] - anchors[1::3, 0]).unique().tolist()
    assert widths == [16, 32, 64, 128, 256]


@pytest.mark.parametrize("patch", [2, 14])
def test_patches_that_give_no_pyramid_are_refused(patch):
    with pytest.raises(ConfigError, match=f"patches of 4, 8, 16 or 32 pixels, not {patch}"):
        build(f"student.kwargs.patch_size={patch}", f"data.image_size={4 * patch}")


def test_an_average_of_the_backbone_alone_is_refused():
    with pytest.raises(ConfigError, match="averages the student alone"):
        build("train.ema_decay=0.9")


def _rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run(folder / "run", *FRESH)


@pytest.mark.slow
def test_two_processes_train_one_detector(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked.together(_rank, port, tmp_path)
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["processes"] == 2
    assert record["metrics"]["images"] == 6


# The command


@pytest.mark.filterwarnings("default")
def test_detect_starts_from_a_run_and_draws_what_it_found(tmp_path, call):
    run_classifier(tmp_path / "classifier", "train.epochs=1")
    out = tmp_path / "detector"
    given = ["detect", tmp_path / "classifier", "--out", out]
    for setting in (
        "data.image_size=48",
        "train.epochs=2",
        "train.batch_size=4",
        "detect.channels=8",
        "detect.window=4",
    ):
        given += ["--set", setting]
    with mock.patch("vitutor_core.data.detection.load.open_annotated", return_value=few_scenes()):
        code, printed, messages = call(vitutor, *given)
        assert code == 0, messages
        again = call(vitutor, *given)
    assert "box_ap" in printed
    assert printed == again[1]
    assert "positions resampled from 1 x 5 x 16 to 1 x 37 x 16" in messages
    found = json.loads((out / "ap.json").read_text())
    assert {"box_ap", "mask_ap"} <= found.keys()
    assert "<svg" in (out / "detections.svg").read_text()
    config = json.loads((out / "metrics.json").read_text())["config"]
    assert config["student"]["kwargs"] == {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    start, end = load_file(tmp_path / "classifier" / "student.safetensors"), weights(out)
    assert start.keys() == end.keys()
    assert end["pos_embed"].shape == (1, 37, 16)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("runs/missing", (), "there is no such run or file"),
        ("local-dir:missing/folder", (), "missing/folder/config.json: no such file"),
        ("vit_tinny_patch16_224", (), "did you mean 'vit_tiny_patch16_224'"),
        ("resnet18", ("--source", "digits"), "'digits' has no boxes and masks"),
        ("resnet18", ("--source", "coco:missing"), "no such folder"),
        ("resnet18", ("--set", "detect.windows=3"), "unknown key 'detect.windows'; did you mean 'detect.window'"),
        ("resnet18", ("--set", "detect.scale=[2.0,1.0]"), "write the smaller number first"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(tmp_path, call, model, options, message):
    code, _, messages = call(vitutor, "detect", model, *options, "--out", tmp_path / "out")
    assert code != 0
    assert message in messages
    assert messages.count("\n") == 1
    assert not (tmp_path / "out").exists()
