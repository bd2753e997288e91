"""An aligned update on two processes with two micro-batches each is the update on the whole batch."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conformance import forked
from vitutor_core.train.method import Clock

pytestmark = pytest.mark.slow


@pytest.fixture
def ranks(pair, batch, config, tmp_path):
    """The method in this process, and what both ranks found, by mode."""
    settings = ("method.mode=shared",)
    method = pair(*settings)
    (tmp_path / "config.json").write_text(config(*settings).model_dump_json())
    save_file(method.state_dict(), tmp_path / "weights.safetensors")
    save_file({"images": batch.images, "targets": batch.targets}, tmp_path / "batch.safetensors")
    code = Path(__file__).with_name("rank.py").read_text()
    with forked.Forked(code, 0, tmp_path) as first, forked.Forked(code, 1, tmp_path) as second:
        assert [process.communicate()[1] for process in (first, second) if process.wait()] == []
    modes = ("evaluation", "training")
    found = {mode: [load_file(tmp_path / f"{mode}-{rank}.safetensors") for rank in range(2)] for mode in modes}
    return method, found


def test_two_processes_make_the_update_of_one(ranks, batch):
    method, found = ranks
    for one, other in found.values():
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    trained = found["training"][0]
    before = dict(method.named_buffers())
    assert not any(torch.equal(trained[name], value) for name, value in before.items())

    # Against one process, in evaluation mode: BatchNorm's statistics depend on how the batch is divided.
    method.eval()
    rule = method.update_rule()
    rule(lambda: method(batch, Clock(0, 4, 40)), scale=1.0, no_sync=nullcontext)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(found["evaluation"][0][name], parameter.grad, rtol=1e-3, atol=2e-6)
