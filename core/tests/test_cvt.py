"""CvT against values of published implementations, and as a timm model."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import Mlp
from torch import Tensor, nn

from vitutor_core.errors import ConfigError
from vitutor_core.models.cvt import Block, ConvAttention, CvT, Embedding, StdNorm
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.weights import create_model
from vitutor_core.schema import ModelConfig

GOLDEN = Path(__file__).parent / "golden"
TINY = {"dims": (8, 12, 24), "depths": (1, 1, 2), "num_heads": (1, 2, 3), "mlp_ratio": 2.0, "num_classes": 5}
FLAVOURS = ("original", "avg_pool")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("flavour", "classes", "parameters"),
    [
        ("original", 1000, 19_997_480),
        ("avg_pool", 1000, 19_936_296),
        ("avg_pool", 100, 19_589_796),
        ("avg_pool", 10, 19_555_146),
    ],
)
def test_parameter_counts(flavour, classes, parameters):
    with torch.device("meta"):
        assert count(timm.create_model("cvt_13", flavour=flavour, num_classes=classes)) == parameters


# --- the original flavour: Hugging Face transformers 5.23.0


def test_transformers_cvt_with_transferred_weights():
    """CvtForImageClassification of transformers 5.23.0, in double precision, with random weights and statistics.

    Its embed_dim is [6, 12, 18], num_heads [1, 2, 3], depth [1, 2, 3], mlp_ratio 2, num_labels 5; images are 40 x 56.
    It activates with GELU where the authors' release has x * sigmoid(1.702 x).
    """
    tensors = load_file(GOLDEN / "cvt_transformers.safetensors")
    kwargs = {"dims": (6, 12, 18), "depths": (1, 2, 3), "num_heads": (1, 2, 3), "mlp_ratio": 2.0, "act_layer": "gelu"}
    model = CvT(num_classes=5, **kwargs)
    given = {ours: tensors[theirs] for ours, theirs in _transformers_names(model.state_dict())}
    assert len(given) + 5 == len(tensors)  # the others are one input and four outputs
    model.load_state_dict(given)
    model = model.double().eval()
    tokens, maps = model.forward_intermediates(tensors["input.images"].double())
    assert_close(model.forward_head(tokens), tensors["expected.logits"])
    for index, map_ in enumerate(maps):
        assert_close(map_, tensors[f"expected.stage{index}"])


def _transformers_names(ours):
    parts = {"q": "query", "k": "key", "v": "value"}
    for name in ours:
        if name.endswith("num_batches_tracked"):
            continue
        words = name.split(".")
        if words[0] == "embeddings":
            kind = {"conv": "projection", "norm": "normalization"}[words[2]]
            yield name, f"cvt.encoder.stages.{words[1]}.embedding.convolution_embeddings.{kind}.{words[3]}"
        elif words[0] == "stages":
            layer = f"cvt.encoder.stages.{words[1]}.layers.{words[3]}"
            rest = words[4:]
            if rest[0] == "attn" and rest[1] == "proj":
                yield name, f"{layer}.attention.output.dense.{rest[2]}"
            elif rest[0] == "attn" and rest[1].startswith("conv_"):
                kind = {"0": "convolution", "1": "normalization"}[rest[2]]
                convolution = f"convolution_projection_{parts[rest[1][-1]]}.convolution_projection"
                yield name, f"{layer}.attention.attention.{convolution}.{kind}.{rest[3]}"
            elif rest[0] == "attn":
                yield name, f"{layer}.attention.attention.projection_{parts[rest[1]]}.{rest[2]}"
            elif rest[0] == "mlp":
                yield name, f"{layer}.{ {'fc1': 'intermediate', 'fc2': 'output'}[rest[1]] }.dense.{rest[2]}"
            else:
                yield name, f"{layer}.layernorm_{ {'norm1': 'before', 'norm2': 'after'}[rest[0]] }.{rest[1]}"
        else:
            heads = {"cls_token": "cvt.encoder.stages.2.cls_token", "norm": "layernorm", "head": "classifier"}
            yield name, ".".join([heads[words[0]], *words[1:]])


def test_the_original_activates_with_quick_gelu():
    torch.manual_seed(0)
    model, images = CvT(**TINY).eval(), torch.randn(1, 3, 32, 32)
    mlp = model.stages[0].blocks[0].mlp
    hidden = mlp.fc1(torch.randn(2, 8))
    torch.testing.assert_close(mlp.act(hidden), hidden * torch.sigmoid(1.702 * hidden))
    gelu = CvT(**TINY, act_layer="gelu").eval()
    gelu.load_state_dict(model.state_dict())
    assert not torch.equal(model(images), gelu(images))


# --- the flavour without class token: values of the implementation that the DRLoc authors used


def attention_of(case: dict[str, Tensor]) -> ConvAttention:
    attention = ConvAttention(10, 2, head_dim=3, scale=3**-0.5, shared_kv=True).double()
    names = {"0.weight": "w_{}_dw", "1.weight": "bn_{}_w", "1.bias": "bn_{}_b"}
    names |= {"1.running_mean": "bn_{}_mean", "1.running_var": "bn_{}_var"}
    state = {f"conv_q.{ours}": case[theirs.format("q")] for ours, theirs in names.items()}
    state |= {f"conv_k.{ours}": case[theirs.format("kv")] for ours, theirs in names.items()}
    k, v = case["w_kv"].chunk(2)
    state |= {"q.weight": case["w_q"], "k.weight": k, "v.weight": v, "proj.weight": case["w_o"]}
    attention.load_state_dict(state | {"proj.bias": case["b_o"]})
    return attention


def gradients_of(attention: ConvAttention) -> dict[str, Tensor]:
    conv_q, conv_kv = attention.conv_q, attention.conv_k
    return {
        "w_q_dw": conv_q[0].weight.grad,
        "bn_q_w": conv_q[1].weight.grad,
        "bn_q_b": conv_q[1].bias.grad,
        "w_q": attention.q.weight.grad,
        "w_kv_dw": conv_kv[0].weight.grad,
        "bn_kv_w": conv_kv[1].weight.grad,
        "bn_kv_b": conv_kv[1].bias.grad,
        "w_kv": torch.cat([attention.k.weight.grad, attention.v.weight.grad]),
        "w_o": attention.proj.weight.grad,
        "b_o": attention.proj.bias.grad,
    }


def tokens_of(map_: Tensor) -> Tensor:
    return map_.flatten(2).transpose(1, 2)


def map_of(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])


def test_golden_attention():
    case = load_file(GOLDEN / "cvt_attention.safetensors")
    attention, x = attention_of(case).eval(), case["x"].requires_grad_()
    y = map_of(attention(tokens_of(x), (5, 7)), x)
    assert_close(y, case["y"])
    (y * case["grad_out"]).sum().backward()
    assert_close(x.grad, case["grad_x"])
    for name, gradient in gradients_of(attention).items():
        assert_close(gradient, case[f"grad_{name}"])
    assert_close(map_of(attention.train()(tokens_of(x), (5, 7)), x), case["y_train"])


def test_golden_block():
    case = load_file(GOLDEN / "cvt_block.safetensors")
    mlp, norms = Mlp(10, 40).double(), (StdNorm(10).double(), StdNorm(10).double())
    mlp.load_state_dict({f"fc{i}.{kind}": case[f"{kind[0]}_{i}"] for i in (1, 2) for kind in ("weight", "bias")})
    for number, norm in enumerate(norms, 1):
        norm.load_state_dict({"weight": case[f"ln{number}_w"], "bias": case[f"ln{number}_b"]})
    block, x = Block(attention_of(case), mlp, norms).eval(), case["x"].requires_grad_()
    y = map_of(block(tokens_of(x), (5, 7)), x)
    assert_close(y, case["y"])
    (y * case["grad_out"]).sum().backward()
    gradients = gradients_of(block.attn)
    for number, norm in enumerate(norms, 1):
        gradients |= {f"ln{number}_w": norm.weight.grad, f"ln{number}_b": norm.bias.grad}
        linear = getattr(mlp, f"fc{number}")
        gradients |= {f"w_{number}": linear.weight.grad, f"b_{number}": linear.bias.grad}
    for name, gradient in {**gradients, "x": x.grad}.items():
        assert_close(gradient, case[f"grad_{name}"])


def test_golden_embedding():
    case = load_file(GOLDEN / "cvt_token_embedding.safetensors")
    stem = CvT(**TINY | {"dims": (9, 12, 24), "num_heads": (1, 2, 3)}, flavour="avg_pool").embeddings[0].double()
    stem.conv.load_state_dict({"weight": case["w_e"], "bias": case["b_e"]})
    stem.norm.load_state_dict({"weight": case["ln_w"], "bias": case["ln_b"]})
    tokens, grid = stem(case["x"])
    assert grid == (6, 10)
    assert_close(map_of(tokens, case["y"]), case["y"])


# --- as a timm model


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_maps_and_logits(flavour):
    torch.manual_seed(0)
    model, images = CvT(**TINY, flavour=flavour).eval(), torch.randn(2, 3, 32, 48)
    tokens, maps = model.forward_intermediates(images)
    assert [map_.shape for map_ in maps] == [(2, 8, 8, 12), (2, 12, 4, 6), (2, 24, 2, 3)]
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16]
    assert torch.equal(model.forward_head(tokens), model(images))
    taps = read_intermediates(model, images, features=[-1, "stages.0"])
    assert torch.equal(taps.features[0], maps[-1])
    assert torch.equal(taps.features[1], maps[0])
    assert torch.equal(taps.tokens, tokens)
    (normed,) = model.forward_intermediates(images, indices=[2], norm=True, intermediates_only=True)
    assert torch.equal(tokens_of(normed), tokens[:, model.num_prefix_tokens :])
    early = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[0])
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_the_class_token_bypasses_the_convolutions():
    torch.manual_seed(0)
    attention = ConvAttention(6, 2, head_dim=3, scale=0.3, shared_kv=False).eval()
    with torch.no_grad():
        attention.q.weight.zero_(), attention.q.bias.zero_()
    tokens = torch.randn(1, 1 + 20, 6)
    convolved = attention.conv_v(map_of(tokens[:, 1:], torch.empty(1, 1, 4, 5)))
    # With queries of zero every key weighs the same, the class token's own among them.
    values = attention.v(torch.cat([tokens[:, :1], tokens_of(convolved)], dim=1))
    expected = attention.proj(values.mean(dim=1))
    torch.testing.assert_close(attention(tokens, (4, 5)), expected[:, None].expand(-1, 21, -1))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_native_small_images_give_a_4x4_grid(flavour):
    model = timm.create_model("cvt_13", **TINY, flavour=flavour, kernels=(3, 3, 3), strides=(1, 2, 2))
    (map_,) = model.forward_intermediates(torch.randn(2, 3, 16, 16), indices=[-1], intermediates_only=True)
    assert map_.shape == (2, 24, 4, 4)


def test_stochastic_depth_is_in_the_last_stage():
    rates = [
        [getattr(block.drop_path, "drop_prob", 0.0) for block in stage.blocks]
        for stage in CvT(**TINY | {"depths": (1, 2, 3)}).stages
    ]
    assert rates == [[0.0], [0.0, 0.0], pytest.approx([0.0, 0.05, 0.1])]
    plain = CvT(**TINY, flavour="avg_pool")
    assert not [module for module in plain.modules() if type(module).__name__ == "DropPath"]


def test_created_by_config_and_refused_by_name():
    config = ModelConfig(name="cvt_13", kwargs={**TINY, "flavour": "avg_pool"})
    model = create_model(config, num_classes=7, image_size=32, channels=1)
    assert model.head.out_features == 5  # as the config says
    model.reset_classifier(3)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ConfigError, match="original, avg_pool"):
        create_model(ModelConfig(name="cvt_13", kwargs={"flavour": "other"}), num_classes=7, image_size=32, channels=3)


def test_embedding_is_a_convolution_then_a_norm():
    embedding = Embedding(3, 4, 3, 2, 1, nn.LayerNorm(4))
    images = torch.randn(1, 3, 6, 8)
    tokens, grid = embedding(images)
    assert grid == (3, 4)
    torch.testing.assert_close(tokens, embedding.norm(embedding.conv(images).permute(0, 2, 3, 1)).flatten(1, 2))
