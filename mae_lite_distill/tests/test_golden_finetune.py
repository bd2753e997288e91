"""The released fine-tuning: forward pass, learning rates and groups, as the core and timm give them."""

from __future__ import annotations

import pytest
import timm
import torch

from mae_lite_distill.models import encode
from mae_lite_distill.tests.mae_samples import PRECISIONS, assert_agrees, load, small_vit, weights_of
from vitutor_core.schema import OptimConfig
from vitutor_core.train import optim
from vitutor_core.train.method import Clock
from vitutor_core.train.supervised import Supervised

both_precisions = pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)


@both_precisions
def test_forward(dtype, tolerance):
    case = load("finetune_forward", dtype)
    vit = small_vit(weights_of(case), heads=3, global_pool="avg")
    logits = vit(case["input.images"])
    (logits * case["input.cotangent"]).sum().backward()
    assert_agrees(logits.detach(), case["expected.logits"], tolerance)
    parameters = dict(vit.named_parameters())
    for name in ("pos_embed", "cls_token", "fc_norm.weight", "blocks.0.mlp.fc1.bias"):
        assert_agrees(parameters[name].grad, case[f"grad.{name}"], tolerance)
    encoded = encode(vit, case["input.images"], logits=(0, 1))
    for block in range(2):
        expected = case[f"expected.attention_logits_layer{block + 1}"]
        assert_agrees(encoded.logits[block].detach(), expected, max(tolerance, 1e-6))
    final = vit.fc_norm(encoded.last)[:, 1:]
    assert_agrees(final.detach(), case["expected.cka_feature_2"], tolerance)


@pytest.mark.parametrize(("decay", "name"), [(0.75, "0_75"), (0.85, "0_85")])
def test_layer_decay(decay, name):
    case = load("layer_decay", torch.float64)
    config = OptimConfig(lr=1.0, layer_decay=decay, weight_decay=0.05)
    method = Supervised(timm.create_model("vit_tiny_patch16_224", num_heads=12, global_pool="avg"))
    groups = optim.build_optimizer(method, config, 1).param_groups
    names = {id(parameter): name for name, parameter in method.student.named_parameters()}
    scale_of, decay_of = {}, {}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in scale_of
            scale_of[names[id(parameter)]] = group["lr_scale"]
            decay_of[names[id(parameter)]] = group["weight_decay"]
    assert scale_of.keys() == set(names.values())
    layers = ["pos_embed", *(f"blocks.{block}.attn.qkv.weight" for block in range(12)), "head.weight"]
    scales = torch.tensor([scale_of[layer] for layer in layers], dtype=torch.float64)
    assert_agrees(scales, case[f"expected.scales_{name}"], 1e-10)
    assert len(set(scale_of.values())) == 14
    assert scale_of["cls_token"] == scale_of["patch_embed.proj.weight"] == scale_of["pos_embed"]
    assert scale_of["fc_norm.weight"] == scale_of["head.weight"] == 1.0
    exempt = {name for name, parameter in method.student.named_parameters() if parameter.ndim == 1}
    assert {name for name, value in decay_of.items() if value == 0} == exempt | {"pos_embed", "cls_token"}


def rates(
    config: OptimConfig, batch: int, *, updates: int, epochs: int, counts: list[int], scale: float
) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    peak = optim.peak_lr(config, batch)
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": peak, "lr_scale": scale}], lr=peak)
    schedule = optim.build_schedule(optimizer, config, epochs, updates)
    found = []
    for count in counts:
        optim.set_learning_rate(schedule, Clock(count, updates, updates * epochs))
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_learning_rates():
    case = load("lr_schedules", torch.float64)
    shared = {"lr_reference_batch": 256, "schedule_unit": "update", "warmup_lr": 0.0, "warmup_prefix": True}
    pretrain = OptimConfig(lr=1.5e-4, warmup_epochs=40, min_lr=0.0, **shared)
    finetune = OptimConfig(lr=1e-3, warmup_epochs=5, min_lr=1e-6, **shared)
    counts = [case[f"input.{stage}_count"].tolist() for stage in ("pretrain", "finetune")]
    found = rates(pretrain, 4096, updates=312, epochs=400, counts=counts[0], scale=1.0)
    assert_agrees(torch.tensor(found, dtype=torch.float64), case["expected.pretrain_lr"], 1e-10)
    found = rates(finetune, 1024, updates=1251, epochs=300, counts=counts[1], scale=0.5)
    assert_agrees(torch.tensor(found, dtype=torch.float64), case["expected.finetune_lr"], 1e-10)
