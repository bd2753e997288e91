"""One step of the method: its value, its baseline, its weight, its randomness; and beside another method's loss."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from drloc import DRLoc, LossConfig, WithDRLoc
from drloc.cli import PAPER
from drloc.method import DRLocMethod, step_generator
from vitutor_core.data.build import build_data
from vitutor_core.data.types import Batch
from vitutor_core.errors import ConfigError
from vitutor_core.train import optim
from vitutor_core.train.method import Clock, Method, StepOutput
from vitutor_core.train.supervised import Supervised

MICRO = ("data.fraction=0.25", "train.batch_size=64", "runtime.device=cpu", "augment.mixup=0.8")
FAMILIES = ("vit", "swin", "cvt", "t2t", "resnet")


def resolve(*settings, row=None):
    return PAPER.resolve("digits", None, row, (*MICRO, *settings))


@pytest.fixture(scope="module")
def digits():
    data = build_data(resolve(), device=torch.device("cpu"))
    (batch,) = next(iter(data.train.epoch(0)))
    return data.info, batch


def build(info, *settings, row=None):
    torch.manual_seed(0)
    return DRLocMethod.build(resolve(*settings, row=row), info).train()


def step(method, batch, epoch=0, seed=7):
    torch.manual_seed(seed)
    method.zero_grad()
    output = method(batch, Clock(3 * epoch, 3, 24))
    output.loss.backward()
    return output


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_cross_entropy_and_lambda_times_the_loss(digits, family):
    info, batch = digits
    method = build(info, row=f"{family}_drloc")
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
def test_the_baseline_is_plain_training_from_the_same_weights(digits, family):
    info, batch = digits
    settings = ("student.kwargs.drop_path_rate=0.2",)
    baseline, method = build(info, *settings, row=family), build(info, *settings, row=f"{family}_drloc")
    torch.manual_seed(0)
    plain = Supervised.build(resolve(*settings, row=family), info).train()
    assert baseline.drloc is None
    for name, value in plain.student.state_dict().items():
        assert torch.equal(value, baseline.student.state_dict()[name])
        assert torch.equal(value, method.student.state_dict()[name])
    losses = [step(m, batch) for m in (plain, baseline)]
    assert torch.equal(losses[0].loss, losses[1].loss)
    # Dropout draws the same with the loss beside it.
    assert torch.equal(step(method, batch).parts["label_loss"], losses[0].loss)


def test_with_a_weight_of_zero_the_students_gradients_are_the_plain_models(digits):
    info, batch = digits
    method = build(info, "method.weight_schedule=ramp", row="vit_drloc")
    plain = build(info, row="vit")
    step(method, batch, epoch=0), step(plain, batch, epoch=0)  # in epoch 0 the ramp is at 0
    for name, parameter in plain.student.named_parameters():
        torch.testing.assert_close(method.student.get_parameter(name).grad, parameter.grad, rtol=1e-5, atol=1e-7)


def test_the_ramp_follows_the_clock(digits):
    info, batch = digits
    method = build(info, "method.weight_schedule=ramp", "method.warmup_epochs=4", "train.schedule_epochs=24")
    for epoch, weight in ((0, 0), (2, 0.25), (4, 0.5), (7, 0.5 * 17 / 20)):
        output = step(method, batch, epoch=epoch)
        expected = output.parts["label_loss"] + weight * output.parts["drloc_loss"]
        torch.testing.assert_close(output.loss, expected)


def test_pairs_depend_on_the_seed_of_the_step_alone(digits):
    info, batch = digits
    method = build(info, row="resnet_drloc")  # without dropout, so that only the pairs can differ
    first, again, other = (step(method, batch, seed=seed).parts["drloc_loss"] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    step_generator(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_heads_are_trained_decayed_and_left_out_of_the_export(digits):
    info, _ = digits
    config = resolve(row="vit_drloc")
    method = build(info, row="vit_drloc")
    optimizer = optim.build_optimizer(method, config.optim, 64)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in method.drloc.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") else 0.05)
    assert method.inference_model() is method.student
    assert not [name for name in method.student.state_dict() if "head" in name and "heads" in name]


def test_gradients_of_two_halves_are_those_of_the_whole(digits):
    """Equal batches on two processes: the mean of their gradients is that of one process with both."""
    info, batch = digits
    method = build(info, row="vit_drloc")
    grids = torch.randn(8, 48, 4, 4, requires_grad=True)
    pairs = [torch.Generator().manual_seed(0) for _ in range(2)]
    from drloc.pairs import Pairs, sample_pairs

    whole = sample_pairs(8, (4, 4), 64, device=torch.device("cpu"), generator=pairs[0])
    halves = [Pairs(whole.rows[i : i + 4], whole.columns[i : i + 4]) for i in (0, 4)]

    def gradient(parts):
        grids.grad = None
        with pytest.MonkeyPatch.context() as patch:
            for part, drawn in parts:
                patch.setattr("drloc.localise.sample_pairs", lambda *_, drawn=drawn, **__: drawn)
                (method.drloc.localise([part]).loss / len(parts)).backward()
        return grids.grad.clone()

    one = gradient([(grids, whole)])
    torch.testing.assert_close(gradient([(grids[:4], halves[0]), (grids[4:], halves[1])]), one)
    assert batch.images.shape[0] == 64


# --- beside the loss of another method


@dataclass
class Calls:
    forwards: int = 0


class TwoHeads(Method):
    """Some method: its student's logits against the labels, and its tokens against zero."""

    def __init__(self, student, calls):
        super().__init__()
        self.student = student
        self.calls = calls

    def forward(self, batch, clock):
        self.calls.forwards += 1
        tokens = self.student.forward_features(batch.images)
        label = F.cross_entropy(self.student.forward_head(tokens), batch.targets)
        small = tokens.square().mean()
        return StepOutput(label + 0.1 * small, {"label_loss": label, "small": small})

    def on_epoch(self, clock):
        return clock.epoch == 5

    def diagnostics(self, images):
        return {"images": float(len(images))}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_rides_on_another_methods_pass(digits, family):
    info, batch = digits
    student, calls = build(info, row=family).student, Calls()
    alone, drloc = TwoHeads(student, calls), DRLoc(student, LossConfig(hidden=32), image_size=16)
    both = WithDRLoc(alone, drloc, weight=0.3)
    torch.manual_seed(7)
    expected = alone(batch, Clock(0, 3, 24))
    calls.forwards = 0
    output = step(both, batch)
    assert calls.forwards == 1
    torch.manual_seed(7)
    own = drloc(student, batch.images, step_generator(torch.device("cpu"))).loss
    torch.testing.assert_close(output.parts["drloc_loss"], own)
    torch.testing.assert_close(output.loss, expected.loss + 0.3 * own)
    assert output.parts.keys() == {"label_loss", "small", "drloc_loss", "drloc_cells"}
    assert all(parameter.grad.any() for parameter in drloc.parameters())


def test_everything_else_is_the_other_methods(digits):
    info, batch = digits
    student = build(info, row="vit").student
    other = TwoHeads(student, Calls())
    both = WithDRLoc(other, DRLoc(student, LossConfig(hidden=32), image_size=16), weight=0.3)
    assert both.student is both.inference_model() is student
    assert both.on_epoch(Clock(15, 3, 24))
    assert not both.on_epoch(Clock(0, 3, 24))
    assert both.diagnostics(batch.images) == {"images": 64.0}
    assert both.final_metrics(None) == both.teachers() == {}
    assert both.update_rule() is None
    assert {name.split(".")[0] for name in both.state_dict()} == {"method", "drloc"}
    assert "method.student.pos_embed" in both.no_weight_decay()
    with pytest.raises(ConfigError, match="final grid"):
        WithDRLoc(other, DRLoc(student, LossConfig(after_norm=True), image_size=16), weight=0.3)


def test_a_method_that_never_runs_its_student(digits):
    info, batch = digits
    student = build(info, row="vit").student
    other = TwoHeads(student, Calls())
    other.forward = lambda batch, clock: StepOutput(torch.zeros(()), {})
    both = WithDRLoc(other, DRLoc(student, image_size=16), weight=0.3)
    with pytest.raises(ConfigError, match="did not run its student"):
        both(Batch(*batch), Clock(0, 3, 24))
