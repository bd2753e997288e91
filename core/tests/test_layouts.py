"""Checkpoints by their authors' names give the logits of their authors' networks; the tables leave no name out."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from core.tests.published import Official, assert_close, cvt, listing_sha256, rednet, swin, t2t, vit
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models.convert import Classes, convert
from vitutor_core.models.fit import fit
from vitutor_core.models.layouts import CVT, REDNET, SWIN, T2T, layouts

TINY = "deit_tiny_patch16_224"
FAMILIES = {
    "DeiT": (vit, 224, TINY),
    "DeiT distilled": (lambda w, x: vit(w, x, distilled=True), 224, "deit_tiny_distilled_patch16_224"),
    "RedNet": (rednet, 64, "rednet26"),
    "CvT": (cvt, 64, "cvt_13"),
    "T2T-ViT": (t2t, 224, "t2t_vit_14"),
}
SMALL_SWIN = {"embed_dim": 24, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 4, "img_size": 64}


def images(side, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def published():
    """The state dict and the logits of each family, computed once."""
    found = {}
    for family, (network, side, _) in FAMILIES.items():
        weights = Official()
        with torch.no_grad():
            found[family] = weights, network(weights, images(side))
    return found


def logits_of(converted, side):
    with torch.no_grad():
        return converted.model.double().eval()(images(side))


DIGESTS = {
    "DeiT": "f67d4b872e4c717d05d44aa88a8a78eb6fd3dfc2851f8471de44a2804701abc2",
    "DeiT distilled": "9a8825a605d6b6985707b3398d36fe92095890d3021ace9ab0c1efaf349fd85c",
    "RedNet": "9e747d269057e800e097649c2c43b6ed4cffccae22c2fc21a260644c1d07d3b1",
    "CvT": "2733610ec7422453e13df4fcf332f9f69968bdd0fae741d75397da40f8bfd012",
    "T2T-ViT": "6d94e69df3d8440535bfa3892f30427235cb22fabff227b403988d8579aef6cb",
}
"""Of the sorted lines "name [shape]" of released files."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_networks_here_have_the_names_and_shapes_of_the_released_files(published, family):
    assert listing_sha256(published[family][0]) == DIGESTS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_published_weights_give_the_published_logits(published, family):
    weights, expected = published[family]
    _, side, name = FAMILIES[family]
    found = convert(weights, where="file")
    assert found.card.name == name
    assert (found.beside, len(found.notes), len(found.card.class_names)) == ({}, 1, 1000)
    assert found.card.class_names[:2] == ("n01440764", "n01443537")
    assert_close(logits_of(found, side), expected)


def test_swin_merges_its_patches_at_the_start_of_a_stage():
    weights = Official()
    with torch.no_grad():
        expected = swin(weights, images(64), width=24, depths=(2, 2, 1, 1), heads=(1, 2, 2, 2), window=4, classes=5)
    found = convert(
        weights, where="file", name="swin_tiny_patch4_window7_224", kwargs=SMALL_SWIN, classes=Classes("abcde")
    )
    assert_close(logits_of(found, 64), expected)
    assert found.notes[0].startswith("Swin: swin_tiny_patch4_window7_224, 5 classes")


@pytest.mark.parametrize(
    ("layout", "family"), [(REDNET, "RedNet"), (CVT, "CvT"), (T2T, "T2T-ViT")], ids=["RedNet", "CvT", "T2T-ViT"]
)
def test_every_rule_of_a_table_is_used_and_every_name_is_known(published, layout, family):
    names = list(published[family][0])
    first = {next((rule for rule in layout.renames if re.match(rule[0], name)), None) for name in names}
    assert first - {None} == set(layout.renames)
    own, beside = layout.read(published[family][0])
    model = timm.create_model(FAMILIES[family][2])
    assert own.keys() == model.state_dict().keys()
    assert not beside


def test_every_rule_of_swin_is_used():
    names = [f"layers.{stage}.downsample.norm.weight" for stage in range(3)]
    assert [SWIN.rename(name) for name in [*names, "head.weight"]] == [
        "layers.1.downsample.norm.weight",
        "layers.2.downsample.norm.weight",
        "layers.3.downsample.norm.weight",
        "head.fc.weight",
    ]


def test_no_published_architecture_is_unknown_to_timm():
    for layout in layouts():
        for name, _ in layout.models:
            assert timm.is_model(name)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "backbone.", "_orig_mod.", "module.model.", "module._orig_mod."]
)
def test_a_prefix_of_all_names_is_removed(published, prefix):
    weights, _ = published["DeiT"]
    wrapped = {f"{prefix}{name}": value for name, value in weights.items()}
    found = convert(wrapped, where="file", name=TINY)
    assert found.notes[1:] == (f"prefix '{prefix}' removed",)
    assert all(torch.equal(value, weights[name]) for name, value in found.model.state_dict().items())


@pytest.mark.parametrize("change", ["one without", "another prefix"])
def test_a_prefix_of_some_names_is_none(published, change):
    weights, _ = published["DeiT"]
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    if change == "one without":
        wrapped["cls_token"] = wrapped.pop("module.cls_token")
    else:
        wrapped = {f"net.{name}": value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"file: weights of another model \(missing: blocks\.0\.attn\.proj\.bias"):
        convert(wrapped, where="file", name=TINY)


def test_positions_are_resampled_for_another_size(published):
    """A linear ramp over the patches stays one, away from the border; class tokens keep their position."""
    weights = dict(published["DeiT distilled"][0])
    ramp = torch.linspace(-1, 1, 14).view(14, 1, 1).expand(14, 14, 192).reshape(1, 196, 192)
    weights["pos_embed"] = torch.cat([weights["pos_embed"][:, :2], ramp], dim=1)
    found = convert(weights, where="file", name="deit_tiny_distilled_patch16_224", image_size=448)
    assert found.notes[1:] == ("positions resampled from 1 x 198 x 192 to 1 x 786 x 192",)
    assert found.card.image_size == found.card.kwargs["img_size"] == 448
    positions = found.model.pos_embed.detach()
    assert torch.equal(positions[:, :2], weights["pos_embed"][:, :2])
    grid = positions[:, 2:].unflatten(1, (28, 28))
    expected = (((torch.arange(28) + 0.5) / 2 - 0.5) * 2 / 13 - 1).view(28, 1, 1).expand(28, 28, 192)
    torch.testing.assert_close(grid[0, 4:-4], expected[4:-4], rtol=0, atol=1e-5)
    assert found.model.eval()(torch.randn(1, 3, 448, 448)).shape == (1, 1000)


def test_the_size_of_the_file_is_found_by_its_positions(published):
    weights = dict(published["DeiT"][0])
    weights["pos_embed"] = torch.zeros(1, 1 + 24**2, 192)
    found = convert(weights, where="file", name=TINY)
    assert (found.card.image_size, found.card.kwargs) == (384, {"img_size": 384})
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("hiera_tiny_224", {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}),
        ("samvit_base_patch16", {"embed_dim": 16, "depth": 1, "num_heads": 2}),
    ],
)
def test_positions_that_are_no_sequence_of_a_known_grid_are_refused_at_another_size(name, kwargs):
    one, other = (timm.create_model(name, img_size=side, num_classes=0, **kwargs) for side in (64, 128))
    with pytest.raises(CheckpointError, match=r"other shape: .*pos_embed"):
        fit(one.state_dict(), other, where="file")


def test_relative_position_biases_are_resampled_for_another_window():
    weights = Official()
    with torch.no_grad():
        swin(weights, images(64, 1), width=24, depths=(2, 2, 1, 1), heads=(1, 2, 2, 2), window=4, classes=5)
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    weights[name] = torch.full_like(weights[name], 0.25)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=5, **{**SMALL_SWIN, "window_size": 8, "img_size": 128}
    )
    found = fit(weights, model, where="file")
    assert found.changed[0] == "relative position biases resampled from 49 x 1 to 225 x 1"
    assert found.layout == "Swin"
    torch.testing.assert_close(found.tensors[name], torch.full((225, 1), 0.25))
    model.load_state_dict(found.tensors)


def test_of_relative_position_biases_those_of_a_class_token_stay():
    kwargs = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "num_classes": 0}
    one, other = (timm.create_model("beit_base_patch16_224", img_size=side, **kwargs) for side in (32, 64))
    name = "blocks.0.attn.relative_position_bias_table"
    weights = one.state_dict()
    weights[name] = torch.cat([torch.full((49, 2), 0.25), torch.arange(6.0).view(3, 2)])
    found = fit(weights, other, where="file")
    assert found.changed == ("relative position biases resampled from 52 x 2 to 228 x 2",)
    torch.testing.assert_close(found.tensors[name][:-3], torch.full((225, 2), 0.25))
    assert torch.equal(found.tensors[name][-3:], weights[name][-3:])
    other.load_state_dict(found.tensors)


def test_counters_may_be_missing_or_left_over(published):
    weights, _ = published["RedNet"]
    fewer = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    assert convert(fewer, where="file", name="rednet26").notes[1:] == ("num_batches_tracked: left as initialised",)
    more = {f"module.{name}": value for name, value in weights.items()} | {"module.n_averaged": torch.tensor(5)}
    assert convert(more, where="file", name="rednet26").notes[1:] == ("prefix 'module.' removed",)


def test_a_missing_head_gives_an_encoder(published):
    weights = {name: value for name, value in published["DeiT"][0].items() if not name.startswith("head.")}
    found = convert(weights, where="file", name=TINY)
    assert (found.card.class_names, found.card.kwargs) == ((), {"num_classes": 0, "img_size": 224})
    assert not found.card.classifies


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("norm.weight"), r"missing: norm\.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unknown: extra"),
        (lambda w: w.update({"norm.weight": torch.zeros(7)}), r"other shape: norm\.weight 7, not 192"),
        (lambda w: w.update({"norm.weight": torch.zeros(192, dtype=torch.int8)}), r"other shape: norm\.weight"),
        (lambda w: w.update({"head.bias": torch.zeros(7)}), r"other shape: head\.bias 7, not 1000"),
        (lambda w: w.update(pos_embed=torch.zeros(1, 100, 192)), "other shape: pos_embed 1 x 100 x 192"),
        (lambda w: w.update(pos_embed=torch.zeros(1)), "other shape: pos_embed 1, not 1 x 197 x 192"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(192)}), r"unknown: model\.norm\.weight"),
    ],
)
def test_whatever_else_does_not_fit_is_refused_with_its_name(published, change, expected):
    weights = dict(published["DeiT"][0])
    change(weights)
    with pytest.raises(CheckpointError, match=f"file: weights of another model .*{expected}"):
        convert(weights, where="file", name=TINY)


def test_of_weights_that_are_nobodys_the_closest_architecture_is_named(published):
    weights = dict(published["DeiT"][0])
    del weights["blocks.3.mlp.fc1.weight"]
    expected = rf"missing: blocks\.3\.mlp\.fc1\.weight\); {TINY} is the closest of those known: name the right one with"
    with pytest.raises(CheckpointError, match=expected):
        convert(weights, where="file")


def test_half_precision_is_stored_as_single(published):
    half = {name: value.half() if value.is_floating_point() else value for name, value in published["DeiT"][0].items()}
    found = convert(half, where="file", name=TINY)
    assert found.notes[1:] == ("float16 stored as float32",)
    assert {value.dtype for value in found.model.state_dict().values()} == {torch.float32}


def test_classes_are_asked_for_where_they_are_not_those_of_imagenet(published):
    weights = dict(published["DeiT"][0])
    weights |= {"head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)}
    with pytest.raises(ConfigError, match="its head has 3 classes; name them with --source or --classes"):
        convert(weights, where="file", name=TINY)
    with pytest.raises(ConfigError, match="its head has 3 classes, and 2 are named"):
        convert(weights, where="file", name=TINY, classes=Classes("ab"))
    assert convert(weights, where="file", name=TINY, classes=Classes("abc")).card.class_names == ("a", "b", "c")


def test_a_named_architecture_takes_what_shapes_do_not_tell(published):
    weights, expected = published["DeiT"]
    found = convert(weights, where="file", name="vit_tiny_patch16_224", kwargs={"num_heads": 12})
    assert "12 heads" in found.notes[0]
    assert found.card.kwargs["num_heads"] == 12
    assert not torch.allclose(logits_of(found, 224), expected)
    with pytest.raises(ConfigError, match="model 'deit_tinny' is not registered"):
        convert(weights, where="file", name="deit_tinny")
