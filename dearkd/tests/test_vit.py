from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F

from dearkd.losses import hidden_loss, logit_loss
from dearkd.models import MHCA, Aligner, DearKDVisionTransformer, relative_bias
from vitutor_core.models import read_intermediates

MICRO = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 4,
    "num_heads": 4,
    "mhca_blocks": 3,
    "num_classes": 5,
    "drop_path_rate": 0.0,
}
SIZES = ["tiny", "small", "base"]


def micro(**kwargs) -> DearKDVisionTransformer:
    torch.manual_seed(0)
    return timm.create_model("dearkd_tiny_patch16_224", **{**MICRO, **kwargs}).eval()


def plain(**kwargs) -> nn.Module:
    options = {name: value for name, value in MICRO.items() if name != "mhca_blocks"}
    torch.manual_seed(1)
    return timm.create_model("vit_tiny_patch16_224", **{**options, **kwargs}).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "deit", "rpe", "total", "head_dist", "aligners", "stage_one"),
    [
        ("tiny", 5_717_416, 288, 5_717_704, 193_000, 331_440, 6_242_144),
        ("small", 22_050_664, 288, 22_050_952, 385_000, 657_840, 23_093_792),
        ("base", 86_567_656, 384, 86_568_040, 769_000, 1_310_640, 88_647_680),
    ],
)
def test_parameter_counts(size, deit, rpe, total, head_dist, aligners, stage_one):
    with torch.device("meta"):
        model, plain_deit = (timm.create_model(f"{name}_{size}_patch16_224") for name in ("dearkd", "deit"))
    assert count(model) == total == deit + rpe
    assert count(plain_deit) == deit
    head = nn.Linear(model.num_features, 1000)
    assert count(head) == head_dist
    pairs = [Aligner(model.embed_dim, 448, (28, 28)), Aligner(model.embed_dim, 1232, (14, 14))]
    assert sum(count(aligner) for aligner in pairs) == aligners
    assert total + head_dist + aligners == stage_one
    assert [isinstance(block.attn, MHCA) for block in model.blocks] == [True] * 8 + [False] * 4
    assert model.blocks[0].attn.num_heads == {"tiny": 12, "small": 12, "base": 16}[size]
    assert model.default_cfg["input_size"] == (3, 224, 224)


def test_everything_else_is_deits():
    with torch.device("meta"):
        model, deit = (timm.create_model(f"{name}_tiny_patch16_224") for name in ("dearkd", "deit"))
    assert model.norm.eps == deit.norm.eps == 1e-6
    assert model.blocks[0].attn.qkv.bias is not None
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * index / 11 for index in range(12)])
    assert model.pos_embed.shape == deit.pos_embed.shape == (1, 197, 192)


def test_deit_weights_lack_only_alpha_and_delta():
    model = timm.create_model("dearkd_tiny_patch16_224")
    missing, unexpected = model.load_state_dict(timm.create_model("deit_tiny_patch16_224").state_dict(), strict=False)
    assert set(missing) == {f"blocks.{block}.attn.{name}" for block in range(8) for name in ("alpha", "delta")}
    assert unexpected == []


@pytest.mark.parametrize("mhca_blocks", [0, 3, 4])
def test_without_bias_it_is_timms_vision_transformer(mhca_blocks, images):
    model, reference = micro(mhca_blocks=mhca_blocks), plain()
    with torch.no_grad():
        for parameter in reference.parameters():
            # Large enough that attention depends on content.
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.load_state_dict(reference.state_dict(), strict=False)
    if mhca_blocks:
        assert (model(images) - reference(images)).abs().max() > 0.1
    with torch.no_grad():
        for block in model.blocks[:mhca_blocks]:
            block.attn.alpha.zero_()
    torch.testing.assert_close(model(images), reference(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mhca_blocks", [0, 3])
def test_projections_are_initialised_as_in_a_plain_vit(mhca_blocks):
    model = micro(mhca_blocks=mhca_blocks, embed_dim=96)
    for block in model.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert linear.weight.abs().max() < 0.11
            assert (linear.bias == 0).all()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert all((block.attn.alpha == 1).all() for block in model.blocks[:mhca_blocks])


def test_options_reach_every_block():
    options = {
        "rpe_drop": 0.3,
        "rpe_drop_mode": "element",
        "rpe_init": "int",
        "learn_delta": False,
        "alpha_param": "softplus",
        "value_identity_init": True,
        "attn_impl": "math",
    }
    model = micro(**options, attn_drop_rate=0.2, proj_drop_rate=0.1, reg_tokens=2)
    for block in model.blocks[:3]:
        attention = block.attn
        assert (attention.rpe_drop, attention.rpe_drop_mode, attention.fused_attn) == (0.3, "element", False)
        assert (attention.attn_drop.p, attention.proj_drop.p) == (0.2, 0.1)
        assert attention.num_prefix == 3
        assert torch.equal(attention.delta, torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
        assert not isinstance(attention.delta, nn.Parameter)
        assert torch.equal(attention.qkv.weight[48:], torch.eye(24))
    assert len({id(block.attn.alpha) for block in model.blocks[:3]}) == 3


def test_mistakes():
    with pytest.raises(ValueError, match="mhca_blocks = 5, but the depth is 4"):
        micro(mhca_blocks=5)
    for option in ({"dynamic_img_size": True}, {"patch_drop_rate": 0.5}, {"qk_norm": True}):
        with pytest.raises(ValueError, match="supports none of"):
            micro(**option)
    with pytest.raises(ValueError, match="rpe_init"):
        micro(rpe_init="square")


def test_alpha_and_delta_do_not_decay():
    model = micro()
    own = {f"blocks.{block}.attn.{name}" for block in range(3) for name in ("alpha", "delta")}
    assert own | {"pos_embed", "cls_token"} <= model.no_weight_decay()
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decaying(no_weight_decay) -> set[str]:
        groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=no_weight_decay)
        return {names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]}

    assert decaying(model.no_weight_decay()) == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name not in own | {"pos_embed", "cls_token"}
    }
    # The trap: timm's rule for vectors alone lets delta decay.
    assert "blocks.0.attn.delta" in decaying(set())
    assert "delta" not in " ".join(micro(learn_delta=False).no_weight_decay())


def test_exported_weights_load_with_plain_timm(tmp_path, images):
    model = micro()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    path = tmp_path / "student.safetensors"
    save_file(model.state_dict(), path)
    loaded = timm.create_model("dearkd_tiny_patch16_224", checkpoint_path=str(path), **MICRO).eval()
    assert torch.equal(loaded(images), model(images))
    assert torch.equal(loaded.blocks[1].attn.delta, model.blocks[1].attn.delta)


def test_taps(images):
    model = micro()
    taps = read_intermediates(model, images, features=(0, "blocks.2"))
    assert torch.equal(taps.logits, model(images))
    assert torch.equal(taps.tokens, model.forward_features(images))
    assert [map_.shape for map_ in taps.features] == [(2, 24, 4, 4)] * 2
    attentions = read_intermediates(model, images, attentions=(0, 3)).attentions
    assert [attention.shape for attention in attentions] == [(2, 4, 17, 17)] * 2
    for attention in attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 17), rtol=0, atol=1e-5)
    # At the start content says little, and the heads of an MHCA block look at their offsets.
    positional = model.blocks[0].attn.position_bias().softmax(-1)
    assert (attentions[0] - positional).abs().max() < 0.05
    assert (attentions[1] - 1 / 17).abs().max() < 0.05
    assert all(block.attn.fused_attn for block in model.blocks)


def test_change_of_resolution():
    model = micro()
    model.set_input_size(img_size=(24, 16))
    assert model.blocks[0].attn.grid == (6, 4)
    alpha, delta = model.blocks[0].attn.alpha, model.blocks[0].attn.delta
    assert torch.equal(model.blocks[0].attn.position_bias(), relative_bias(alpha, delta, (6, 4), 1))
    assert model(torch.randn(1, 3, 24, 16)).shape == (1, 5)


def test_training_step_compiles_to_one_graph(images):
    model = micro(depth=2, mhca_blocks=1, rpe_drop=0.0).train()
    targets = torch.tensor([1, 3])

    def loss(images):
        taps = read_intermediates(model, images, features=(0,))
        return F.cross_entropy(taps.logits, targets) + taps.features[0].square().mean()

    expected = loss(images)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(images)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def reached(model: nn.Module) -> set[str]:
    """The blocks and heads that have a gradient, by name, and ``embed`` for what is in front of the blocks."""
    names = {name for name, p in model.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    parts = {".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0] for name in names}
    return {"embed" if part in {"patch_embed", "pos_embed", "cls_token"} else part for part in parts}


def test_hidden_loss_reaches_the_paired_block_and_no_later_one(images):
    model, aligner = micro().train(), Aligner(24, 6, (8, 8))
    (features,) = read_intermediates(model, images, features=(1,)).features
    hidden_loss([aligner(features)], [torch.rand(2, 6, 8, 8)]).backward()
    assert reached(model) == {"embed", "blocks.0", "blocks.1"}
    for block in model.blocks[:2]:
        assert (block.attn.alpha.grad != 0).all()
        assert (block.attn.delta.grad != 0).any()
    assert all((parameter.grad != 0).any() for parameter in aligner.parameters())


def test_logit_loss_reaches_every_block_but_not_the_class_head(images):
    model, head_dist = micro().train(), nn.Linear(24, 5)
    tokens = read_intermediates(model, images).tokens
    logit_loss(head_dist(tokens[:, model.num_prefix_tokens :].mean(1)), torch.randn(2, 5)).backward()
    assert reached(model) == {"embed", *(f"blocks.{index}" for index in range(4)), "norm"}
    assert model.head.weight.grad is None
    assert head_dist.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size", SIZES)
def test_registered_names_take_sizes(size):
    model = timm.create_model(f"dearkd_{size}_patch16_224", **MICRO, in_chans=1)
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 5)
    features = timm.create_model(f"dearkd_{size}_patch16_224", features_only=True, out_indices=(0, 2), **MICRO)
    assert [map_.shape for map_ in features(torch.zeros(1, 3, 16, 16))] == [(1, 24, 4, 4)] * 2
