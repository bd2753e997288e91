"""One step of the method: its value, its baseline, its weight, its randomness."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from drloc.method import step_generator
from drloc.pairs import Pairs, sample_pairs
from vitutor_core.train import optim
from vitutor_core.train.method import Clock
from vitutor_core.train.supervised import Supervised

FAMILIES = ("vit", "swin", "cvt", "t2t", "resnet")


def step(method, batch, epoch=0, seed=7):
    torch.manual_seed(seed)
    method.zero_grad()
    clock = Clock(3 * epoch, 3, 24)
    output = method(method.prepare(batch, clock), clock)
    output.loss.backward()
    return output


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_cross_entropy_and_lambda_times_the_loss(digits, drloc_build, family):
    _, batch = digits
    method = drloc_build(row=f"{family}_drloc")
    output = step(method, batch)
    torch.manual_seed(7)
    out = method.drloc(method.student, batch.images, step_generator(torch.device("cpu")))
    label = F.cross_entropy(out.logits, batch.targets)
    weight = {"cvt": 0.1, "t2t": 0.1}.get(family, 0.5)
    torch.testing.assert_close(output.loss, label + weight * out.loss)
    torch.testing.assert_close(output.parts["label_loss"], label)
    torch.testing.assert_close(output.parts["drloc_loss"], out.loss)
    torch.testing.assert_close(output.parts["drloc_cells"], out.error)
    assert output.parts.keys() == {"label_loss", "drloc_loss", "drloc_cells"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_baseline_is_plain_training_from_the_same_weights(digits, drloc_build, drloc_config, family):
    info, batch = digits
    settings = ("student.kwargs.drop_path_rate=0.2",)
    baseline, method = drloc_build(*settings, row=family), drloc_build(*settings, row=f"{family}_drloc")
    torch.manual_seed(0)
    plain = Supervised.build(drloc_config(*settings, row=family), info).train()
    assert baseline.drloc is None
    for name, value in plain.student.state_dict().items():
        assert torch.equal(value, baseline.student.state_dict()[name])
        assert torch.equal(value, method.student.state_dict()[name])
    losses = [step(m, batch) for m in (plain, baseline)]
    assert torch.equal(losses[0].loss, losses[1].loss)
    # Dropout draws the same with the loss beside it.
    assert torch.equal(step(method, batch).parts["label_loss"], losses[0].loss)


def test_with_a_weight_of_zero_the_students_gradients_are_the_plain_models(digits, drloc_build):
    _, batch = digits
    method = drloc_build("method.weight_schedule=ramp", row="vit_drloc")
    plain = drloc_build(row="vit")
    step(method, batch, epoch=0), step(plain, batch, epoch=0)  # in epoch 0 the ramp is at 0
    for name, parameter in plain.student.named_parameters():
        torch.testing.assert_close(method.student.get_parameter(name).grad, parameter.grad, rtol=1e-5, atol=1e-7)


def test_the_ramp_follows_the_clock(digits, drloc_build):
    _, batch = digits
    method = drloc_build("method.weight_schedule=ramp", "method.warmup_epochs=4", "train.schedule_epochs=24")
    for epoch, weight in ((0, 0), (2, 0.25), (4, 0.5), (7, 0.5 * 17 / 20)):
        output = step(method, batch, epoch=epoch)
        expected = output.parts["label_loss"] + weight * output.parts["drloc_loss"]
        torch.testing.assert_close(output.loss, expected)


def test_pairs_depend_on_the_seed_of_the_step_alone(digits, drloc_build):
    _, batch = digits
    method = drloc_build(row="resnet_drloc")  # without dropout, so that only the pairs can differ
    first, again, other = (step(method, batch, seed=seed).parts["drloc_loss"] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    step_generator(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_heads_are_trained_decayed_and_left_out_of_the_export(digits, drloc_build, drloc_config):
    config = drloc_config(row="vit_drloc")
    method = drloc_build(row="vit_drloc")
    optimizer = optim.build_optimizer(method, config.optim, 64)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in method.drloc.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") else 0.05)
    assert method.inference_model() is method.student
    assert not [name for name in method.student.state_dict() if "head" in name and "heads" in name]


def test_gradients_of_two_halves_are_those_of_the_whole(digits, drloc_build):
    """Equal batches on two processes: the mean of their gradients is that of one process with both."""
    _, batch = digits
    method = drloc_build(row="vit_drloc")
    grids = torch.randn(8, 48, 4, 4, requires_grad=True)
    whole = sample_pairs(8, (4, 4), 64, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))
    halves = [Pairs(whole.rows[i : i + 4], whole.columns[i : i + 4]) for i in (0, 4)]

    def gradient(parts):
        grids.grad = None
        for part, drawn in parts:
            (method.drloc.localise([part], pairs=[drawn]).loss / len(parts)).backward()
        return grids.grad.clone()

    one = gradient([(grids, whole)])
    torch.testing.assert_close(gradient([(grids[:4], halves[0]), (grids[4:], halves[1])]), one)
    assert batch.images.shape[0] == 64
