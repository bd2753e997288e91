"""The generation as a whole: schedule, phases, seeds, shards, interruptions, what is written."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from conformance.suite import wait_for
from dearkd.cli import PAPER, cli
from dearkd.generation import generate
from dearkd.generation.batch import batch_labels, generate_batch, learning_rate
from dearkd.generation.commands import resolve_generation
from dearkd.generation.config import GenerationConfig, PhaseConfig
from dearkd.generation.generate import MANIFEST, Generation
from dearkd.generation.objective import BatchNormStatistics, objective, view_of
from dearkd.generation.teacher import open_competitor, open_teacher
from dearkd.tests.generation_samples import ConvTeacher, micro
from vitutor_core.data.sources import open_source
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models.weights import ModelCard, create_model, save_model
from vitutor_core.schema import ModelConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(dearkd_teachers):
    return dearkd_teachers / "cnn"


@pytest.fixture(scope="module")
def opened(teacher):
    frozen, info = open_teacher(micro(teacher), CPU)
    return frozen.model, info


def made(teacher, folder, shards=((1, 1),), **changes):
    """Generate a set shard by shard and publish it."""
    for shard in shards:
        generation = Generation(micro(teacher, **changes), "test", folder / "work")
        generation.run(generation.missing(shard))
    record = generation.publish(folder / "out", {"scale": "digits", "command": "test"})
    return folder / "out", record


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "generation.json"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    return made(teacher, tmp_path_factory.mktemp("generated"))


def test_a_set_of_images(finished, teacher):
    out, record = finished
    assert sorted(path.name for path in out.iterdir()) == ["generation.json", "manifest.json", "train"]
    manifest = json.loads((out / MANIFEST).read_text())
    images = manifest["images"]
    assert len(images) == record["num_images"] == 12
    assert manifest["class_names"] == [str(digit) for digit in range(10)]
    for image in images:
        path = out / image["file"]
        assert path.parent.name == image["target"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == image["sha256"]
        assert image["prediction"] in manifest["class_names"]
        assert 0.1 <= image["confidence"] <= 1
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (16, 16, 3)
        assert (pixels == pixels[:, :, :1]).all()  # grey
    right = sum(image["prediction"] == image["target"] for image in images)
    assert record["teacher_accuracy"] == pytest.approx(100 * right / 12)
    assert record["networks"]["teacher"]["sha256"]
    assert record["last_iteration"]["iteration"] == 10
    assert {"label", "bn", "easiest_positive", "distance_hardest_negative"} <= record["last_iteration"].keys()


def test_the_prediction_is_the_teachers_on_the_written_image(finished, opened):
    out, _ = finished
    model, info = opened
    images = json.loads((out / MANIFEST).read_text())["images"]
    pixels = torch.stack([torch.tensor(np.asarray(Image.open(out / image["file"]))) for image in images])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))
    with torch.no_grad():
        found = model((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).softmax(1).max(1)
    assert [info.class_names[label] for label in found.indices] == [image["prediction"] for image in images]
    expected = torch.tensor([image["confidence"] for image in images])
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)


def test_shards_in_any_order_give_the_same_bytes(finished, teacher, tmp_path):
    out, _ = made(teacher, tmp_path, shards=((2, 2), (1, 2)))
    assert contents(out) == contents(finished[0])


@pytest.mark.parametrize("moment", ["in a batch", "while writing", "in front of the manifest", "in front of the move"])
def test_an_interrupted_set_is_continued_bit_by_bit(finished, teacher, tmp_path, monkeypatch, moment):
    class Crash(BaseException):
        pass

    def crash(*_args, **_kwargs):
        raise Crash

    original, encode, count = generate.generate_batch, generate.encode_png, itertools.count()
    with monkeypatch.context() as patch:
        if moment == "in a batch":
            patch.setattr(generate, "generate_batch", lambda *a, **k: original(*a, **k) if next(count) < 1 else crash())
        elif moment == "while writing":
            patch.setattr(generate, "encode_png", lambda pixels: encode(pixels) if next(count) < 8 else crash())
        elif moment == "in front of the manifest":
            patch.setattr(Generation, "_summarise", crash)
        else:
            patch.setattr(generate.shutil, "move", crash)
        with pytest.raises(Crash):
            made(teacher, tmp_path)
    left = len(Generation(micro(teacher), "test", tmp_path / "work").missing())
    assert left == (1 if moment in ("in a batch", "while writing") else 0)
    out, _ = made(teacher, tmp_path)
    assert contents(out) == contents(finished[0])
    assert not list((tmp_path / "work").iterdir())


LONG = ("phases=[{iterations: 50, lr: 0.1}]", "num_images=40", "classes_per_batch=10", "images_per_class=2")


@pytest.mark.slow
def test_kill_9_then_the_same_command(teacher, tmp_path, capsys, monkeypatch):
    def command(folder, *more):
        settings = [part for setting in LONG for part in ("--set", setting)]
        paths = ["--work", str(folder / "work"), "--out", str(folder / "out")]
        code = "from dearkd.cli import main; main()"
        weights = ["--set", f"teacher.weights={teacher}"]
        return [sys.executable, "-c", code, "generate", "plain", *settings, *weights, *paths, *more]

    killed = command(tmp_path / "killed", "--jobs", "1")
    with subprocess.Popen(killed, stderr=subprocess.DEVNULL) as process:
        wait_for(tmp_path / "killed" / "work" / "dearkd" / "digits", process)
        (work,) = (tmp_path / "killed" / "work" / "dearkd" / "digits").iterdir()
        deadline = time.monotonic() + 60
        while not list(work.glob("batches/*.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "out").exists()
    subprocess.run(killed, check=True, capture_output=True, timeout=120)
    # Side by side, in processes of their own: the same bytes.
    whole = command(tmp_path / "whole", "--jobs", "2")[3:]
    cli.main(whole, standalone_mode=False)
    assert "plain: 40 images" in capsys.readouterr().out
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "run", lambda *_: pytest.fail("generated again"))
        cli.main(whole, standalone_mode=False)


def test_a_shard_is_told_what_is_missing(teacher, tmp_path, capsys):
    arguments = [
        "generate",
        "plain",
        "--set",
        f"teacher.weights={teacher}",
        "--set",
        "phases=[{iterations: 1, lr: 0.1}]",
    ]
    arguments += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--shard", "2/2"]
    cli.main(arguments, standalone_mode=False)
    assert "shard 2/2 done, 1 batches of all shards are missing" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for text in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(ConfigError, match="write it as I/N"):
            cli.main([*arguments[:-1], text], standalone_mode=False)


def test_everything_that_changes_the_images_changes_their_name(teacher, tmp_path):
    def fingerprint(**changes):
        return Generation(micro(teacher, **changes), "test", tmp_path).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(runtime={"device": "cpu", "threads": 1, "log_every": 5}) == first
    assert fingerprint(seed=1) != first
    assert fingerprint(terms={"bn": 2.0}) != first


def test_a_teacher_with_other_weights_changes_the_name(teacher, tmp_path):
    model = create_model(ModelConfig(name="resnet8_tiny"), num_classes=10, image_size=16, channels=3)
    card = ModelCard(
        name="resnet8_tiny",
        kwargs={"in_chans": 3},
        class_names=tuple(map(str, range(10))),
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        method="test",
    )
    save_model(tmp_path / "other.safetensors", model, card)
    names = {Generation(micro(path), "test", tmp_path).folder for path in (teacher, tmp_path / "other.safetensors")}
    assert len(names) == 2


def test_generated_images_are_training_data(finished, teacher):
    out, _ = finished
    data = PAPER.resolve("digits", None, None, ()).data.changed([f"train_from={out}"])
    with pytest.raises(Exception, match=r"no training images of .* and \d more|no training images of"):
        open_source(data)  # three classes in a batch, two batches: four classes have no image


def test_the_loss_falls_and_pixels_stay_in_range(opened):
    model, info = opened
    sizes = {"num_images": 40, "classes_per_batch": 10, "images_per_class": 4}
    phases, terms = [{"iterations": 60, "lr": 0.2, "warmup": 4}], {"bn": 1.0, "first_bn": 1.0}
    config = micro("unused", phases=phases, terms=terms, **sizes)
    ticks = []
    batch = generate_batch(
        model, info, config, 0, device=CPU, tick=lambda done, figures: ticks.append((done, figures.get("loss")))
    )
    assert [done for done, _ in ticks] == list(range(1, 61))
    assert batch.log[-1]["loss"] < 0.95 * batch.log[0]["loss"]
    assert batch.log[-1]["label"] < batch.log[0]["label"]
    assert batch.log[-1]["bn"] < batch.log[0]["bn"]
    assert batch.pixels.min() >= 0
    assert batch.pixels.max() <= 1
    assert torch.bincount(batch.labels, minlength=10).tolist() == [4] * 10


def test_batches_are_functions_of_seed_and_index(opened):
    model, info = opened

    def pixels(index, **changes):
        return generate_batch(model, info, micro("unused", **changes), index, device=CPU).pixels

    assert torch.equal(pixels(0), pixels(0))
    assert not torch.equal(pixels(0), pixels(1))
    assert not torch.equal(pixels(0), pixels(0, seed=1))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_colour_and_own_small_images(opened):
    model, info = opened
    coloured = generate_batch(model, info, micro("unused", grey=False), 0, device=CPU).pixels
    assert (coloured[:, 0] - coloured[:, 1]).abs().max() > 0.01
    own = generate_batch(model, info, micro("unused", low_resolution="own"), 0, device=CPU).pixels
    assert own.shape == (6, 3, 16, 16)
    grey = generate_batch(model, info, micro("unused"), 0, device=CPU).pixels
    assert not torch.equal(own, grey)
    # A first phase alone would leave images of half the side; its enlargement is smoother than noise at full size.
    rough = [(images[..., 1:] - images[..., :-1]).abs().mean() for images in (own, grey)]
    assert rough[0] < rough[1]


def test_the_gradient_of_a_shrunk_view_is_constant_over_its_pixels(opened):
    model, _ = opened
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    config = micro("unused")
    with BatchNormStatistics(model, name="test", first=1.0) as statistics:
        view = view_of(images, shrink=2, roll=(1, -2), mirror=True)
        assert view.shape == (4, 3, 8, 8)
        loss = objective(model, statistics, view, torch.tensor([0, 0, 1, 1]), config.terms).loss
    (gradient,) = torch.autograd.grad(loss, images)
    blocks = gradient.unfold(2, 2, 2).unfold(3, 2, 2)
    assert (blocks == blocks[..., :1, :1]).all()
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_classes_are_dealt_out_evenly():
    config = GenerationConfig(teacher={"weights": "x"}, num_images=42 * 10)
    rounds = [batch_labels(config, 17, index) for index in range(9)]
    for labels in rounds:
        assert torch.bincount(labels).unique().tolist() in ([0, 7], [7])
        assert labels.unique().numel() == 6
    # 17 classes are a round of three batches of six, the last one filled up with one class.
    for first in (0, 3, 6):
        counts = torch.bincount(torch.cat(rounds[first : first + 3]), minlength=17)
        assert sorted(counts.tolist()) == [7] * 16 + [14]
    assert not torch.equal(rounds[0], rounds[3])
    assert torch.equal(batch_labels(config, 17, 4), rounds[4])


def test_constant_schedule_has_no_warm_up():
    phase = PhaseConfig(iterations=10, lr=0.05, schedule="constant")
    assert {learning_rate(phase, iteration) for iteration in range(10)} == {0.05}


def test_a_teacher_without_batch_norm_is_refused():
    teacher = ConvTeacher()
    for name in ("bn1", "bn2", "bn3"):
        setattr(teacher, name, torch.nn.Identity())
    with pytest.raises(ConfigError, match="teacher vit_x: no BatchNorm statistics to invert") as caught:
        BatchNormStatistics(teacher, name="vit_x", first=1.0)
    assert "\n" not in str(caught.value)
    teacher.bn1 = torch.nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(ConfigError, match="no BatchNorm statistics"):
        BatchNormStatistics(teacher, name="vit_x", first=1.0)


def test_a_vision_transformer_as_teacher_is_refused_by_the_command(finished_student, tmp_path):
    arguments = ["generate", "plain", "--set", f"teacher.weights={finished_student}"]
    arguments += ["--jobs", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="no BatchNorm statistics to invert; choose a CNN with BatchNorm"):
        cli.main(arguments, standalone_mode=False)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished_student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    config = PAPER.resolve("digits", None, "mhca", ()).student
    torch.manual_seed(0)
    model = create_model(config, num_classes=10, image_size=16, channels=3)
    card = ModelCard(
        name=config.name,
        kwargs={**config.kwargs, "in_chans": 3, "img_size": 16},
        class_names=tuple(map(str, range(10))),
        image_size=16,
        mean=(0.3044,) * 3,
        std=(0.3755,) * 3,
        method="dearkd",
    )
    save_model(folder / "student.safetensors", model, card)
    return folder


def test_competition_with_a_student(teacher, opened, finished_student, tmp_path):
    _, info = opened
    student, logits = open_competitor(str(finished_student), info, CPU)
    view = torch.randn(2, 3, 16, 16).requires_grad_()
    assert logits(view).shape == logits(view[..., ::2, ::2]).shape == (2, 10)  # a first phase's view is enlarged
    assert torch.autograd.grad(logits(view).sum(), view)[0].abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in student.model.parameters())
    changes = {"competitor": str(finished_student), "terms": {"bn": 1.0, "competition": 0.2}}
    _, record = made(teacher, tmp_path, **changes)
    assert 0 <= record["last_iteration"]["competition"] <= 1
    assert record["networks"]["competitor"]["name"] == "dearkd_tiny_patch16_224"
    with pytest.raises(CheckpointError, match="no such weights file"):
        Generation(micro(teacher, **changes | {"competitor": str(tmp_path / "nothing")}), "test", tmp_path)


WRONG = {
    "num_images": ({"num_images": 13}, "no multiple of a batch of 6 .* take 12 or 18"),
    "phases": ({"phases": [{"iterations": 1, "lr": 0.1, "shrink": 2}]}, "the last one must have shrink 1"),
    "competition": ({"terms": {"competition": 0.2}}, "terms.competition and competitor go together"),
    "pairs": (
        {"images_per_class": 1, "terms": {"triplet": 1.0}},
        "need two images per class",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_configs_that_cannot_work(name):
    changes, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        micro("x", **changes)


def test_configs_that_do_not_fit_the_teacher(teacher, tmp_path):
    with pytest.raises(ConfigError, match="classes_per_batch is 12, the teacher has 10 classes"):
        Generation(micro(teacher, classes_per_batch=12, num_images=24), "test", tmp_path)
    phases = [{"iterations": 1, "lr": 0.1, "shrink": 3}, {"iterations": 1, "lr": 0.1}]
    with pytest.raises(ConfigError, match="16 px are no multiple of shrink 3"):
        Generation(micro(teacher, phases=phases), "test", tmp_path)
    config = resolve_generation(PAPER, "imagenet", None, "plain", ())
    with pytest.raises(ConfigError, match="its classes have no names"):
        open_teacher(config.changed(["teacher={model: {name: resnet8_tiny}}", "classes_per_batch=6"]), CPU)


def test_the_record_says_how_many_iterations_are_done(teacher, tmp_path):
    generation = Generation(micro(teacher), "test", tmp_path)
    assert generation.iterations_done() == 0
    generation.run([0])
    assert generation.iterations_done() == 10
    (generation.folder / "batches" / "000001.iteration").write_text("4")
    assert generation.iterations_done() == 14
