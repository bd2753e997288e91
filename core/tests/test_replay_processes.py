"""What two processes have trained, two replay: bit for bit, together, and as one command."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from conformance import forked
from core.tests.train_samples import TINY
from vitutor_core.baseline import paper_of
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.distributed import gather_rows, world
from vitutor_core.errors import ConfigError
from vitutor_core.jobs.replay import replay_step
from vitutor_core.paper import load
from vitutor_core.train.meter import Meter
from vitutor_core.train.origin import Origin
from vitutor_core.train.replay import gradient_norms, replay
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.update import Updater

SETTINGS = ("train.accumulate=2", "student.kwargs.proj_drop_rate=0.2")
"""Random numbers of each process, and gradients that are averaged once in two micro-batches."""


def _rank(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, (str(rank), str(rank), "2", "127.0.0.1", str(port)), strict=True))
    out, paper = Path(folder) / "run", paper_of("vitutor_core")
    build, config = load(paper.method).build, load(paper.config).from_mapping(TINY, where="tiny").changed(SETTINGS)
    losses: list[float] = []
    norms: list[dict[str, float]] = []
    step, add = Updater.step, Meter.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updater, "step", lambda self: (norms.append(gradient_norms(self.method)), step(self))[1])
        patch.setattr(Meter, "add", lambda self, *made: (losses.append(float(made[0].loss)), add(self, *made))[1])
        train(config, build, label=RunLabel("vitutor_core", "x", "digits", "x"), out=out)
    own, other = gather_rows(torch.tensor([losses], dtype=torch.float64)).tolist()
    assert own != other

    origin = Origin.read(out)
    for asked in (0, 7, 12, 14):
        seen = replay(origin, config, build, asked)
        of_step = [*own[2 * asked : 2 * asked + 2], *other[2 * asked : 2 * asked + 2]]
        assert seen.terms == {"train_loss": sum(5 * loss for loss in of_step) / 20}
        assert seen.norms == norms[asked]
        assert len(seen.images) == len(set(seen.names)) == 20
    assert seen.repeated["train_loss"] == seen.recorded["train_loss"]
    assert seen.start == 10

    forward = Updater._forward

    def harmed(self, batch, clock):
        output = forward(self, batch, clock)
        return output._replace(loss=output.loss * float("nan")) if world()[0] == 1 and clock.step == 3 else output

    with pytest.MonkeyPatch.context() as patch:  # of one process alone: both see it, and neither waits for the other
        patch.setattr(Updater, "_forward", harmed)
        seen = replay(origin, config, build, 4)
    assert (seen.step, seen.not_finite[0]) == (3, "train_loss")


@pytest.mark.slow
def test_two_processes_make_every_step_again(tmp_path, monkeypatch, capfd):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forked.together(_rank, str(tmp_path), port)
    with pytest.raises(ConfigError, match="the number of processes was 2, and is 1; a step"):
        replay_step(str(tmp_path / "run"), 14, whole_epoch=False, images=None, settings=[])

    monkeypatch.setattr(sys, "executable", forked.python())
    monkeypatch.setenv("WORLD_SIZE", "1")  # as some clusters set it for one process
    capfd.readouterr()
    arguments = ["replay", str(tmp_path / "run"), "--step", "14", "--images", str(tmp_path / "batch")]
    done = CliRunner().invoke(vitutor, arguments, catch_exceptions=False)
    shown = capfd.readouterr().out
    assert done.exit_code == 0
    assert shown.count("step 14 of 15") == 1
    assert "the same" in next(line for line in shown.splitlines() if line.startswith("train_loss"))
    assert len((tmp_path / "batch" / "step-00000014.csv").read_text().splitlines()) == 21
