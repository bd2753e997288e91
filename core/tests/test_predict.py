"""Predicting the evaluation images gives the accuracy of the run, image by image; bad input is one line each."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from core.tests.photo_samples import CLASSES
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate import predict as predicting
from vitutor_core.evaluate.named import named_images
from vitutor_core.jobs.export import Targets, export_run
from vitutor_core.jobs.teacher import train_teacher
from vitutor_core.models.weights import load_model, save_model


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_right(line):
    return f"/{line['class_1']}/" in line["image"]


@pytest.mark.parametrize("batch", [256, 5])
def test_predicting_the_evaluation_images_gives_the_accuracy(photo_run, photos, call, tmp_path, batch):
    record = json.loads((photo_run / "metrics.json").read_text())
    arguments = ("predict", photo_run, photos / "val", "--csv", tmp_path / "new" / "out.csv", "--batch", batch)
    assert call(vitutor, *arguments)[:2] == (0, f"24 images; {tmp_path}/new/out.csv\n")
    lines = table(tmp_path / "new" / "out.csv")
    assert [line["image"] for line in lines] == sorted(line["image"] for line in lines)
    right = [is_right(line) for line in lines]
    assert 100 * sum(right) / len(right) == record["metrics"]["top1"] != 100
    bits = bin(int(record["correct"]["top1"], 16))[2:].zfill(4 * len(record["correct"]["top1"]))
    assert "".join(str(int(one)) for one in right) == bits[:24]
    # The mean cross-entropy, too, which another crop or interpolation would change.
    own = [
        float(line[f"probability_{rank}"])
        for line in lines
        for rank in (1, 2, 3, 4)
        if f"/{line[f'class_{rank}']}/" in line["image"]
    ]
    assert -np.log(own).mean() == pytest.approx(record["metrics"]["loss"], abs=5e-6)
    assert sum(float(lines[0][f"probability_{rank}"]) for rank in (1, 2, 3, 4)) == pytest.approx(1, abs=1e-5)
    assert len(lines[0]) == 9  # of four classes there are no five
    assert not any(path.suffix == ".tmp" for path in (tmp_path / "new").iterdir())


def test_averaged_weights_and_a_file_of_any_paper(photo_run, photos, call, tmp_path):
    record = json.loads((photo_run / "metrics.json").read_text())
    found = []
    for model, options in ((photo_run, ()), (photo_run, ("--ema",)), (photo_run / "student_ema.safetensors", ())):
        assert call(vitutor, "predict", model, photos / "val", "--csv", tmp_path / "out.csv", *options)[0] == 0
        found.append(table(tmp_path / "out.csv"))
    plain, averaged, from_file = found
    assert plain != averaged == from_file
    assert 100 * sum(map(is_right, averaged)) / 24 == record["metrics"]["ema_top1"]
    code, _, errors = call(vitutor, "predict", photos, photos / "val")
    assert (code, errors) == (4, f"error: {photos}/student.safetensors: no such weights file\n")


def test_a_teacher_and_an_exported_folder(photo_run, photos, call, tmp_path):
    settings = (f"data.source=folder:{photos}", "data.image_size=16", "train.epochs=1", "train.batch_size=16")
    train_teacher("digits", "cnn", tmp_path / "cnn", settings=settings)
    export_run(photo_run, Targets(tmp_path / "folder"), "toypaper")
    for model, run in ((tmp_path / "cnn", tmp_path / "cnn"), (tmp_path / "folder", photo_run)):
        assert call(vitutor, "predict", model, photos / "val", "--csv", tmp_path / "out.csv")[0] == 0
        right = sum(map(is_right, table(tmp_path / "out.csv")))
        assert 100 * right / 24 == json.loads((run / "metrics.json").read_text())["metrics"]["top1"]


def test_one_image_a_pattern_and_a_papers_own_command(photo_run, photos, call, toypaper):
    image = photos / "val" / "sky" / "0.jpg"
    code, output, errors = call(toypaper, "predict", photo_run, image, "--top", 2)
    assert (code, errors) == (0, "")
    path, _, rest = output.strip().rpartition(": ")
    assert path == str(image)
    first, second = (part.rsplit(" ", 2) for part in rest.split(", "))
    assert {first[0], second[0]} < set(CLASSES)
    assert float(first[1]) > float(second[1])
    assert call(toypaper, "predict", photo_run, f"{photos}/val/s*/0.jpg", "--top", 2)[1] == output


@pytest.mark.filterwarnings("default")
def test_images_that_cannot_be_read_are_named_and_the_others_done(photo_run, photos, call, tmp_path):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    shutil.copyfile(photos / "val" / "sky" / "0.jpg", folder / "good.jpg")
    (folder / "half.jpg").write_bytes((folder / "good.jpg").read_bytes()[:400])
    (folder / "page\x1b[31m.png").write_text("<html>")
    (folder / "notes.txt").write_text("no image")
    (folder / "loop").symlink_to(tmp_path / "in")
    arguments = (tmp_path / "in", folder / "notes.txt", tmp_path / "in" / "deep")
    code, output, errors = call(vitutor, "predict", photo_run, *arguments)
    assert code == 3
    assert [line.partition(": ")[0] for line in output.splitlines()] == [str(folder / "good.jpg")]
    lines = errors.splitlines()
    named = [line for line in lines if "cannot read the image: " in line]
    assert [line.split(": ")[1] for line in named] == [
        str(folder / "half.jpg"),
        f"{folder}/page\\x1b[31m.png",
        str(folder / "notes.txt"),
    ]
    assert lines[-1] == "error: 3 of 4 images cannot be read; for each: repair or remove it"
    assert errors.count("repair or remove it") == 1
    assert f"warning: {tmp_path}/in: files passed over, which are not images: 1" in lines


def test_bad_usage_exits_2_before_the_model_is_loaded(photo_run, photos, call, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, part in (
        ((photo_run,), "Missing argument 'IMAGES...'"),
        ((tmp_path / "none", photos), "does not exist"),
        ((photo_run, tmp_path / "no.jpg"), f"{tmp_path}/no.jpg: no such file or folder, and no file matches it"),
        ((photo_run, tmp_path / "empty"), f"{tmp_path}/empty: no image is in it or below"),
        ((photo_run, photos, "--top", "0"), "--top"),
        ((photo_run, photos, "--csv", tmp_path), "is a directory"),
        ((photo_run, photos, "--device", "gpu"), "runtime.device: 'gpu' is not a device"),
    ):
        code, output, errors = call(vitutor, "predict", *arguments)
        assert (code, output) == (2, "")
        assert part in errors


def test_folders_that_cannot_be_made_are_one_line(photo_run, photos, call, toypaper, tmp_path):
    (tmp_path / "file").touch()
    for name, option in (("predict", "--csv"), ("evaluate", "--out")):
        images = (photos,) if name == "predict" else ()
        code, _, errors = call(toypaper, name, photo_run, *images, option, tmp_path / "file" / "a" / "b")
        assert (code, len(errors.splitlines())) == (6, 1)
        assert f"{tmp_path}/file/a" in errors
        assert "Not a directory" in errors


def test_an_encoder_knows_no_classes(photo_run, photos, call, tmp_path):
    model, card = load_model(photo_run / "student.safetensors")
    save_model(tmp_path / "encoder.safetensors", model, card.model_copy(update={"metrics": {}}))
    code, _, errors = call(vitutor, "predict", tmp_path / "encoder.safetensors", photos)
    assert code == 2
    assert "its head is not trained" in errors


def test_folders_are_read_once_and_hidden_files_passed_over(tmp_path):
    for name in ("b/2.png", "a.png", "b/.hidden.png", ".git/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    expected = [tmp_path / "a.png", tmp_path / "b" / "2.png"]
    assert named_images([str(tmp_path)]) == expected
    assert named_images([f"{tmp_path}/**/*.png", str(tmp_path / "a.png")]) == expected
    (tmp_path / "[x].png").symlink_to(tmp_path / "a.png")  # a name, not a pattern
    assert named_images([f"{tmp_path}/[x].png"]) == [tmp_path / "[x].png"]
    with pytest.raises(ConfigError, match="no file matches"):
        named_images([str(tmp_path / "c.png")])


def test_no_more_than_two_batches_are_in_memory(photo_run, photos, monkeypatch):
    model, card = load_model(photo_run / "student.safetensors")
    read = []
    monkeypatch.setattr(predicting, "read_image", lambda path, _: read.append(path) or Image.open(path).convert("RGB"))
    paths = named_images([str(photos / "val")])
    found = predicting.predict(model, card, paths, batch_size=4, device=torch.device("cpu"))
    next(found)
    assert len(read) <= 8
    assert len(list(found)) == 23


def test_progress_is_shown_of_many_images(photo_run, photos, call, monkeypatch, tmp_path):
    monkeypatch.setattr("vitutor_core.progress._LOG_EVERY_S", 0.0)
    arguments = ("predict", photo_run, photos / "val", "--csv", tmp_path / "out.csv")
    assert "predicting: 12/24" in call(vitutor, *arguments, "--batch", 12)[2]
    assert call(vitutor, *arguments)[2] == ""
    assert json.loads((photo_run / "metrics.json").read_text())["metrics"]["images"] == 24
