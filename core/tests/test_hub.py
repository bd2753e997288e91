"""Models by the names of folders and of the Hub, and the way there: against a stand-in that speaks its HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from conformance import forked
from core.tests.hub_stand_in import TOKEN, stand_in
from core.tests.photo_samples import photo_settings
from core.tests.test_teacher import INFO
from core.tests.toy_paper import CODE, environment, write_toy_paper
from core.tests.train_samples import same, tiny_config, weights
from vitutor_core.distill.teacher import load_teacher
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.hub import WEIGHTS, fetch, named_folder
from vitutor_core.jobs.export import Targets, export_run
from vitutor_core.models.weights import create_model
from vitutor_core.runs import weights_file
from vitutor_core.schema import ModelConfig, TeacherConfig
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    return write_toy_paper(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def exported(photo_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_run(photo_run, Targets(folder), "toypaper")
    return folder


def named(name):
    """Return the settings by which a student starts as another model."""
    return f"student.name={name}", "student.kwargs={}", "student.pretrained=true"


def built(name, **changes):
    config = ModelConfig(name=name, pretrained=True, **changes)
    return create_model(config, num_classes=4, image_size=32, channels=3).eval()


def test_a_student_starts_as_the_model_of_an_exported_folder(exported, photo_run):
    model = built(f"local-dir:{exported}")
    assert same(model.state_dict(), weights(photo_run))
    untrained = create_model(ModelConfig(name=f"local-dir:{exported}"), num_classes=2, image_size=16, channels=3)
    assert untrained.blocks[0].attn.num_heads == 2  # the saved arguments, whatever the weights
    assert untrained(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    with pytest.raises(ConfigError, match=r"trained with 2 heads in blocks\.0\.attn, and the model has 4"):
        built(f"local-dir:{exported}", kwargs={"num_heads": 4})
    assert weights_file(f"local-dir:{exported}") == exported / WEIGHTS


def test_a_run_from_a_folder_says_what_it_was_and_what_it_started_from(exported, photos, tmp_path):
    config = tiny_config(*photo_settings(photos), "train.epochs=1", *named(f"local-dir:{exported}"))
    train(config, Supervised.build, label=RunLabel("toypaper", "more", "digits", "test"), out=tmp_path / "run")
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert len(identity["start"]) == 64
    export_run(tmp_path / "run", Targets(tmp_path / "again"), "toypaper")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (exported, tmp_path / "again"))
    assert after["architecture"] == before["architecture"] == "vit_tiny_patch16_224"
    assert after["model_args"] == before["model_args"]


def test_a_teacher_from_a_folder_brings_its_classes_size_and_normalisation(exported, photo_run):
    config = TeacherConfig(model=ModelConfig(name=f"local-dir:{exported}", pretrained=True))
    card = json.loads((exported / "config.json").read_text())["pretrained_cfg"]
    info = replace(INFO, class_names=("leaves", "petals", "roof", "sky"), image_size=16)
    teacher = load_teacher(config, info)
    assert teacher.input == {"image_size": 32, "mean": card["mean"], "std": card["std"]}
    assert same(teacher.model.state_dict(), weights(photo_run))
    with pytest.raises(ConfigError, match="class 0 is 'leaves' for the teacher and 'a' in the data"):
        load_teacher(config, replace(info, class_names=("a", "b", "c", "d")))
    with pytest.raises(ConfigError, match="`recipe` and `model` exclude each other; set one"):
        TeacherConfig.from_mapping({"recipe": "cnn", "model": {"name": "resnet18"}}, where="teacher")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda folder: (folder / "model.safetensors").write_text("x"), "not a safetensors file"),
        (lambda folder: (folder / "config.json").write_text("[]"), "its config.json is not one of timm's"),
        (lambda folder: edit(folder, architecture="nothing_like_it"), "'nothing_like_it' is not registered"),
        (
            lambda folder: edit(folder, model_args={"checkpoint_path": "evil.pth"}),
            "'checkpoint_path' is not an argument",
        ),
        (lambda folder: edit(folder, model_args={"embed_dim": 2**14, "num_heads": 2}), "a larger model"),
        (lambda folder: save_file({"a": torch.zeros(1)}, folder / "model.safetensors"), "Unexpected key"),
    ],
)
def test_a_folder_that_is_none_is_one_line(change, part, exported, tmp_path):
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)
    with pytest.raises((CheckpointError, ConfigError), match=part):
        built(f"local-dir:{tmp_path}")


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def hub_environment(toypaper_folder, address, home, *, token="", **more):
    own = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": token,
    }
    return {**environment(toypaper_folder), **own, **more}


def command(environment, *arguments):
    done = forked.run(CODE, *arguments, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_what_is_pushed_is_a_student_a_teacher_and_a_start(toy_folder, photo_run, photos, exported, tmp_path):
    with stand_in() as hub:
        known = hub_environment(toy_folder, hub.address, tmp_path / "hf", token=TOKEN)
        code, output, errors = command(known, "export", photo_run, "--to", tmp_path / "out", "--push", "me/mine")
        assert code == 0, errors
        assert f"pushed  {hub.address}/me/mine" in output
        assert hub.created["visibility"] == "private"
        assert "Top-1" in hub.message
        assert hub.files.keys() >= {"README.md", "config.json", "model.safetensors"}
        assert hub.files["model.safetensors"] == (exported / "model.safetensors").read_bytes()
        settings = [f"--set={text}" for text in (*photo_settings(photos), "train.epochs=1")]
        start = [f"--set={text}" for text in named("hf-hub:me/mine")]
        code, _, errors = command(known, "train", *settings, *start, "--out", tmp_path / "run")
        assert code == 0, errors
        again = "--set=student.weights=hf-hub:me/mine"
        code, _, errors = command(known, "train", *settings, again, "--out", tmp_path / "other")
        assert code == 0, errors
        assert same(weights(tmp_path / "run"), weights(tmp_path / "other"))
        stranger = hub_environment(toy_folder, hub.address, tmp_path / "hf", token="none")  # noqa: S106
        code, _, errors = command(stranger, "export", photo_run, "--to", tmp_path / "out", "--push", "me/mine")
        assert (code, len(errors.splitlines())) == (2, 1)
        assert "log in with 'hf auth login'" in errors
    code, _, errors = command(known, "train", *settings, *start, "--out", tmp_path / "offline")
    assert code == 0, errors  # what was fetched once is taken from the cache
    assert same(weights(tmp_path / "run"), weights(tmp_path / "offline"))


@pytest.mark.slow
@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_file_to_fetch_is_named_at_once(offline, toy_folder, tmp_path):
    more = {"HF_HUB_OFFLINE": "1"} if offline else {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = []
        threading.Thread(target=hang_up, args=(server, asked), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        lost = hub_environment(toy_folder, address, tmp_path / "hf", **more)
        for name, file in (
            ("hf-hub:me/mine", "me/mine config.json"),
            ("resnet18.a1_in1k", "timm/resnet18.a1_in1k model."),
        ):
            fields = [f"--set={text}" for text in named(name)]
            code, _, errors = command(lost, "train", *fields, "--out", tmp_path / "run")
            assert (code, len(errors.splitlines())) == (4, 1), errors
            assert f"run 'hf download {file}" in errors
    # At most twice for each file, where the library alone asks ten times.
    assert len(asked) in (range(1) if offline else range(1, 5))


def hang_up(server, asked):
    """Close each connection at once, and keep count."""
    with contextlib.suppress(OSError):  # closed by the test
        while True:
            connection, _ = server.accept()
            asked.append(1)
            connection.close()


def test_names_that_are_none():
    assert named_folder("resnet18") is None
    with pytest.raises(ConfigError, match="not the name of a repository"):
        fetch("a/b/c", WEIGHTS)
