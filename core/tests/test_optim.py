from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from core.tests.train_samples import same
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models.weights import create_model
from vitutor_core.schema import ModelConfig, OptimConfig
from vitutor_core.train import optim
from vitutor_core.train.method import Clock, Method, StepOutput
from vitutor_core.train.supervised import Supervised


class Toy(Method):
    """Parameters of several shapes; ``aside`` plays the projector."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.Linear(30, 18))
        self.aside = nn.Linear(18, 17)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, batch, clock):
        out = self.student(batch)
        loss = out.square().mean()
        if self.aside is not None:
            loss = loss + (self.aside(out) * self.temperature).square().mean()
        return StepOutput(loss)


def make_steps(method, optimizer, seeds):
    for seed in seeds:
        optimizer.zero_grad()
        images = torch.randn(5, 20, generator=torch.Generator().manual_seed(seed))
        method(images, Clock(0, 1, 1)).loss.backward()
        optimizer.step()


def small_vit(**kwargs):
    model = ModelConfig(name="vit_tiny_patch16_224", kwargs={"embed_dim": 16, "depth": 2, "num_heads": 2} | kwargs)
    return Supervised(create_model(model, num_classes=10, image_size=32, channels=3))


def rates(config, epochs, updates, batch_size=64):
    """Return the learning rate of every update of a run, by the first step of each."""
    method = Toy()
    optimizer = optim.build_optimizer(method, config, batch_size)
    schedule = optim.build_schedule(optimizer, config, epochs, updates)
    found = []
    for step in range(epochs * updates):
        optim.set_learning_rate(schedule, Clock(step, updates, epochs * updates))
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_cosine_has_the_published_value_in_epoch_250_of_300():
    # DeiT's schedule: 1e-5 + (2e-3 - 1e-5) / 2 * (1 + cos(250 / 300 * pi)) = 1.4330e-4
    config = OptimConfig(lr=2e-3, min_lr=1e-5, warmup_epochs=5.0, warmup_lr=1e-6)
    found = rates(config, 300, 2)
    assert f"{found[2 * 250]:.4e}" == "1.4330e-04"
    assert found[2 * 250 + 1] == found[2 * 250]


def test_warm_up_is_linear_from_warmup_lr_to_the_peak():
    found = rates(OptimConfig(lr=1e-3, warmup_epochs=4.0, warmup_lr=2e-4, min_lr=0.0), 10, 1)
    assert found[:4] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4], rel=1e-12)
    # The cosine is entered where it stands in epoch 4, as if there had been no warm-up.
    assert found[4] == pytest.approx(1e-3 / 2 * (1 + math.cos(0.4 * math.pi)), rel=1e-12)


def test_the_cosine_may_start_after_the_warm_up():
    found = rates(OptimConfig(lr=1e-3, warmup_epochs=4.0, warmup_lr=0.0, min_lr=0.0, warmup_prefix=True), 10, 1)
    assert found[:5] == pytest.approx([0.0, 2.5e-4, 5e-4, 7.5e-4, 1e-3], rel=1e-12)
    assert found[7] == pytest.approx(1e-3 / 2 * (1 + math.cos(0.5 * math.pi)), rel=1e-12)
    with pytest.raises(ConfigError, match=r"warmup_epochs: 4 of 4 epochs"):
        rates(OptimConfig(lr=1e-3, warmup_epochs=4.0, warmup_prefix=True), 4, 1)


def test_per_update_follows_the_same_curve_in_small_steps():
    found = rates(OptimConfig(lr=1e-3, min_lr=1e-5, schedule_unit="update"), 4, 25)
    expected = [1e-5 + (1e-3 - 1e-5) / 2 * (1 + math.cos(step / 100 * math.pi)) for step in range(100)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_constant_stays_after_the_warm_up():
    found = rates(OptimConfig(lr=1e-3, schedule="constant", schedule_unit="update", warmup_epochs=1.0), 3, 4)
    assert found[0] == 1e-6
    assert found[4:] == [1e-3] * 8


def test_the_peak_scales_with_the_batch_if_asked_to_and_the_minimum_does_not():
    config = OptimConfig(lr=5e-4, lr_reference_batch=512, min_lr=1e-5)
    assert optim.peak_lr(config, 1024) == 1e-3
    assert optim.peak_lr(OptimConfig(lr=5e-4), 1024) == 5e-4
    found = rates(config, 1000, 1, batch_size=1024)
    assert found[0] == 1e-3
    assert found[-1] == pytest.approx(1e-5, rel=1e-2)


def test_no_weight_decay_on_vectors_positions_and_tokens():
    method = small_vit()
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    optimizer = optim.build_optimizer(method, OptimConfig(lr=1e-3, weight_decay=0.1), 8)
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    free = {name for name, value in decay.items() if value == 0}
    assert free == {name for name, p in method.named_parameters() if p.ndim <= 1} | {
        "student.pos_embed",
        "student.cls_token",
    }
    assert {value for name, value in decay.items() if name not in free} == {0.1}


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_every_parameter_is_trained_once(layer_decay):
    method = Toy()
    optimizer = optim.build_optimizer(method, OptimConfig(lr=1e-3, layer_decay=layer_decay), 8)
    found = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in method.parameters())


def test_layer_decay_lowers_the_rate_by_depth_and_spares_the_rest():
    method = small_vit()
    method.aside = nn.Linear(16, 4)
    config = OptimConfig(lr=1e-3, layer_decay=0.5, weight_decay=0.1, schedule="constant")
    optimizer = optim.build_optimizer(method, config, 8)
    optim.set_learning_rate(optim.build_schedule(optimizer, config, 1, 1), Clock(0, 1, 1))
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    # timm counts the last norm to the last block
    layer = {"cls_token": 0, "pos_embed": 0, "patch_embed": 0, "blocks.0": 1, "blocks.1": 2, "norm": 2, "head": 3}
    for name, parameter in method.student.named_parameters():
        depth = next(number for prefix, number in layer.items() if name.startswith(prefix))
        assert rate[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (3 - depth)), name
    assert rate[id(method.aside.weight)] == 1e-3
    assert (decay[id(method.aside.weight)], decay[id(method.aside.bias)]) == (0.1, 0.0)
    assert decay[id(method.student.pos_embed)] == 0.0


@pytest.mark.parametrize(
    "name", ["adamw", "sgd", "lamb", "adanw", "lion", "adafactor", "adafactorbv", "adabelief", "muon"]
)
def test_a_restored_optimiser_goes_on_bit_for_bit(name):
    config = OptimConfig(name=name, lr=1e-2)
    one = Toy()
    optimizer = optim.build_optimizer(one, config, 8)
    make_steps(one, optimizer, range(3))
    saved = {key: value.clone() for key, value in optim.optimizer_tensors(optimizer, one).items()}
    other = Toy()
    other.load_state_dict(one.state_dict())
    restored = optim.build_optimizer(other, config, 8)
    optim.load_optimizer_tensors(restored, other, saved)
    make_steps(one, optimizer, range(3, 6))
    make_steps(other, restored, range(3, 6))
    assert same(one.state_dict(), other.state_dict())


def test_an_optimiser_that_cannot_be_saved_says_so():
    method = Toy()
    optimizer = optim.build_optimizer(method, OptimConfig(lr=1e-3), 8)
    optimizer.state[method.temperature]["Q"] = [torch.eye(2), torch.eye(3)]  # as Kron does
    with pytest.raises(ConfigError, match=r"optim\.name: the state of AdamW cannot be saved"):
        optim.optimizer_tensors(optimizer, method)


def test_hyper_parameters_come_from_the_config_and_not_from_the_checkpoint():
    method = Toy()
    old = optim.build_optimizer(method, OptimConfig(lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9)), 8)
    make_steps(method, old, range(2))
    new = optim.build_optimizer(method, OptimConfig(lr=5e-3, weight_decay=0.2, betas=(0.7, 0.95)), 8)
    optim.load_optimizer_tensors(new, method, optim.optimizer_tensors(old, method))
    for group, decay in zip(new.param_groups, (0.0, 0.2), strict=True):
        assert (group["lr"], group["betas"], group["weight_decay"]) == (5e-3, (0.7, 0.95), decay)
    weight = method.student[0].weight
    assert torch.equal(new.state[weight]["exp_avg"], old.state[weight]["exp_avg"])
    assert new.state[weight]["step"] == 2


def test_moments_of_another_shape_and_unknown_names_are_refused():
    method = Toy()
    optimizer = optim.build_optimizer(method, OptimConfig(lr=1e-3), 8)
    make_steps(method, optimizer, range(1))
    saved = optim.optimizer_tensors(optimizer, method)
    with pytest.raises(
        CheckpointError, match=r"student\.0\.weight/exp_avg has shape \(20, 30\), the parameter \(30, 20\)"
    ):
        optim.load_optimizer_tensors(optimizer, method, saved | {"student.0.weight/exp_avg": torch.zeros(20, 30)})
    with pytest.raises(CheckpointError, match=r"unknown parameters: student\.9\.weight"):
        optim.load_optimizer_tensors(optimizer, method, saved | {"student.9.weight/exp_avg": torch.zeros(3)})


@pytest.mark.parametrize("leave", ["removed", "frozen"])
def test_dropping_parameters_keeps_the_moments_of_the_others(leave):
    method = Toy()
    optimizer = optim.build_optimizer(method, OptimConfig(lr=1e-3), 8)
    make_steps(method, optimizer, range(2))
    before = optim.optimizer_tensors(optimizer, method)
    before = {name: value.clone() for name, value in before.items() if not name.startswith("aside")}
    if leave == "removed":
        method.aside = None
    else:
        method.aside.requires_grad_(False)
    optim.drop_removed_parameters(optimizer, method)
    assert same(optim.optimizer_tensors(optimizer, method), before)
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in method.parameters() if p.requires_grad)


def test_an_unknown_optimiser_is_a_config_error():
    with pytest.raises(ConfigError, match=r"optim\.name: adamv"):
        optim.build_optimizer(Toy(), OptimConfig(name="adamv", lr=1e-3), 8)
