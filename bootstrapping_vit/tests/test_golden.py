"""Agreement with the modules that were released with the paper, in double and single precision."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import timm
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import nn

from bootstrapping_vit.losses import MutualTerm, agent_loss, feature_decay, feature_loss, mutual_term, vit_loss
from bootstrapping_vit.models.agent import AgentBlock, AgentCNN, res_stem
from bootstrapping_vit.models.conv import Conv, shared_conv, tapped_conv
from bootstrapping_vit.models.pair import share_weights
from bootstrapping_vit.models.sparse import EntmaxAttention
from bootstrapping_vit.models.vit import build_vit
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.train import optim
from vitutor_core.train.method import Clock, StepOutput
from vitutor_core.train.sam import SharpnessAware


def set_weights(module, **tensors):
    """Copy tensors into parameters and buffers by name; matrices become 1x1 convolutions where those are wanted."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value.view_as(own[name]))


def check_gradients(case, module, names, prefix="grad_"):
    parameters = dict(module.named_parameters())
    for name, of_case in names.items():
        case.check(parameters[name].grad, prefix + of_case)


@pytest.mark.parametrize("name", ["conv_own_h9", "conv_own_h6"])
def test_conv(golden, name):
    case = golden(name)
    x, weight, bias = case.leaf("x"), case.leaf("w_taps"), case.leaf("b")
    y = tapped_conv(x, weight, bias)
    (y * case["grad_out"]).sum().backward()
    case.check(y, "y")
    for tensor, gradient in ((x, "grad_x"), (weight, "grad_w_taps"), (bias, "grad_b")):
        case.check(tensor.grad, gradient)
    case.check(nn.functional.conv2d(case["x"], case["kernel"], case["b"], padding=1), "y")


@pytest.mark.parametrize(("name", "heads"), [("conv_shared_h9", 9), ("conv_shared_h6", 6)])
def test_shared_conv(golden, name, heads):
    case = golden(name)
    x, w_qkv, w_o, b_o = (case.leaf(key) for key in ("x", "w_qkv", "w_o", "b_o"))
    y = shared_conv(x, w_qkv[2 * len(w_o) :], w_o, b_o, heads)
    (y * case["grad_out"]).sum().backward()
    case.check(y, "y")
    for tensor, gradient in ((x, "grad_x"), (w_qkv, "grad_w_qkv"), (w_o, "grad_w_o"), (b_o, "grad_b_o")):
        case.check(tensor.grad, gradient)


VIT_NAMES = {
    "norm1.weight": "ln1_w",
    "norm1.bias": "ln1_b",
    "attn.qkv.weight": "w_qkv",
    "attn.qkv.bias": "b_qkv",
    "attn.proj.weight": "w_o",
    "attn.proj.bias": "b_o",
    "norm2.weight": "ln2_w",
    "norm2.bias": "ln2_b",
    "mlp.fc1.weight": "w_1",
    "mlp.fc1.bias": "b_1",
    "mlp.fc2.weight": "w_2",
    "mlp.fc2.bias": "b_2",
}


@pytest.mark.parametrize(("eps", "expected"), [(1e-5, "y"), (1e-6, "y_eps1e6")])
def test_vit_block(golden, eps, expected):
    case = golden("vit_block")
    model = build_vit(embed_dim=18, depth=1, num_heads=6, img_size=16, patch_size=8, num_classes=2, norm_eps=eps)
    block: Block = model.blocks[0].to(case.dtype).eval()
    set_weights(block, **{name: case[of_case] for name, of_case in VIT_NAMES.items()})
    x = case.leaf("x")
    y = block(x)
    case.check(y, expected)
    if expected == "y":
        (y * case["grad_out"]).sum().backward()
        case.check(x.grad, "grad_x")
        check_gradients(case, block, VIT_NAMES)


AGENT_NAMES = {
    "conv.weight": "w_taps",
    "conv.bias": "b",
    "norm1.weight": "bn1_w",
    "norm1.bias": "bn1_b",
    "mlp.fc1.weight": "w_1",
    "mlp.fc1.bias": "b_1",
    "mlp.fc2.weight": "w_2",
    "mlp.fc2.bias": "b_2",
    "norm2.weight": "bn2_w",
    "norm2.bias": "bn2_b",
}
STATISTICS = {f"norm{n}.running_{kind}": f"bn{n}_{kind}" for n in (1, 2) for kind in ("mean", "var")}


@pytest.mark.parametrize(("name", "heads"), [("agent_block_prenorm", 9), ("agent_block_postnorm", 6)])
def test_agent_block(golden, name, heads):
    case = golden(name)
    block = AgentBlock(12, Conv(12, heads), Mlp(12, 48, use_conv=True), pre_norm=heads == 9).to(case.dtype).eval()
    set_weights(block, **{ours: case[theirs] for ours, theirs in (AGENT_NAMES | STATISTICS).items()})
    x = case.leaf("x")
    y = block(x)
    (y * case["grad_out"]).sum().backward()
    case.check(y, "y")
    case.check(x.grad, "grad_x")
    check_gradients(case, block, AGENT_NAMES)
    case.check(block.train()(case["x"]), "y_train")
    for ours, theirs in STATISTICS.items():
        case.check(block.get_buffer(ours), f"{theirs}_after")


STEM_NAMES = {"0.weight": "w_c1", "1.weight": "bn_w", "1.bias": "bn_b", "4.weight": "w_c2", "4.bias": "b_c2"}
STEM_STATISTICS = {"1.running_mean": "bn_mean", "1.running_var": "bn_var"}


def test_stem(golden):
    case = golden("stem_res_like")
    stem = res_stem(3, 11, 10, 16).to(case.dtype).eval()
    set_weights(stem, **{ours: case[theirs] for ours, theirs in (STEM_NAMES | STEM_STATISTICS).items()})
    case.check(stem(case["x"]), "y")
    case.check(stem.train()(case["x"]), "y_train")


def as_map(tokens, grid):
    """Patch tokens (B, 1 + n, d) on their grid, without the class token."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize(
    ("name", "grid"),
    [("feature_loss_equal", (5, 7)), ("feature_loss_agent_x4", (5, 7)), ("feature_loss_vit_x4", (10, 14))],
)
def test_feature_loss(golden, name, grid):
    case = golden(name)
    f_vit, f_agent = case.leaf("f_vit"), case.leaf("f_agent")
    loss = feature_loss(as_map(f_vit, grid), f_agent)
    loss.backward()
    case.check(loss, "loss")
    case.check(f_vit.grad, "grad_f_vit")
    assert f_agent.grad is None


def test_mutual(golden):
    case = golden("mutual_kd")
    z_vit, z_agent = case.leaf("z_vit"), case.leaf("z_agent")
    of_vit = mutual_term(z_vit, z_agent, case["label"], temperature=4.0)
    of_agent = mutual_term(z_agent, z_vit, case["label"], temperature=4.0)
    for got, name in zip((*of_vit, *of_agent), ("ce_vit", "kl_vit", "ce_agent", "kl_agent"), strict=True):
        case.check(got, name)
    case.check(sum(of_vit), "l_kd_vit")
    case.check(sum((*of_vit, *of_agent)), "l_mutual")
    case.check(torch.autograd.grad(of_vit.distill, z_vit, retain_graph=True)[0], "grad_kl_vit_z_vit")
    case.check(torch.autograd.grad(of_agent.distill, z_agent, retain_graph=True)[0], "grad_kl_agent_z_agent")
    sum((*of_vit, *of_agent)).backward()
    case.check(z_vit.grad, "grad_z_vit")
    case.check(z_agent.grad, "grad_z_agent")


def test_total(golden):
    case = golden("total_loss")
    names = ["z_vit", "z_agent", *(f"f_{side}_{layer}" for side in ("vit", "agent") for layer in range(3))]
    leaves = {name: case.leaf(name) for name in names}
    of_vit = mutual_term(leaves["z_vit"], leaves["z_agent"], case["label"], temperature=4.0)
    of_agent = mutual_term(leaves["z_agent"], leaves["z_vit"], case["label"], temperature=4.0)
    features = [feature_loss(as_map(leaves[f"f_vit_{i}"], (3, 4)), leaves[f"f_agent_{i}"]) for i in range(3)]
    for layer, feature in enumerate(features):
        case.check(feature, f"hint_{layer}")
    decay = feature_decay(90, 240)
    l_vit = vit_loss(of_vit, features, w_mutual=1.0, w_feat=10.0, decay=decay, distill=True)
    l_agent = agent_loss(of_agent, w_mutual=1.0, distill=True)
    case.check(l_vit, "l_vit")
    case.check(l_agent, "l_agent")
    case.check((l_vit + l_agent) / 2, "l_shared")
    reached = [leaf for name, leaf in leaves.items() if "f_agent" not in name]
    joint = torch.autograd.grad(l_vit + l_agent, reached, retain_graph=True)
    shared = torch.autograd.grad((l_vit + l_agent) / 2, reached)
    for name, of_joint, of_shared in zip((n for n in names if "f_agent" not in n), joint, shared, strict=True):
        case.check(of_joint, f"grad_joint_{name}")
        case.check(of_shared, f"grad_shared_{name}")
    assert not any(case[f"grad_joint_f_agent_{layer}"].any() for layer in range(3))


def test_feature_loss_terms_of_table_4_keep_the_label_term():
    term, hint = MutualTerm(torch.tensor(2.0), torch.tensor(3.0)), torch.tensor(0.5)
    options = {"w_mutual": 1.0, "decay": 0.25}
    assert vit_loss(term, [hint], w_feat=10.0, distill=False, **options) == 2 + 10 * 0.25 * 0.5
    assert vit_loss(term, [], w_feat=0.0, distill=True, **options) == 5
    assert agent_loss(term, w_mutual=3.0, distill=True) == 15


def test_decay_and_learning_rate(golden, config):
    case = golden("decay_and_lr", float64=1e-12, float32=1e-6)
    decay = [feature_decay(epoch, 240) for epoch in range(261)]
    case.check(torch.tensor(decay, dtype=case.dtype), "decay")
    assert {feature_decay(epoch, 240, "none") for epoch in range(261)} == {1.0}
    settings = ("optim.lr=1e-3", "optim.schedule_unit=epoch", "optim.warmup_epochs=0", "train.epochs=240")
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1e-3)
    schedule = optim.build_schedule(optimiser, config(*settings).optim, 240, 5)
    rates = []
    for step in range(240 * 5):
        optim.set_learning_rate(schedule, Clock(step, 5, 240 * 5))
        rates.append(optimiser.param_groups[0]["lr"])
    case.check(torch.tensor(rates, dtype=case.dtype)[::5], "lr")
    assert torch.tensor(rates).view(240, 5).unique(dim=1).shape == (240, 1)


@pytest.mark.parametrize("name", ["entmax_alpha_1p5", "entmax_alpha_1p2"])
def test_entmax(golden, name):
    from entmax import entmax_bisect

    case = golden(name, float64=1e-8, float32=1e-3)
    x, alpha = case.leaf("x"), case.leaf("alpha")
    p = entmax_bisect(x, alpha, dim=-1)
    (p * case["grad_out"]).sum().backward()
    case.check(p, "p")
    assert torch.equal(p == 0, case["p"] == 0)
    case.check(x.grad, "grad_x")
    case.check(alpha.grad, "grad_alpha")


def test_sparse_attention(golden):
    case = golden("entmax_mhsa", float64=1e-8, float32=1e-3)
    attention = EntmaxAttention(12, num_heads=3, qkv_bias=True).to(case.dtype)
    names = {"qkv.weight": "w_qkv", "qkv.bias": "b_qkv", "proj.weight": "w_o", "proj.bias": "b_o", "alpha": "alpha"}
    set_weights(attention, **{ours: case[theirs] for ours, theirs in names.items()})
    x = case.leaf("x")
    y = attention(x)
    (y * case["grad_out"]).sum().backward()
    case.check(y, "y")
    case.check(x.grad, "grad_x")
    check_gradients(case, attention, names)


def pair_names():
    """Map parameters of ViT and agent to the names of the case; the shared tensors have no prefix there."""
    vit = {"patch_embed.proj.weight": "vit_patch_w", "patch_embed.proj.bias": "vit_patch_b"}
    vit |= {"cls_token": "vit_cls", "pos_embed": "vit_pos", "norm.weight": "vit_ln_w", "norm.bias": "vit_ln_b"}
    vit |= {"head.weight": "vit_head_w", "head.bias": "vit_head_b"}
    agent = {f"stem.{ours}": f"agent_stem_{theirs}" for ours, theirs in STEM_NAMES.items()}
    agent |= {"norm.weight": "agent_bn_w", "norm.bias": "agent_bn_b"}
    agent |= {"head.weight": "agent_head_w", "head.bias": "agent_head_b"}
    statistics = {f"stem.{ours}": f"agent_stem_{theirs}" for ours, theirs in STEM_STATISTICS.items()}
    statistics |= {"norm.running_mean": "agent_bn_mean", "norm.running_var": "agent_bn_var"}
    for layer in range(2):
        for ours, theirs in VIT_NAMES.items():
            private = "vit_" if "norm" in ours else ""
            vit[f"blocks.{layer}.{ours}"] = f"{private}l{layer}_{theirs}"
        for ours in ("norm1", "norm2"):
            theirs = f"agent_l{layer}_bn{ours[-1]}"
            agent |= {f"blocks.{layer}.{ours}.{kind}": f"{theirs}_{kind[0]}" for kind in ("weight", "bias")}
            statistics |= {f"blocks.{layer}.{ours}.running_{kind}": f"{theirs}_{kind}" for kind in ("mean", "var")}
    return vit, agent, statistics


def test_shared_pair(golden):
    case = golden("shared_pair")
    sizes = {"embed_dim": 12, "depth": 2, "num_heads": 6, "num_classes": 5}
    vit = build_vit(img_size=(32, 48), patch_size=8, norm_eps=1e-6, **sizes)
    # The image is 32x48 with patches of 8; the stem of 16 halves three times.
    agent = AgentCNN(patch_size=16, stem_width=7, down=(0,), pre_norm=False, **sizes)
    share_weights(agent, vit)
    vit, agent = vit.to(case.dtype), agent.to(case.dtype)
    of_vit, of_agent, statistics = pair_names()
    assert of_vit.keys() == dict(vit.named_parameters()).keys()
    assert of_agent.keys() == dict(agent.named_parameters()).keys()
    set_weights(vit, **{ours: case[theirs] for ours, theirs in of_vit.items()})
    set_weights(agent, **{ours: case[theirs] for ours, theirs in (of_agent | statistics).items()})

    case.check(agent.eval()(case["x"]), "logits_agent_eval")
    agent.train()
    found = [read_intermediates(model, case["x"], features=[0, 1]) for model in (vit, agent)]
    case.check(found[0].logits, "logits_vit")
    case.check(found[1].logits, "logits_agent_train")
    features = []
    for layer in range(2):
        assert found[0].features[layer].shape[2:] == (4, 6)
        tokens = found[0].features[layer].flatten(2).transpose(1, 2)
        case.check(tokens, f"f_vit_{layer}", (slice(None), slice(1, None)))
        case.check(found[1].features[layer], f"f_agent_{layer}")
        features.append(feature_loss(found[0].features[layer], found[1].features[layer]))
        case.check(features[layer], f"hint_{layer}")

    terms = [mutual_term(a.logits, b.logits, case["label"], temperature=4.0) for a, b in (found, found[::-1])]
    options = {"w_mutual": 1.0, "distill": True}
    l_vit = vit_loss(terms[0], features, w_feat=10.0, decay=feature_decay(60, 240), **options)
    l_agent = agent_loss(terms[1], **options)
    case.check(l_vit, "l_vit")
    case.check(l_agent, "l_agent")
    for tensor, name in ((vit.blocks[0].attn.proj.weight, "l0_w_o"), (vit.blocks[1].mlp.fc1.bias, "l1_b_1")):
        case.check(torch.autograd.grad(l_vit, tensor, retain_graph=True)[0], f"gV_{name}")
        case.check(torch.autograd.grad(l_agent, tensor, retain_graph=True)[0], f"gA_{name}")
    ((l_vit + l_agent) / 2).backward()
    check_gradients(case, vit, of_vit)
    check_gradients(case, agent, of_agent)


def test_models_of_the_cases_are_registered():
    assert isinstance(timm.create_model("bootstrapping_agent_b").blocks[0], AgentBlock)


def test_sam(golden):
    case = golden("sam_step")
    model = nn.Linear(5, 4).to(case.dtype)
    set_weights(model, weight=case["w_0"], bias=case["b_0"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    rule = SharpnessAware(model.parameters(), rho=0.1)
    for step in ("1", "2"):
        losses = []

        def forward(step=step, losses=losses):
            if losses:  # the second pass is at the perturbed weights
                case.check(model.weight, f"w_pert_{step}")
                case.check(model.bias, f"b_pert_{step}")
            losses.append(nn.functional.cross_entropy(model(case["x"]), case["label"]))
            return StepOutput(losses[-1])

        optimiser.zero_grad()
        rule(forward, scale=1.0, no_sync=nullcontext)
        for got, name in zip(losses, ("loss", "loss_pert"), strict=True):
            case.check(got, f"{name}_{step}")
        case.check(model.weight.grad, f"grad_w_pert_{step}")
        case.check(model.bias.grad, f"grad_b_pert_{step}")
        optimiser.step()
        case.check(model.weight, f"w_{step}")
        case.check(model.bias, f"b_{step}")
