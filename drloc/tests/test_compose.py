"""The loss beside another method's: one forward pass, both objectives, everything else the other method's."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import pytest
import timm
import torch
from torch.nn import functional as F

import vitutor_core.models  # noqa: F401  # registers the small CNN with timm
from drloc import DRLoc, LossConfig, WithDRLoc
from drloc.method import step_generator
from vitutor_core.data.types import Batch
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import ModelCard, save_model
from vitutor_core.train.method import Clock, Method, Report, StepOutput
from vitutor_core.train.update import backward_once

FAMILIES = ("vit", "swin", "cvt", "t2t", "resnet")
START = Clock(0, 3, 24)


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
        return StepOutput(label + 0.1 * small, parts={"label_loss": label, "small": small})

    def on_epoch(self, clock):
        return clock.epoch == 5

    def report(self, probe=None, evaluation=None):
        return Report({"images": float(len(probe))})


@pytest.mark.parametrize("family", FAMILIES)
def test_it_rides_on_another_methods_pass(digits, drloc_build, family):
    _, batch = digits
    student, calls = drloc_build(row=family).student, Calls()
    alone, drloc = TwoHeads(student, calls), DRLoc(student, LossConfig(hidden=32), input_size=(3, 16, 16))
    both = WithDRLoc(alone, drloc, weight=0.3)
    torch.manual_seed(7)
    expected = alone(batch, START)
    calls.forwards = 0
    torch.manual_seed(7)
    output = both(both.prepare(batch, START), START)
    output.loss.backward()
    assert calls.forwards == 1
    torch.manual_seed(7)
    own = drloc(student, batch.images, step_generator(torch.device("cpu"))).loss
    torch.testing.assert_close(output.parts["drloc_loss"], own)
    torch.testing.assert_close(output.loss, expected.loss + 0.3 * own)
    assert output.parts.keys() == {"label_loss", "small", "drloc_loss", "drloc_cells"}
    assert all(parameter.grad.any() for parameter in drloc.parameters())


def test_the_student_and_its_stages_are_the_other_methods(digits, drloc_build):
    _, batch = digits
    student = drloc_build(row="vit").student
    other = TwoHeads(student, Calls())
    both = WithDRLoc(other, DRLoc(student, LossConfig(hidden=32), input_size=(3, 16, 16)), weight=0.3)
    assert both.student is both.inference_model() is student
    assert both.on_epoch(Clock(15, 3, 24))
    assert not both.on_epoch(START)
    assert both.report(batch.images).metrics == {"images": 64.0}
    assert {name.split(".")[0] for name in both.state_dict()} == {"method", "drloc"}
    assert "method.student.pos_embed" in both.no_weight_decay()
    with pytest.raises(ConfigError, match="final grid"):
        WithDRLoc(other, DRLoc(student, LossConfig(after_norm=True), input_size=(3, 16, 16)), weight=0.3)


def test_a_method_that_never_runs_its_student(digits, drloc_build):
    _, batch = digits
    student = drloc_build(row="vit").student
    other = TwoHeads(student, Calls())
    other.forward = lambda batch, clock: StepOutput(torch.zeros(()))
    both = WithDRLoc(other, DRLoc(student, input_size=(3, 16, 16)), weight=0.3)
    with pytest.raises(ConfigError, match="did not run its student"):
        both(both.prepare(Batch(*batch), START), START)


@pytest.mark.parametrize("settings", [("method.align=false",), (), ("method.granularity=layer",)])
def test_beside_shared_weights_and_their_update_rule(digits, settings):
    """Bootstrapping's Algorithm 1 differentiates the objectives one by one; the loss is a term of the ViT's."""
    bootstrapping = pytest.importorskip("bootstrapping_vit.method")
    paper = pytest.importorskip("bootstrapping_vit.cli").PAPER
    info, batch = digits
    config = paper.resolve("digits", None, "shared", settings)
    torch.manual_seed(0)
    other = bootstrapping.BootstrappingViT.build(config, info).train()
    both = WithDRLoc(other, DRLoc(other.student, LossConfig(hidden=32), input_size=(3, 16, 16)), weight=0.5)

    def gradients(method):
        method.zero_grad()
        # The step's seed also draws the pairs; dropout comes before them.
        torch.manual_seed(7)
        (method.update_rule() or backward_once)(
            partial(method, method.prepare(batch, START), START), scale=1.0, no_sync=nullcontext
        )
        return {name: parameter.grad.clone() for name, parameter in method.named_parameters()}

    alone, found = gradients(other), gradients(both)
    assert all(found[f"drloc.{name}"].any() for name, _ in both.drloc.named_parameters())
    early = "student.patch_embed.proj.weight"
    assert not torch.allclose(found[f"method.{early}"], alone[early], rtol=1e-3)
    # What the agent has for itself does not see the ViT's grid.
    for name in (name for name in alone if name.startswith("agent.stem")):
        torch.testing.assert_close(found[f"method.{name}"], alone[name])


def test_beside_dearkds_teacher_and_feature_loss(digits, tmp_path):
    """The relative position is learnt on the student that DearKD distils, in DearKD's own pass."""
    dearkd = pytest.importorskip("dearkd.method")
    paper = pytest.importorskip("dearkd.cli").PAPER
    info, batch = digits
    card = ModelCard(
        name="resnet8_tiny",
        kwargs={},
        class_names=info.class_names,
        image_size=16,
        mean=info.mean,
        std=info.std,
        crop_ratio=1.0,
        interpolation="bilinear",
        method="none",
    )
    save_model(tmp_path / "cnn.safetensors", timm.create_model("resnet8_tiny"), card)
    config = paper.resolve("digits", None, None, (f"teacher.weights={tmp_path / 'cnn.safetensors'}",))
    other = dearkd.DearKD.build(config, info).train()
    torch.manual_seed(7)
    expected = other(batch, START)
    both = WithDRLoc(other, DRLoc(other.student, LossConfig(hidden=32), input_size=(3, 16, 16)), weight=0.5)
    torch.manual_seed(7)
    output = both(both.prepare(batch, START), START)
    torch.testing.assert_close(output.loss, expected.loss + 0.5 * output.parts["drloc_loss"])
    assert {"hidden_loss", "logit_loss", "label_loss", "drloc_loss"} <= output.parts.keys()
    assert both.teachers().keys() == {"cnn"}
