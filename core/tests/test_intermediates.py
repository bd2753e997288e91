from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from vitutor_core.errors import ConfigError
from vitutor_core.models import read_intermediates

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
MODELS = {
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "resnet18": {"num_classes": 5},
    "regnety_002": {"num_classes": 5},
    "resnet8_tiny": {"num_classes": 5},
    "convnext_atto": {"num_classes": 5},
}


def build(name: str = "vit_tiny_patch16_224", **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**MODELS[name], **kwargs}).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_one_forward_gives_equal_logits_tokens_and_maps_in_the_order_asked_for(name, images):
    model = build(name)
    names = [entry["module"] for entry in model.feature_info]
    calls = []
    model.get_submodule(names[0]).register_forward_hook(lambda *_: calls.append(None))
    last = len(names) - 1
    taps = read_intermediates(model, images, features=(last, names[1], 0, -1, names[1]))
    assert len(calls) == 1
    assert torch.equal(taps.logits, model(images))
    assert torch.equal(taps.tokens, model.forward_features(images))
    assert torch.equal(model.forward_head(taps.tokens), taps.logits)
    _, maps = model.forward_intermediates(images, indices=list(range(len(names))))
    for found, index in zip(taps.features, (last, 1, 0, last, 1), strict=True):
        assert torch.equal(found, maps[index])
    assert taps.attentions == ()


def test_without_features_it_is_the_plain_forward(images):
    model = build()
    taps = read_intermediates(model, images)
    assert torch.equal(taps.logits, model(images))
    assert torch.equal(taps.tokens, model.forward_features(images))
    assert taps.features == ()


def test_vit_maps_are_the_residual_stream_without_prefix_tokens(images):
    model = build("deit_tiny_distilled_patch16_224")
    outputs = []
    model.blocks[1].register_forward_hook(lambda _m, _i, output: outputs.append(output))
    (found,) = read_intermediates(model, images, features=("blocks.1",)).features
    assert torch.equal(found, outputs[0][:, 2:].transpose(1, 2).reshape(2, 24, 4, 4))


def test_submodules_outside_feature_info_are_hooked(images):
    model = build("resnet18")
    outputs = []
    handle = model.bn1.register_forward_hook(lambda _m, _i, output: outputs.append(output.clone()))
    taps = read_intermediates(model, images, features=("layer2", "bn1", "layer1.0"))
    handle.remove()
    # bn1 is followed by a ReLU that works in place.
    assert torch.equal(taps.features[1], outputs[0])
    assert (taps.features[1] < 0).any()
    assert torch.equal(taps.features[2], model.layer1[0](model.maxpool(F.relu(outputs[0]))))
    assert torch.equal(taps.features[0], read_intermediates(model, images, features=(2,)).features[0])
    assert torch.equal(taps.logits, model(images))
    assert not any(module._forward_hooks for module in model.modules())


class Plain(nn.Module):
    """A model in timm's style without ``forward_intermediates``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stage = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward_features(self, x):
        return self.stage(F.relu(self.stem(x)))

    def forward_head(self, x):
        return self.head(x.mean((2, 3)))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def test_model_without_forward_intermediates(images):
    model = Plain()
    taps = read_intermediates(model, images, features=("stage", "stem"))
    assert torch.equal(taps.features[0], taps.tokens)
    assert torch.equal(taps.features[1], model.stem(images))
    assert torch.equal(taps.logits, model(images))
    with pytest.raises(ConfigError, match="Plain has no feature 1; features: stem, stage, head"):
        read_intermediates(model, images, features=(1,))
    with pytest.raises(ConfigError, match="map"):
        read_intermediates(model, images, features=("head",))


@pytest.mark.parametrize("feature", ["layer9", 5, -6, ""])
def test_unknown_feature_lists_the_valid_ones(feature, images):
    with pytest.raises(ConfigError, match="act1, layer1, layer2, layer3, layer4, or 0 to 4") as caught:
        read_intermediates(build("resnet18"), images, features=(feature,))
    assert repr(feature) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_attention_is_the_softmax_of_the_block(images):
    model = build()
    inputs = {}
    for index in (0, 2):
        model.blocks[index].attn.register_forward_pre_hook(
            lambda _m, args, index=index: inputs.update({index: args[0]})
        )
    taps = read_intermediates(model, images, features=(1,), attentions=(2, 0))
    for found, index in zip(taps.attentions, (2, 0), strict=True):
        attention = model.blocks[index].attn
        q, k, _ = attention.qkv(inputs[index]).reshape(2, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
        reference = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
        assert found.shape == (2, 3, 17, 17)
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-6)
    torch.testing.assert_close(taps.logits, model(images), rtol=0, atol=1e-5)
    assert taps.features[0].shape == (2, 24, 4, 4)
    assert all(block.attn.fused_attn for block in model.blocks)
    assert not any(module._forward_pre_hooks for module in model.blocks[1].modules())


def test_attention_is_read_before_dropout_and_carries_gradients(images):
    model = build(attn_drop_rate=0.5).train()
    (attention,) = read_intermediates(model, images, attentions=(-1,)).attentions
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 17), rtol=0, atol=1e-5)
    attention[..., 0].sum().backward()
    assert model.blocks[2].attn.qkv.weight.grad.abs().sum() > 0
    assert model.blocks[2].attn.proj.weight.grad is None


def test_fused_attention_and_hooks_are_restored_after_an_exception(images):
    model = build()

    def fail(*_):
        raise RuntimeError("broken block")

    handle = model.blocks[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken block"):
        read_intermediates(model, images, features=("blocks.0.mlp",), attentions=(0, 1))
    handle.remove()
    assert all(block.attn.fused_attn for block in model.blocks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        ("resnet18", 0, "it has 0 blocks"),
        ("vit_tiny_patch16_224", 3, "it has 3 blocks"),
    ],
)
def test_models_without_the_attention_asked_for(name, block, message, images):
    with pytest.raises(ConfigError, match=message):
        read_intermediates(build(name), images, attentions=(block,))


def test_attention_that_cannot_be_read_fails_loudly(images):
    with pytest.raises(ConfigError, match="block 0 has no attention map"):
        read_intermediates(timm.create_model("mobilenetv3_small_050"), images, attentions=(0,))
    model = build()
    model.blocks[1].attn.forward = lambda x, **_: x
    with pytest.raises(ConfigError, match="does not pass through attn_drop"):
        read_intermediates(model, images, attentions=(1,))


def test_both_heads_of_the_distilled_vit_come_from_one_forward(images):
    model = build("deit_tiny_distilled_patch16_224").train()
    taps = read_intermediates(model, images)
    label, dist = model.head(taps.tokens[:, 0]), model.head_dist(taps.tokens[:, 1])
    assert torch.equal(taps.logits, (label + dist) / 2)
    model.set_distilled_training(True)
    expected_label, expected_dist = model(images)
    assert torch.equal(label, expected_label)
    assert torch.equal(dist, expected_dist)
    with pytest.raises(ConfigError, match="set_distilled_training"):
        read_intermediates(model, images)


@pytest.mark.parametrize(
    ("name", "features"), [("vit_tiny_patch16_224", (0, "blocks.2")), ("resnet8_tiny", ("layer2",))]
)
def test_compiles_to_one_graph(name, features, images):
    model = build(name)
    compiled = torch.compile(
        lambda x: read_intermediates(model, x, features=features), fullgraph=True, backend="aot_eager", dynamic=False
    )
    expected, found = read_intermediates(model, images, features=features), compiled(images)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
    for a, b in zip(found.features, expected.features, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        taps = read_intermediates(self.model, images, features=(1,), attentions=(0,))
        return taps.logits.square().mean() + taps.features[0].square().mean() + taps.attentions[0].square().mean()


def test_works_inside_distributed_data_parallel(images, tmp_path):
    plain, wrapped = Wrapped(build()), Wrapped(build())
    plain(images).backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        DistributedDataParallel(wrapped)(images).backward()
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-7)
