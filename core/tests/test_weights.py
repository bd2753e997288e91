from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from conformance.records import made_up_card
from core.tests.train_samples import full_disk, same
from vitutor_core.errors import CheckpointError, ConfigError, ResourceError
from vitutor_core.models.named import named_model
from vitutor_core.models.weights import (
    create_model,
    load_model,
    load_strictly,
    read_card,
    save_model,
    skeleton,
    timm_model,
    weights_sha256,
)
from vitutor_core.schema import ModelConfig

CARD = made_up_card(kwargs={"in_chans": 3}, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), metrics={"top1": 91.5})


def small(num_classes=3):
    torch.manual_seed(0)
    return create_model(ModelConfig(name="resnet8_tiny"), num_classes=num_classes, image_size=16, channels=3)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, small(), CARD)
    return path


def test_equal_models_are_equal_files(tmp_path):
    """Metadata with several keys would come in another order each time."""
    for number in range(12):
        save_model(tmp_path / f"{number}.safetensors", small(), CARD)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def write_evil(path, kind, marker):
    """Write a file that runs code, or would, if it were read carelessly."""
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Evil(marker)}))
    elif kind == "torch":
        torch.save({"model": Evil(marker)}, path)
    elif kind == "huge header":
        path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    elif kind == "zip bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.pkl", b"0" * 10**7)
    else:
        path.write_bytes(b"")


EVIL = ["pickle", "torch", "huge header", "zip bomb", "empty"]


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_nothing_but_safetensors_is_read(tmp_path, kind, suffix):
    path, marker = tmp_path / f"weights{suffix}", tmp_path / "marker"
    write_evil(path, kind, marker)
    with pytest.raises(CheckpointError, match=f"{path}: not a safetensors file; pickled") as caught:
        load_model(path)
    assert caught.value.exit_code == 4
    assert not marker.exists()


def test_the_evil_files_are_evil(tmp_path):
    write_evil(tmp_path / "x", "pickle", tmp_path / "marker")
    pickle.loads((tmp_path / "x").read_bytes())  # noqa: S301  # proves that the test above could fail
    assert (tmp_path / "marker").exists()


def test_round_trip_with_the_card(saved):
    model, card = load_model(saved)
    assert card == CARD
    assert same(model.state_dict(), small().state_dict())
    again = timm.create_model("resnet8_tiny", num_classes=3, checkpoint_path=str(saved))
    assert same(again.state_dict(), small().state_dict())
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_full_disk_keeps_the_file_that_was_there(saved):
    before = saved.read_bytes()
    with full_disk(1000), pytest.raises(ResourceError, match=f"{saved}: cannot write"):
        save_model(saved, small(), CARD)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def start_from(path, classes):
    config = ModelConfig(name="resnet8_tiny", weights=str(path))
    return create_model(config, num_classes=classes, image_size=16, channels=3)


def test_a_model_starts_from_weights_and_keeps_a_fresh_head_for_other_classes(saved, tmp_path):
    assert same(start_from(saved, 3).state_dict(), small().state_dict())
    run = tmp_path / "run"
    run.mkdir()
    (run / "student.safetensors").write_bytes(saved.read_bytes())
    fresh = small(7).state_dict()
    torch.manual_seed(0)  # as `small` does
    started = start_from(run, 7).state_dict()
    assert torch.equal(started["fc.weight"], fresh["fc.weight"])
    assert torch.equal(started["fc.bias"], fresh["fc.bias"])
    body = {name: value for name, value in started.items() if not name.startswith("fc.")}
    assert same(body, {name: value for name, value in small().state_dict().items() if not name.startswith("fc.")})


def test_weights_of_another_model_are_no_start(saved):
    config = ModelConfig(name="resnet18_cifar", weights=str(saved))
    with pytest.raises(CheckpointError, match="weights of another model"):
        create_model(config, num_classes=3, image_size=16, channels=3)
    with pytest.raises(ConfigError, match=r"--set student\.weights=RUN"):
        create_model(ModelConfig(name="resnet8_tiny", start_row="plain"), num_classes=3, image_size=16, channels=3)


def test_a_file_without_a_card_needs_its_architecture(tmp_path):
    save_file(small().state_dict(), tmp_path / "plain.safetensors")
    assert read_card(tmp_path / "plain.safetensors") is None
    with pytest.raises(CheckpointError, match=r"plain\.safetensors: has no model card"):
        load_model(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("text", ["{", "{}", json.dumps(CARD.model_dump(mode="json") | {"unknown": 1})])
def test_a_card_that_is_not_one_is_refused(tmp_path, text):
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"vitutor": text})
    with pytest.raises(CheckpointError, match=r"w\.safetensors: its model card is not readable"):
        read_card(tmp_path / "w.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}/none: no such weights file"):
        read_card(tmp_path / "none")


def test_a_card_that_does_not_fit_its_weights_is_refused(tmp_path):
    save_model(tmp_path / "w.safetensors", small(4), CARD)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: weights of another model \(other shape: fc\.bias"):
        load_model(tmp_path / "w.safetensors")


def test_weights_are_loaded_whole_or_not_at_all():
    tensors = small().state_dict()
    weight = tensors.pop("conv1.weight")
    changed = tensors | {"conv0.weight": weight, "fc.bias": torch.zeros(7)}
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = r"here: .*missing: conv1\.weight; unknown: conv0\.weight; other shape: fc\.bias"
    with pytest.raises(CheckpointError, match=expected):
        load_strictly(model, changed, where="here")
    assert same(model.state_dict(), before)


def test_the_hash_is_of_names_and_values():
    tensors = small().state_dict()
    own = weights_sha256(tensors)
    assert own == weights_sha256(dict(reversed(tensors.items())))
    assert own == weights_sha256({name: value.clone() for name, value in tensors.items()})
    nudged = tensors | {"fc.bias": torch.nextafter(tensors["fc.bias"], torch.ones(3))}
    renamed = {name.replace("fc.", "head."): value for name, value in tensors.items()}
    assert len({own, weights_sha256(nudged), weights_sha256(renamed)}) == 3


def test_the_hash_survives_the_file(saved):
    assert weights_sha256(load_file(saved)) == weights_sha256(small().state_dict())


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("resnet8_tinny", {}, "model 'resnet8_tinny' is not registered with timm; did you mean 'resnet8_tiny'"),
        ("resnet18.no_such_tag", {}, "model 'resnet18.no_such_tag': Invalid pretrained tag"),
        ("vit_tiny_patch16_224", {"embed_dimm": 16}, 'model vit_tiny_patch16_224 with .*"embed_dimm": 16'),
    ],
)
def test_models_that_cannot_be_built_are_config_errors(name, kwargs, expected):
    with pytest.raises(ConfigError, match=expected):
        create_model(ModelConfig(name=name, kwargs=kwargs), num_classes=3, image_size=16, channels=3)


def test_a_download_that_fails_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("vitutor_core.models.weights.fetch", lambda *_: None)
    with pytest.raises(ConfigError, match=r"model resnet18 with .*: no network"):
        create_model(ModelConfig(name="resnet18", pretrained=True), num_classes=3, image_size=16, channels=3)


def test_pretrained_classes_are_known_without_a_download():
    assert named_model("resnet18.a1_in1k").classes == 1000
    assert named_model("resnet8_tiny").classes is None  # there are no weights


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet8_tiny", "cvt_13"])
def test_a_skeleton_is_the_model_without_its_weights_and_draws_nothing(name):
    found, model = skeleton(name, {"num_classes": 3}), timm_model(name, {"num_classes": 3})
    assert {key: (value.shape, value.dtype) for key, value in found.state_dict().items()} == {
        key: (value.shape, value.dtype) for key, value in model.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in found.parameters())
    before = torch.random.get_rng_state()
    skeleton(name, {})
    assert torch.equal(torch.random.get_rng_state(), before)
