from __future__ import annotations

import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vitutor_core.data.types import DataInfo
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models.backbone import create_backbone, freeze_unused, map_reader, plain_map, spread
from vitutor_core.models.pyramid import build_pyramid
from vitutor_core.models.weights import ModelCard, save_model
from vitutor_core.schema import ModelConfig

KWARGS = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}


def info(size: int) -> DataInfo:
    return DataInfo("test", ("a", "b"), size, 3, (0.5,) * 3, (0.5,) * 3, 0, 0, "")


def vit(size: int = 64, name: str = "vit_tiny_patch16_224", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, img_size=size, **(KWARGS | kwargs)).eval().double()


def images(size: int, count: int = 2):
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("depth", "count", "expected"), [(12, 4, (2, 5, 8, 11)), (4, 1, (3,)), (2, 4, (0, 1)), (3, 2, (1, 2))]
)
def test_global_blocks_are_evenly_spaced(depth, count, expected):
    assert spread(depth, count) == expected


@pytest.mark.parametrize("window", [8, 9, 100])
def test_a_window_that_covers_the_map_is_full_attention(window):
    model, pixels = vit(), images(64)
    assert torch.equal(plain_map(model, pixels, window, ()), plain_map(model, pixels, None, ()))


def test_full_attention_without_prefix_tokens_is_timms():
    model = vit(class_token=False, global_pool="avg")
    expected = model.forward_intermediates(images(64), indices=[2], norm=False, intermediates_only=True)[0]
    assert torch.allclose(plain_map(model, images(64), None, ()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("window", [1, 3, 4, 5])
def test_windows_are_each_attended_by_themselves(window, fused):
    model, pixels = vit(), images(64)
    for block in model.blocks:
        block.attn.fused_attn = fused
    tokens = model.patch_embed(pixels) + model.pos_embed[:, 1:]
    grid = tokens.unflatten(1, (8, 8))
    for index, block in enumerate(model.blocks):
        seen = torch.empty_like(grid)
        side = 8 if index == 1 else window
        for top in range(0, 8, side):
            for left in range(0, 8, side):
                part = grid[:, top : top + side, left : left + side]
                seen[:, top : top + side, left : left + side] = block(part.flatten(1, 2)).view(part.shape)
        grid = seen
    found = plain_map(model, pixels, window, (1,))
    assert torch.allclose(found, grid.permute(0, 3, 1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("patch", [8, 16])
def test_the_simple_pyramid_has_strides_from_a_quarter_to_four_times_the_patch(patch):
    model = vit(128, patch_size=patch).float()
    reader = map_reader(model, window=4, global_blocks=1)
    pyramid, strides = build_pyramid(reader.maps, 32)
    levels = pyramid(reader(model, images(128).float()))
    assert strides == tuple(patch * factor // 4 for factor in (1, 2, 4, 8, 16))
    for stride, level in zip(strides, levels.values(), strict=True):
        assert level.shape == (2, 32, 128 // stride, 128 // stride)
    assert list(levels) == ["0", "1", "2", "3", "pool"]


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "cvt_13"])
def test_a_hierarchical_student_has_a_top_down_pyramid(name):
    import vitutor_core.models  # noqa: F401  # registers cvt_13

    model = create_backbone(ModelConfig(name=name), info(64))
    reader = map_reader(model, window=14, global_blocks=4)
    assert not reader.is_plain
    pyramid, strides = build_pyramid(reader.maps, 16)
    assert strides[:-1] == tuple(found.stride for found in reader.maps)
    assert len(strides) > 2
    for stride, level in zip(strides, pyramid(reader(model, images(64).float())).values(), strict=True):
        assert level.shape == (2, 16, math.ceil(64 / stride), math.ceil(64 / stride))


def test_a_model_that_cannot_be_run_is_one_line():
    model = timm.create_model("pit_ti_224", img_size=64)
    reader = map_reader(model, window=None, global_blocks=1)
    with pytest.raises(ConfigError, match=r"no maps of images of 8 px .*; choose another data\.image_size"):
        freeze_unused(model, reader, torch.zeros(1, 3, 8, 8))


def test_a_student_without_maps_is_refused():
    with pytest.raises(ConfigError, match="Linear lists no map of stride 4 to 32"):
        map_reader(nn.Linear(2, 2), window=None, global_blocks=1)


def test_parameters_that_the_maps_do_not_need_are_not_trained():
    model = vit().float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze_unused(model, map_reader(model, window=4, global_blocks=1), torch.zeros(1, 3, 64, 64))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Starting weights


def saved(path, size: int, name: str = "vit_tiny_patch16_224", **kwargs):
    model = vit(size, name, **kwargs).float()
    card = ModelCard(
        name=name,
        kwargs=KWARGS | kwargs | {"img_size": size, "in_chans": 3, "num_classes": model.num_classes},
        class_names=tuple(map(str, range(model.num_classes))),
        image_size=size,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        crop_ratio=1.0,
        interpolation="bilinear",
        method="test",
    )
    save_model(path, model, card)
    return model


def test_positions_are_resampled_and_all_else_is_loaded(tmp_path):
    start = saved(tmp_path / "start.safetensors", 32, num_classes=7)
    config = ModelConfig(name="vit_tiny_patch16_224", kwargs=KWARGS, weights=str(tmp_path / "start.safetensors"))
    with pytest.warns(UserWarning, match="positions resampled from 1 x 17 x 24 to 1 x 65 x 24"):
        model = create_backbone(config, info(64))
    own, theirs = model.state_dict(), start.state_dict()
    beyond = {"pos_embed", "head.weight", "head.bias", "norm.weight", "norm.bias"}
    assert all(torch.equal(own[name], theirs[name]) for name in own.keys() - beyond)
    assert own["head.weight"].shape[0] == 2
    # timm fits a checkpoint to another size itself, when it loads one.
    from timm.models.vision_transformer import checkpoint_filter_fn

    assert torch.equal(own["pos_embed"], checkpoint_filter_fn(dict(theirs), model)["pos_embed"])
    assert torch.equal(own["pos_embed"][:, 0], theirs["pos_embed"][:, 0])
    same = create_backbone(config, info(32)).state_dict()
    assert torch.equal(same["pos_embed"], theirs["pos_embed"])


def test_a_backbone_starts_from_weights_by_other_names(tmp_path):
    start = vit(32).float().state_dict()
    file = tmp_path / "start.safetensors"
    save_file({f"module.{name}": value for name, value in start.items()}, file)
    with pytest.warns(UserWarning, match="start") as said:
        model = create_backbone(ModelConfig(name="vit_tiny_patch16_224", kwargs=KWARGS, weights=str(file)), info(32))
    assert [str(warning.message).partition(": ")[2] for warning in said] == [
        "prefix 'module.' removed",
        "head.weight, head.bias: left as initialised",
    ]
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items() if "head" not in name)


def test_weights_of_another_model_are_refused(tmp_path):
    saved(tmp_path / "start.safetensors", 32, depth=2)
    config = ModelConfig(name="vit_tiny_patch16_224", kwargs=KWARGS, weights=str(tmp_path / "start.safetensors"))
    with pytest.raises(CheckpointError, match=r"start.safetensors: weights of another model \(missing: blocks.2"):
        create_backbone(config, info(32))
    other = config.model_copy(update={"kwargs": KWARGS | {"depth": 2, "num_heads": 2}})
    with pytest.raises(ConfigError, match="trained with 3 heads"):
        create_backbone(other, info(32))
    with pytest.raises(ConfigError, match="say where 'mae' was trained"):
        create_backbone(ModelConfig(name="resnet18", start_row="mae"), info(32))
