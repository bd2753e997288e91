"""Sets of images: shards, interruptions, names, what is written."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from conformance import forked
from conformance.records import made_up_card
from dearkd.cli import PAPER
from dearkd.generation import generate
from dearkd.generation.generate import MANIFEST, Generation
from dearkd.tests.generation_samples import contents, made, micro
from vitutor_core.cli.paper import paper_group
from vitutor_core.data.sources.open import open_source
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import create_model, save_model
from vitutor_core.schema import ModelConfig

cli = paper_group(PAPER)


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
            patch.setattr(generate.shutil, "copytree", crash)
        with pytest.raises(Crash):
            made(teacher, tmp_path)
    left = len(Generation(micro(teacher), "test", tmp_path / "work").missing())
    assert left == (1 if moment in ("in a batch", "while writing") else 0)
    out, _ = made(teacher, tmp_path)
    assert contents(out) == contents(finished[0])
    assert not list((tmp_path / "work").iterdir())


TWO_BATCHES = ("phases=[{iterations: 10, lr: 0.1}]", "num_images=40", "classes_per_batch=10", "images_per_class=2")
KILLED = """
import os, signal
from dearkd.generation import generate
make, begun = generate.generate_batch, []
def killed(*arguments, **options):
    begun.append(1)
    if len(begun) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(*arguments, **options)
generate.generate_batch = killed
"""


@pytest.mark.slow
def test_kill_9_then_the_same_command(teacher, tmp_path, monkeypatch):
    def arguments(folder, *more):
        settings = [part for setting in TWO_BATCHES for part in ("--set", setting)]
        paths = ["--work", str(folder / "work"), "--out", str(folder / "out")]
        return ["generate", "plain", *settings, "--set", f"teacher.weights={teacher}", *paths, *more]

    code, one_by_one = "from dearkd.cli import main; main()", arguments(tmp_path / "killed", "--jobs", "1")
    killed = forked.run(KILLED + code, *one_by_one)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((tmp_path / "killed" / "work").rglob("batches/*.json"))) == 1
    assert not (tmp_path / "killed" / "out").exists()
    forked.run(code, *one_by_one, check=True)
    # Side by side, in processes of their own: the same bytes.
    whole = arguments(tmp_path / "whole", "--jobs", "2")
    done = forked.run(code, *whole, check=True)
    assert "plain: 40 images" in done.stdout
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
    card = made_up_card(kwargs={"in_chans": 3}, class_names=tuple(map(str, range(10))), std=(0.5, 0.5, 0.5))
    save_model(tmp_path / "other.safetensors", model, card)
    names = {Generation(micro(path), "test", tmp_path).folder for path in (teacher, tmp_path / "other.safetensors")}
    assert len(names) == 2


def test_generated_images_are_training_data(finished, teacher):
    out, _ = finished
    data = PAPER.resolve("digits", None, None, ()).data.changed([f"train_from={out}"])
    with pytest.raises(Exception, match=r"no training images of .* and \d more|no training images of"):
        open_source(data)  # three classes in a batch, two batches: four classes have no image


def test_a_folder_with_something_else_is_left_alone(teacher, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"out: holds something else .*thesis\.tex.*; choose another folder"):
        made(teacher, tmp_path)
    arguments = ["generate", "plain", "--set", f"teacher.weights={teacher}", "--work", str(tmp_path / "work2")]
    with pytest.raises(ConfigError, match="holds something else"):
        cli.main([*arguments, "--out", str(tmp_path / "out")], standalone_mode=False)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "work2").exists()


@pytest.mark.parametrize("point", [0, 1, 5, 12])
def test_a_set_that_was_killed_while_it_was_published_is_published_whole(
    finished, teacher, tmp_path, monkeypatch, point
):
    """Work and target may lie on two file systems, so nothing is moved: what is copied is whole or not there."""

    class Killed(BaseException):
        pass

    copied, copy = itertools.count(), generate.shutil.copyfile

    def killed(*arguments, **options):
        if next(copied) == point:
            raise Killed
        return copy(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generate.shutil, "copyfile", killed)
        with pytest.raises(Killed):
            made(teacher, tmp_path)
    assert not (tmp_path / "out").exists()
    generation = Generation(micro(teacher), "test", tmp_path / "work")
    assert (generation.published(tmp_path / "out"), generation.missing()) == (None, [])
    out, _ = made(teacher, tmp_path)
    assert contents(out) == contents(finished[0])
    assert not list(tmp_path.rglob("*.tmp*"))


def test_a_set_that_was_killed_after_it_was_published_is_there(teacher, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(generate, "discard", lambda _: None)
        out, record = made(teacher, tmp_path)
    assert Generation(micro(teacher), "test", tmp_path / "work").published(out) == record
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("damage", ["an image is gone", "another image", "no manifest", "an empty manifest"])
def test_a_set_that_is_not_as_its_manifest_says_is_made_again(finished, teacher, tmp_path, damage):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    image = next(out.glob("train/*/*.png"))
    path = image if "image" in damage else out / MANIFEST
    if damage == "an image is gone" or damage == "no manifest":
        path.unlink()
    else:
        path.write_bytes(b"" if "empty" in damage else path.read_bytes()[:-1])
    generation = Generation(micro(teacher), "test", tmp_path / "work")
    assert generation.published(out) is None
    assert len(generation.missing()) == 2
    made(teacher, tmp_path)
    assert contents(out) == contents(finished[0])


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"images": [], "log": []}'])
def test_a_damaged_batch_is_made_again(finished, teacher, tmp_path, text):
    generation = Generation(micro(teacher), "test", tmp_path / "work")
    generation.run([0, 1])
    (generation.folder / "batches" / "000000.json").write_text(text)
    (generation.folder / "batches" / "000001.iteration").write_text("")
    assert generation.missing() == [0]
    assert generation.iterations_done() == 10
    out, _ = made(teacher, tmp_path)
    assert contents(out) == contents(finished[0])


def test_a_vision_transformer_as_teacher_is_refused_by_the_command(finished_student, tmp_path):
    arguments = ["generate", "plain", "--set", f"teacher.weights={finished_student}"]
    arguments += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    with pytest.raises(
        ConfigError,
        match="teacher DearKDVisionTransformer: no BatchNorm statistics to invert; choose a CNN with BatchNorm",
    ):
        cli.main(arguments, standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_the_record_says_how_many_iterations_are_done(teacher, tmp_path):
    generation = Generation(micro(teacher), "test", tmp_path)
    assert generation.iterations_done() == 0
    generation.run([0])
    assert generation.iterations_done() == 10
    (generation.folder / "batches" / "000001.iteration").write_text("4")
    assert generation.iterations_done() == 14
