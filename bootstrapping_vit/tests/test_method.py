"""One step of the real method: what it is made of, what each loss reaches, what build and config refuse."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from bootstrapping_vit.align import AlignedUpdate
from bootstrapping_vit.cli import PAPER
from bootstrapping_vit.config import ObjectiveConfig
from bootstrapping_vit.losses import feature_loss, mutual_term
from bootstrapping_vit.method import BootstrappingViT
from vitutor_core.errors import ConfigError
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.train.method import Clock
from vitutor_core.train.sam import SharpnessAware
from vitutor_core.train.session import RunLabel, train

EPOCHS = 16  # of the digits recipe
MODES = ("joint", "shared")


def clock(epoch):
    return Clock(4 * epoch, 4, 4 * EPOCHS)


def reached(method, loss):
    """Names of the parameters with a gradient other than zero."""
    names, parameters = zip(*method.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()}


@pytest.mark.parametrize("mode", MODES)
def test_a_step_is_the_formulas(pair, batch, mode):
    method = pair(f"method.mode={mode}", "method.align=false")
    output = method(batch, clock(4))
    vit, agent = (
        read_intermediates(model, batch.images, features=range(3)) for model in (method.student, method.agent)
    )
    label, distill = mutual_term(vit.logits, agent.logits, batch.targets, temperature=4.0)
    hints = sum(feature_loss(ours, theirs) for ours, theirs in zip(vit.features, agent.features, strict=True))
    l_vit = label + distill + 10 * 0.75 * hints
    l_agent = sum(mutual_term(agent.logits, vit.logits, batch.targets, temperature=4.0))
    total = l_vit + l_agent
    torch.testing.assert_close(output.loss, total if mode == "joint" else total / 2)
    torch.testing.assert_close(output.parts["vit_loss"], l_vit)
    torch.testing.assert_close(output.parts["agent_loss"], l_agent)
    torch.testing.assert_close(output.parts["feature_loss"], hints)


def test_the_decay_touches_the_feature_loss_alone(pair, batch):
    method = pair().eval()
    first, last = (method(batch, clock(epoch)) for epoch in (0, EPOCHS - 1))
    assert first.parts.keys() == last.parts.keys()
    for name in first.parts.keys() - {"vit_loss"}:
        assert torch.equal(first.parts[name], last.parts[name]), name
    fall = 10 * (1 - 1 / EPOCHS) * first.parts["feature_loss"]
    torch.testing.assert_close(first.loss - last.loss, fall)
    constant = pair("method.decay=none").eval()
    assert torch.equal(constant(batch, clock(0)).loss, constant(batch, clock(EPOCHS - 1)).loss)


def test_a_run_that_stops_early_keeps_the_decay_of_the_whole(pair, batch):
    method = pair("train.schedule_epochs=64").eval()
    whole = pair().eval()
    torch.testing.assert_close(method(batch, clock(8)).loss, whole(batch, clock(2)).loss)


def test_joint_losses_share_nothing(pair, batch):
    method = pair()
    parts = method(batch, clock(0)).parts
    of_vit, of_agent = reached(method, parts["vit_loss"]), reached(method, parts["agent_loss"])
    assert {name.partition(".")[0] for name in of_vit} == {"student"}
    assert {name.partition(".")[0] for name in of_agent} == {"agent"}
    of_features = reached(method, parts["feature_loss"])
    assert not {name for name in of_features if name.startswith(("student.norm", "student.head"))}


def test_the_class_token_has_no_feature_loss(pair, batch):
    method = pair().eval()
    loss = method(batch, clock(0)).parts["feature_loss"]
    change = torch.zeros(1, 17, 18)
    with torch.no_grad():
        hook = method.student.blocks[2].register_forward_hook(lambda _module, _inputs, output: output + change)
        change[:, 0, 0] = 5.0
        assert torch.equal(method(batch, clock(0)).parts["feature_loss"], loss)
        change[:, 1, 0] = 5.0
        assert not torch.equal(method(batch, clock(0)).parts["feature_loss"], loss)
        hook.remove()


def test_shared_tensors_receive_both_gradients(pair, batch):
    method = pair("method.mode=shared")
    parts = method(batch, clock(0)).parts
    both = reached(method, parts["vit_loss"]) & reached(method, parts["agent_loss"])
    names = (
        "attn.qkv.weight",
        "attn.proj.weight",
        "attn.proj.bias",
        "mlp.fc1.weight",
        "mlp.fc1.bias",
        "mlp.fc2.weight",
    )
    assert both == {f"student.blocks.{layer}.{name}" for layer in range(3) for name in (*names, "mlp.fc2.bias")}


def test_shared_tensors_are_saved_and_counted_once(pair):
    joint, shared = pair(), pair("method.mode=shared")
    assert not [name for name in shared.state_dict() if name.startswith("agent") and ("conv" in name or "mlp" in name)]
    in_agent = sum(p.numel() for n, p in joint.agent.named_parameters() if ".conv." in n or ".mlp." in n)
    count = {method: sum(p.numel() for p in method.parameters()) for method in (joint, shared)}
    assert count[joint] - count[shared] == in_agent


def test_rows_of_table_4(pair, batch):
    full = pair().eval()(batch, clock(0))
    no_features = pair("method.w_feat=0").eval()(batch, clock(0))
    assert "feature_loss" not in no_features.parts
    torch.testing.assert_close(full.loss - no_features.loss, 10 * full.parts["feature_loss"])
    labels = pair("method.distill=false").eval()(batch, clock(0))
    distill = full.parts["vit_distill_loss"] + full.parts["agent_distill_loss"]
    torch.testing.assert_close(full.loss - labels.loss, distill)
    last = pair("method.layers=[2]").eval()(batch, clock(0)).parts["feature_loss"]
    assert 0 < last < full.parts["feature_loss"]


def test_literal_equation_9_is_a_matter_of_two_weights(pair, batch):
    swapped = pair("method.w_mutual=10", "method.w_feat=1").eval()(batch, clock(0))
    terms = ("vit_label_loss", "vit_distill_loss", "agent_label_loss", "agent_distill_loss")
    expected = 10 * sum(swapped.parts[name] for name in terms) + swapped.parts["feature_loss"]
    torch.testing.assert_close(swapped.loss, expected)


def test_without_an_agent_it_is_supervised_training(pair, batch):
    method = pair("agent=null").eval()
    output = method(batch, clock(0))
    assert torch.equal(output.loss, F.cross_entropy(method.student(batch.images), batch.targets))
    assert method.update_rule() is None
    assert method.report(evaluation=[]).metrics == {}
    assert not method.traits.measures


def test_update_rules(pair):
    assert isinstance(pair("agent=null", "method.sam_rho=0.1").update_rule(), SharpnessAware)
    assert isinstance(pair("method.mode=shared").update_rule(), AlignedUpdate)
    assert pair().update_rule() is None


def test_inference_is_the_unmodified_vit(pair):
    for mode in MODES:
        assert type(pair(f"method.mode={mode}").inference_model()) is VisionTransformer


def test_terms_fall_in_a_short_run(config, tmp_path):
    settings = (
        "data.fraction=1.0",
        "data.per_class=20",
        "train.epochs=6",
        "train.epoch_length=subset",
        "runtime.eval_every_epochs=6",
    )
    short = (*settings, "optim.warmup_epochs=0", "optim.lr=5e-3", "train.batch_size=20")
    label = RunLabel("bootstrapping_vit", "joint", "digits", "test")
    record = train(config(*short), BootstrappingViT.build, label=label, out=tmp_path / "run")
    assert 0 <= record.metrics["agent_top1"] <= 100
    header, *lines = (line.split(",") for line in (tmp_path / "run" / "curves.csv").read_text().splitlines())
    features, agent = (
        [float(line[header.index(name)]) for line in lines] for name in ("feature_loss", "agent_label_loss")
    )
    assert 1.2 * 3 < features[0] < 2.2 * 3  # about 2 for each layer at the start
    assert features[-1] < 0.8 * features[0]
    assert agent[-1] < 0.85 * agent[0]


def resolve(*settings, row=None):
    return PAPER.resolve("digits", None, row, settings)


def test_defaults_are_the_recommended_reading():
    terms = ObjectiveConfig()
    assert (terms.mode, terms.w_mutual, terms.w_feat, terms.temperature) == ("joint", 1.0, 10.0, 4.0)
    assert (terms.adapter, terms.feature_norm, terms.decay, terms.layers) == ("1d", "layer_norm", "linear", None)
    assert (terms.align, terms.granularity, terms.distill, terms.sam_rho) == (True, "global", True, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method.sam_rho=0.1",), "method.sam_rho is for runs without an agent"),
        (("method.mode=shared", "train.compile=true"), "method.align needs two backward passes"),
        (("method.temperature=0",), "method.temperature: Input should be greater than 0"),
        (("method.decay=cosine",), "method.decay: Input should be 'linear' or 'none'"),
        (("method.beta=10",), "unknown key 'method.beta'"),
        (("method.adaptor=1d",), "did you mean 'method.adapter'?"),
    ],
)
def test_mistakes_in_the_config_are_one_line(settings, message):
    with pytest.raises(ConfigError) as error:
        resolve(*settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("agent.kwargs.depth=2",), "AgentCNN has no feature 2"),
        (("agent.kwargs.embed_dim=36",), "batch and width must agree"),
        (("data.image_size=20", "agent.kwargs.down=[0, 1]"), "25 tokens of the ViT against 4"),
        (("agent.kwargs.embed_dim=36", "method.mode=shared"), "differ in"),
        (("student.name=resnet8_tiny", "student.kwargs={}"), "has no blocks"),
        (("student.name=resnet8_tiny", "student.kwargs={}", "method.mode=shared"), "method.mode=shared"),
        (("method.layers=[3]",), "layers 0 to 2"),
    ],
)
def test_impossible_pairs_are_refused(config, info, settings, message):
    chosen = config(*settings)
    with pytest.raises(ConfigError, match=re.escape(message)):
        BootstrappingViT.build(chosen, dataclasses.replace(info, image_size=chosen.data.image_size))


def test_without_feature_loss_the_partner_may_be_any_model(config, info, batch):
    settings = ("method.w_feat=0", "student.name=resnet8_tiny", "student.kwargs={}", "agent.name=resnet8_tiny")
    method = BootstrappingViT.build(config(*settings, "agent.kwargs={}"), info)
    assert method(batch, clock(0)).loss.isfinite()
