"""Align's algebra, and the update rule against Algorithm 1 written out."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchjd.aggregation import PCGrad

from bootstrapping_vit.align import Aligned, AlignedUpdate, align
from bootstrapping_vit.models.pair import SharedTensor, shared_tensors
from vitutor_core.data.types import Batch
from vitutor_core.train.method import Clock, StepOutput

START = Clock(0, 4, 40)


def vectors(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.fixture
def conflict():
    """Two tensors each for agent and ViT whose gradients conflict as a whole."""
    generator = torch.Generator().manual_seed(0)
    vit = [torch.randn(3, 4, dtype=torch.float64, generator=generator), torch.randn(5, dtype=torch.float64)]
    agent = [torch.randn_like(v) - 0.8 * v for v in vit]
    assert inner(agent, vit) < 0
    return agent, vit


def inner(one, other):
    return sum((a * b).sum().item() for a, b in zip(one, other, strict=True))


def test_conflict_is_projected_out(conflict):
    agent, vit = conflict
    aligned, _ = align(agent, vit)
    assert abs(inner(aligned, vit)) <= 1e-12 * inner(vit, vit)
    assert inner(aligned, aligned) <= inner(agent, agent)
    removed = [a - b for a, b in zip(agent, aligned, strict=True)]
    share = inner(removed, vit) / inner(vit, vit)
    for r, v in zip(removed, vit, strict=True):
        torch.testing.assert_close(r, share * v)


def test_agreement_is_left_alone(conflict):
    agent, vit = conflict
    against = [-a for a in agent]
    for given, reference in ((against, vit), (agent, [torch.zeros_like(v) for v in vit])):
        assert all(torch.equal(a, b) for a, b in zip(align(given, reference).gradient, given, strict=True))
    (orthogonal,), _ = align(vectors([1.0, 0.0]), vectors([0.0, 1.0]))
    assert orthogonal.tolist() == [1.0, 0.0]


def test_only_the_direction_of_the_vit_matters(conflict):
    agent, vit = conflict
    before = [v.clone() for v in vit]
    scaled, _ = align(agent, [7 * v for v in vit])
    for a, b in zip(align(agent, vit).gradient, scaled, strict=True):
        torch.testing.assert_close(a, b)
    assert all(torch.equal(v, b) for v, b in zip(vit, before, strict=True))


def test_opposite_gradients_cancel(conflict):
    _, vit = conflict
    aligned, _ = align([-3 * v for v in vit], vit)
    assert all(a.abs().max() <= 1e-12 for a in aligned)


def test_pcgrad_of_both_is_the_sum_of_both_projections(conflict):
    agent, vit = ([torch.cat([t.flatten() for t in side])] for side in conflict)
    # With two gradients torchjd's PCGrad projects each on the other's complement and adds them up.
    expected = PCGrad()(torch.stack([vit[0], agent[0]]))
    torch.testing.assert_close(align(agent, vit).gradient[0] + align(vit, agent).gradient[0], expected)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="different shapes"):
        align(vectors([1.0]), vectors([[1.0]]))


class Toy(nn.Module):
    """A "ViT" with a shared tensor of which row 0 is private, and an "agent" that uses the rest of it."""

    def __init__(self):
        super().__init__()
        self.vit = nn.ParameterDict({"both": torch.tensor([[1.0], [2.0]]), "bias": torch.tensor([0.5])})
        self.agent = nn.ParameterDict({"own": torch.tensor([3.0])})
        self.shared = [SharedTensor(0, self.vit["both"], 1), SharedTensor(1, self.vit["bias"], 0)]
        # Gradients: both (2, 1) and bias 1 of the ViT; both[1] -4, bias +1 and own 5 of the agent.
        self.of_vit = (2.0, 1.0, 1.0)
        self.of_agent = (-4.0, 1.0, 5.0)

    def __call__(self):
        first, second = self.vit["both"]
        vit = (self.of_vit[0] * first + self.of_vit[1] * second + self.of_vit[2] * self.vit["bias"]).sum()
        agent = self.of_agent[0] * second + self.of_agent[1] * self.vit["bias"] + self.of_agent[2] * self.agent["own"]
        return StepOutput(vit + agent.sum(), {"vit_loss": vit, "agent_loss": agent.sum()})


# (g^V + Align(g^A | g^V)) / 2 with g^V = (1, 1), g^A = (-4, 1): together <a, v> = -3, so a + 1.5 v = (-2.5, 2.5);
# apart, -4 is opposite to 1 and vanishes, and 1 stays.
EXPECTED = {"global": (-0.75, 1.75), "layer": (0.5, 1.0), "tensor": (0.5, 1.0)}


@pytest.mark.parametrize("granularity", EXPECTED)
def test_granularity(granularity):
    toy = Toy()
    output = AlignedUpdate(toy.vit, toy.agent, toy.shared, granularity)(toy, scale=1.0, no_sync=nullcontext)
    assert output.parts["conflicts"] == (1.0 if granularity == "global" else 0.5)
    assert toy.vit["both"].grad.flatten().tolist() == pytest.approx([2.0, EXPECTED[granularity][0]])
    assert toy.vit["bias"].grad.tolist() == pytest.approx([EXPECTED[granularity][1]])
    assert toy.agent["own"].grad.tolist() == [5.0]


def test_layers_group_tensors():
    toy = Toy()
    toy.shared = [tensor._replace(layer=0) for tensor in toy.shared]
    for granularity in ("global", "layer"):
        AlignedUpdate(toy.vit, toy.agent, toy.shared, granularity)(toy, scale=1.0, no_sync=nullcontext)
        assert toy.vit["bias"].grad.tolist() == pytest.approx([EXPECTED["global"][1]])


def test_micro_batches_are_summed_then_aligned_once():
    toy = Toy()
    rule = AlignedUpdate(toy.vit, toy.agent, toy.shared, "global")
    # Conflicting micro-batches whose mean is the toy's gradient: aligned one by one they would give something else.
    for of_agent in ((-9.0, 1.0, 10.0), (1.0, 1.0, 0.0)):
        toy.of_agent = of_agent
        rule(toy, scale=0.5, no_sync=nullcontext)
    assert toy.vit["both"].grad.flatten().tolist() == pytest.approx([2.0, EXPECTED["global"][0]])
    assert toy.vit["bias"].grad.tolist() == pytest.approx([EXPECTED["global"][1]])
    assert toy.agent["own"].grad.tolist() == [5.0]


SHARED = ("method.mode=shared",)


def gradients(method):
    return {name: parameter.grad.clone() for name, parameter in method.named_parameters()}


def by_rule(method, batch, parts=1):
    method.zero_grad()
    rule = method.update_rule()
    for images, targets, indices in zip(*(tensor.chunk(parts) for tensor in batch[:3]), strict=True):
        micro = Batch(images, targets, indices)
        rule(lambda micro=micro: method(micro, START), scale=1 / parts, no_sync=nullcontext)
    return gradients(method)


def of_loss(method, batch, name):
    method.zero_grad()
    method(batch, START).losses[name].backward()
    zero = {key: torch.zeros_like(parameter) for key, parameter in method.named_parameters()}
    return zero | {key: p.grad.clone() for key, p in method.named_parameters() if p.grad is not None}


def shared_rows(method):
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    return [(names[id(tensor.parameter)], tensor.start) for tensor in shared_tensors(method.student)]


def test_the_update_is_algorithm_1(pair, batch):
    method = pair(*SHARED)
    of_vit, of_agent = (of_loss(method, batch, name) for name in ("vit_loss", "agent_loss"))
    got = by_rule(method, batch)
    rows = shared_rows(method)
    v = torch.cat([of_vit[name][start:].flatten() for name, start in rows])
    a = torch.cat([of_agent[name][start:].flatten() for name, start in rows])
    assert v @ a < 0  # at this point of the weights there is something to align
    expected = (v + a - (v @ a) / (v @ v) * v) / 2
    found = torch.cat([got[name][start:].flatten() for name, start in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    starts = dict(rows)
    for name, gradient in got.items():  # private ones are unscaled
        private = gradient[: starts.get(name)]
        torch.testing.assert_close(private, (of_vit[name] + of_agent[name])[: starts.get(name)], rtol=1e-4, atol=1e-6)


def test_w_q_and_w_k_learn_from_the_vit_alone(pair, batch):
    method = pair(*SHARED)
    of_agent = of_loss(method, batch, "agent_loss")
    for name in (f"student.blocks.{layer}.attn.qkv" for layer in range(3)):
        assert not of_agent[f"{name}.weight"][:36].any()
        assert of_agent[f"{name}.weight"][36:].any()
        assert not of_agent[f"{name}.bias"].any()


def test_without_align_shared_weights_get_the_mean(pair, batch):
    method = pair(*SHARED, "method.align=false")
    assert method.update_rule() is None
    of_vit, of_agent = (of_loss(method, batch, name) for name in ("vit_loss", "agent_loss"))
    method.zero_grad()
    method(batch, START).loss.backward()
    for name, gradient in gradients(method).items():
        torch.testing.assert_close(gradient, (of_vit[name] + of_agent[name]) / 2, rtol=1e-4, atol=1e-6)


def test_two_passes_without_conflict_are_one_pass_up_to_adam(pair, batch, monkeypatch):
    """Where Align changes nothing, one AdamW step moves the shared weights as the released single pass does."""
    monkeypatch.setattr("bootstrapping_vit.align.align", lambda agent, _: Aligned(list(agent), torch.tensor(False)))
    after = []
    for align_option in ("true", "false"):
        method = pair(*SHARED, f"method.align={align_option}").double()
        optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.05)
        doubles = batch._replace(images=batch.images.double())
        if method.update_rule() is None:
            method(doubles, START).loss.backward()
        else:
            by_rule(method, doubles)
        optimiser.step()
        after.append({name: parameter.detach().clone() for name, parameter in method.named_parameters()})
    for name, start in shared_rows(method):
        torch.testing.assert_close(after[0][name][start:], after[1][name][start:], rtol=1e-9, atol=1e-12)


def test_accumulation_does_not_change_the_update(pair, batch):
    # In evaluation mode, since BatchNorm's statistics would differ between micro-batches and batch.
    method = pair(*SHARED).eval()
    whole, parts = by_rule(method, batch), by_rule(method, batch, parts=4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=2e-6)


def test_bf16_gradients_are_those_of_fp32_up_to_rounding(pair, batch):
    method = pair(*SHARED)
    exact = by_rule(method, batch)
    rule = method.update_rule()

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return method(batch, START)

    method.zero_grad()
    rule(forward, scale=1.0, no_sync=nullcontext)
    found = gradients(method)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    one, other = (torch.cat([value.flatten() for value in side.values()]) for side in (exact, found))
    assert torch.cosine_similarity(one, other, dim=0) > 0.99
