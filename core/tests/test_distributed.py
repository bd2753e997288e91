from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d

from conformance import forked
from conformance.suite import assert_equal_weights
from core.tests.train_samples import (
    PLAIN_SGD,
    TwoPart,
    after_each_update,
    curves,
    run,
    same,
    small_digits,
    steps_of,
    weights,
)
from vitutor_core.distributed import (
    Processes,
    choose_device,
    effective_precision,
    gather_rows,
    sum_over_processes,
    synchronise_batch_norm,
    world,
)
from vitutor_core.errors import ConfigError, InterruptedRun
from vitutor_core.runs import RunRecord
from vitutor_core.schema import RunConfig
from vitutor_core.train import checkpoint, session
from vitutor_core.train.evaluation import evaluate_run
from vitutor_core.train.run_folder import RunFolder
from vitutor_core.train.supervised import Supervised

SETTINGS = (*PLAIN_SGD, "optim.lr=0.1", "train.ema_decay=0.9", "train.accumulate=2", "runtime.eval_batch_size=7")


class Kept(TwoPart):
    """Hands the trained method over to the test."""

    @classmethod
    def build(cls, config, info):
        cls.last = super().build(config, info)
        return cls.last


def _rank(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    root = Path(folder)
    patch = pytest.MonkeyPatch()
    if rank == 1:  # only the first process may write
        for module, name in ((checkpoint, "save"), (session, "save_model"), (RunRecord, "write")):
            patch.setattr(module, name, lambda *_: pytest.fail("the second process writes"))
        patch.setattr(RunFolder, "write_curves", lambda *_: pytest.fail("the second process writes"))
    result = run(root / "run", *SETTINGS, build=Kept.build)
    save_file(Kept.last.state_dict(), root / f"rank-{rank}.safetensors")
    (root / f"rank-{rank}.json").write_text(json.dumps(result))

    if rank == 1:  # a signal that reaches one process stops both
        after_each_update(
            patch, lambda updater: os.kill(os.getpid(), signal.SIGTERM) if updater.state.step == 7 else None
        )
    with pytest.raises(InterruptedRun) as caught:
        run(root / "stopped", *SETTINGS, build=Kept.build)
    assert caught.value.exit_code == 143
    assert steps_of(root / "stopped") == [5, 8]
    patch.undo()
    run(root / "stopped", *SETTINGS, build=Kept.build)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes have trained together."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forked.together(_rank, str(folder), port)
    return folder


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(two):
    first, second = (load_file(two / f"rank-{rank}.safetensors") for rank in range(2))
    assert same(first, second)
    assert same({name.removeprefix("student."): value for name, value in first.items()}, weights(two / "run"))


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_same_batch(two, tmp_path):
    # Dropout is off and there is no batch norm, so a batch of 20 is a batch of 20: in one process two micro-batches
    # of 10, in two processes four of 5. Fifteen updates apart, the order of sums shows in the last digits of fp32.
    result = run(tmp_path / "one", *SETTINGS, build=TwoPart.build)
    for name in ("student", "student_ema"):
        one, both = weights(tmp_path / "one", name), weights(two / "run", name)
        for key in one:
            torch.testing.assert_close(both[key], one[key], rtol=0, atol=5e-6, msg=key)
    metrics = json.loads((two / "run" / "metrics.json").read_text())["metrics"]
    assert metrics == pytest.approx(result["metrics"], rel=1e-4)
    for line, alone in zip(curves(two / "run"), curves(tmp_path / "one"), strict=True):
        assert line["train_loss"] != ""
        assert float(line["train_loss"]) == pytest.approx(float(alone["train_loss"]), rel=1e-5)


@pytest.mark.slow
def test_every_evaluation_image_counts_once_and_both_processes_know_the_result(two):
    first, second = (json.loads((two / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second == json.loads((two / "run" / "metrics.json").read_text())
    assert first["metrics"]["images"] == len(small_digits().evaluation.labels)


@pytest.mark.slow
def test_two_processes_know_which_images_were_right(two):
    record = RunRecord.read(two / "run", "supervised")
    with mock.patch("vitutor_core.data.build.open_source", return_value=small_digits()):
        alone = evaluate_run(two / "run", record, RunConfig, Kept.build).correct
    assert record.correct == alone
    assert alone.keys() == {"top1", "ema_top1"}
    right = bin(int(alone["top1"], 16)).count("1")
    assert 100 * right / record.metrics["images"] == record.metrics["top1"]


@pytest.mark.slow
def test_the_folder_is_written_once(two):
    assert len(json.loads((two / "run" / "run.json").read_text())["sessions"]) == 1
    assert len(curves(two / "run")) == 3
    assert not list(two.rglob("*.tmp*"))


@pytest.mark.slow
def test_two_stopped_processes_go_on_where_they_were(two):
    assert_equal_weights(two / "stopped", two / "run")
    assert curves(two / "stopped") == curves(two / "run")


def _collect(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    assert world() == (rank, 2)
    rows = torch.tensor([[0, 1], [2, 3], [4, 5]])
    own = rows[:1] if rank == 0 else rows[1:]
    assert torch.equal(gather_rows(own), rows)
    assert torch.equal(gather_rows(own[:1], even=True), rows[:2])
    own = torch.tensor([1.0, 10.0]) * (rank + 1)
    assert sum_over_processes(own) is own
    assert own.tolist() == [3.0, 30.0]
    assert synchronise_batch_norm(torch.nn.BatchNorm1d(2)).__class__ is torch.nn.BatchNorm1d  # gloo has no other
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_put_together_what_they_have(tmp_path):
    forked.together(_collect, str(tmp_path))


def test_batch_norm_is_synchronised_on_gpus_with_its_activation_and_its_names(monkeypatch):
    model = timm.create_model("efficientnet_lite0", num_classes=3)
    assert synchronise_batch_norm(model) is model
    assert not any(isinstance(part, torch.nn.SyncBatchNorm) for part in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = {name: part.act for name, part in model.named_modules() if isinstance(part, BatchNormAct2d)}
    monkeypatch.setattr("vitutor_core.distributed.world", lambda: (0, 2))
    monkeypatch.setattr("vitutor_core.distributed.dist.get_backend", lambda: "nccl")
    parts = dict(synchronise_batch_norm(model).named_modules())
    assert own
    assert all(isinstance(parts[name], torch.nn.SyncBatchNorm) and parts[name].act is act for name, act in own.items())
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(("settings", "asked"), [((), 0), (("runtime.sync_batch_norm=true",), 1)])
def test_the_loop_asks_for_it_where_the_config_says_so(tmp_path, monkeypatch, settings, asked):
    seen = []
    monkeypatch.setattr(
        "vitutor_core.train.session.synchronise_batch_norm", lambda method: seen.append(method) or method
    )
    run(tmp_path / "run", "train.epochs=1", *settings)
    assert [type(method) for method in seen] == [Supervised] * asked


def test_alone_there_is_nothing_to_put_together():
    rows = torch.arange(6).view(3, 2)
    assert world() == (0, 1)
    assert gather_rows(rows) is rows
    assert sum_over_processes(rows) is rows


def test_processes_talk_in_one_module():
    """Guards and collectives are written once; the launcher starts torchrun and talks to nobody."""
    root = Path(__file__).parents[2]
    talking = [path for path in root.glob("*/src/**/*.py") if "torch.distributed" in path.read_text()]
    assert sorted(path.name for path in talking) == ["distributed.py", "launch.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "moment", "code"),
    [("kill", "step", -9), ("bad data", "step", 3), ("bug", "start", 1), ("full", "start", 6)],
)
def test_the_other_process_points_to_the_one_that_failed(tmp_path, how, moment, code):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "import sys; from core.tests.rank import main; main(*sys.argv[1:])"
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(forked.Forked(program, rank, port, tmp_path / "run", how, moment)) for rank in "01"
        )
        _, own = second.communicate(timeout=120)
        _, errors = first.communicate(timeout=120)
    assert (second.returncode, first.returncode) == (code, 1), own + errors
    assert "Traceback" not in errors
    shown = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert shown == [
        "error: process 0 of 2: another process of this run has ended, and its own message says why; "
        "--debug shows what was lost here"
    ]
    assert not (tmp_path / "run").exists()


def test_devices_that_are_not_there_are_named():
    for name in ("gpu", "meta", "mps"):
        with pytest.raises(ConfigError, match=rf"runtime\.device: '{name}' is not a device"):
            choose_device(name)
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigError, match=rf"runtime\.device: {missing} asked for, \d+ CUDA devices found"):
        choose_device(missing)
    assert choose_device("cpu") == torch.device("cpu")


def test_half_precision_is_for_accelerators():
    for device, expected in (("cpu", "fp32"), ("cuda", "bf16")):
        assert effective_precision("bf16", torch.device(device)) == expected
        assert effective_precision("fp32", torch.device(device)) == "fp32"


def test_one_process_needs_no_group():
    alone = Processes(0, 1, torch.device("cpu"))
    module = torch.nn.Linear(1, 1)
    assert alone.wrap(module) is module
    assert alone.any(True)
    assert not alone.any(False)
    alone.barrier()
