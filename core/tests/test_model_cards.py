"""A weights file comes from anywhere: what its card says is bounded, reads no file, and runs no code of a stranger."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.tests.test_weights import CARD, Evil, small
from vitutor_core.errors import CheckpointError, ConfigError, VitutorError
from vitutor_core.jobs import models
from vitutor_core.jobs.models import load_any
from vitutor_core.models.weights import create_model, load_model, read_card
from vitutor_core.schema import ModelConfig


def write(path: Path, **changes: Any) -> Path:
    text = json.dumps(CARD.model_dump(mode="json") | changes)
    save_file(small().state_dict(), path / "w.safetensors", metadata={"vitutor": text})
    return path / "w.safetensors"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mean", value) for value in ([], [0.5], [0.5] * 4, [2.0] * 3, [-1.0, 0, 0], "0.5")),
        *(("std", value) for value in ([], [0.0] * 3, [-0.1] * 3, [1e-30] * 3, [1e30] * 3, [None] * 3)),
        *(("image_size", value) for value in (0, -5, 3, 8193, 2**40, 16.5, "16", None)),
        *(("crop_ratio", value) for value in (0, -1, 1e-300, 1.5, 1e300)),
        *(("class_names", value) for value in ([], "abc", [1, 2, 3], None)),
        *(("name", value) for value in ("", "x" * 201, None, 5)),
        *(("method", value) for value in ("x" * 201, None, ["dearkd"])),
        *(("kwargs", value) for value in ({"in_chans": 1}, {"num_classes": 2**40}, {"a": {"b": 1}}, [], None)),
        *(("kwargs", {"depth": value}) for value in (10**9, -(10**9), 1e300, [10**7], [0] * 1001)),
        ("kwargs", {str(number): 0 for number in range(101)}),
        ("metrics", {"top1": "high"}),
        ("interpolation", "lanczos"),
    ],
)
def test_every_field_is_bounded(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w\.safetensors: its model card is not readable \(.*train it again"):
        read_card(write(tmp_path, **{field: value}))


FILES = ["checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"]


@pytest.mark.parametrize("name", [*FILES, "scriptable", "exportable", "no_jit", "pretrained_tag"])
def test_nothing_but_arguments_of_the_model_is_passed_on(name: str, tmp_path: Path) -> None:
    torch.save({"model": Evil(tmp_path / "marker")}, tmp_path / "evil.pth")
    value = str(tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=rf"w\.safetensors: model resnet8_tiny: '{name}' is not an argument"):
        load_model(write(tmp_path, kwargs={name: value}))
    config = ModelConfig(name="resnet8_tiny", kwargs={name: value})
    with pytest.raises(ConfigError, match=f"^model resnet8_tiny: '{name}' is not an argument"):
        create_model(config, num_classes=3, image_size=16, channels=3)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"img_size": 16, "depth": 10**6, "embed_dim": 3}),
        ("vit_tiny_patch16_224", {"img_size": 16, "embed_dim": 999_999}),
        ("vit_tiny_patch16_224", {"img_size": 16, "mlp_ratio": 1e6}),
        ("vit_giant_patch14_224", {}),
        ("resnet152", {}),
    ],
)
def test_a_card_of_a_giant_fills_neither_time_nor_memory(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"w\.safetensors: its model card describes a larger model"):
        load_model(write(tmp_path, name=name, kwargs=kwargs))
    assert time.monotonic() - started < 20
    assert create_model(ModelConfig(name="resnet8_tiny"), num_classes=3, image_size=16, channels=3)  # no limit stays


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 0}),
        ("vit_tiny_patch16_224", {"num_heads": 0}),
        ("vit_tiny_patch16_224", {"depth": -1, "embed_dim": -3}),
        ("vit_tiny_patch16_224", {"norm_layer": "nothing"}),
        ("swin_tiny_patch4_window7_224", {"num_heads": 12}),
        ("swin_tiny_patch4_window7_224", {"depths": ()}),
        ("resnet18", {"block_args": "x"}),
    ],
)
def test_odd_arguments_are_one_line(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(VitutorError, match=r"w\.safetensors: "):
        load_model(write(tmp_path, name=name, kwargs=kwargs))
    with pytest.raises(ConfigError, match=rf"^model {name} with "):
        create_model(ModelConfig(name=name, kwargs=kwargs | {"x": 1}), num_classes=3, image_size=16, channels=3)


@pytest.mark.parametrize(
    "method", ["DearKD", "dear-kd", "dearkd ", "core", "os", "..", "vitutor_core", "", "a\0b", "*"]
)
def test_only_the_exact_name_of_an_installed_paper_is_imported(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda reference: pytest.fail(f"imported {reference}"))
    assert load_any(write(tmp_path, method=method))[1].method == method


def test_an_installed_paper_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(models, "load", imported.append)
    load_any(write(tmp_path, method="dearkd"))
    assert imported == ["dearkd.method:DearKD"]


def test_of_a_composition_each_installed_paper_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(models, "load", imported.append)
    load_any(write(tmp_path, method="vitutor_core+drloc"))
    assert imported == ["drloc.method:DRLocMethod"]
