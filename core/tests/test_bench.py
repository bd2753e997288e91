"""`vitutor bench` in seconds: its structure, its gates, its exit codes, and the parts that need a GPU, without one."""

from __future__ import annotations

import itertools
import json
import sys
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from conformance import forked
from core.tests.test_compare import PAPER
from core.tests.test_taught import Pupil
from core.tests.toy_paper import write_toy_paper
from core.tests.train_samples import tiny_config
from vitutor_core.baseline import BaselineConfig
from vitutor_core.bench import gpu, loaders, methods, plain, subjects, suite, timing
from vitutor_core.bench.driven import Driven
from vitutor_core.bench.methods import Subject
from vitutor_core.bench.result import Result, check_losses
from vitutor_core.bench.synthetic import synthetic
from vitutor_core.cli.entry import run
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.distributed import Processes
from vitutor_core.errors import VitutorError
from vitutor_core.train.supervised import Supervised

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
QUICK = ("limits", "plain step", "waiting for data", "resident loader", "methods", "teachers")
CONFIG = suite.plain_config("digits", CPU)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write_toy_paper(tmp_path / "toy"))
    monkeypatch.setattr(subjects, "installed_papers", lambda: {"toypaper": PAPER})
    monkeypatch.setattr(loaders, "STORED", 256)
    monkeypatch.setattr(loaders, "BATCH", 16)
    yield tmp_path
    for name in ("toypaper", "toypaper.cli"):
        sys.modules.pop(name, None)


def code_of(*arguments):
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as left:
            run(vitutor, ["bench", *map(str, arguments)])
    finally:
        torch.set_num_threads(threads)
    return left.value.code


def short(toy, *parts):
    chosen = [option for part in parts for option in ("--only", part)]
    return ("--scale", "digits", "--minutes", "0.01", "--out", toy / "out", *chosen)


# --- the command


def test_the_record_table_and_figure(toy, capsys):
    assert code_of(*short(toy, *QUICK)) == 0
    record = json.loads((toy / "out" / "bench.json").read_text())
    assert record["parts"].keys() == set(QUICK)
    assert record["machine"]["processor"]
    assert record["versions"]["torch"]
    assert set(record["git"]) == {"commit", "dirty"}
    assert (record["device"], record["scale"], record["threads"], record["minutes"]) == ("cpu", "digits", 1, 0.01)
    rows = [row for part in record["parts"].values() for row in part["rows"]]
    names = {(row["first"], row["second"]) for row in rows}
    assert {("timm step by hand", "plain step"), ("toypaper, warm: step", "plain student: step")} <= names
    for row in rows:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["pairs"] >= 2
        assert min(row["first_ms"], row["second_ms"]) > 0
    gates = [row["equal"] for row in rows if row["first"] == "timm step by hand"]
    assert gates == ["5 losses, bit for bit"]
    figures = record["parts"]["limits"]["figures"]
    assert all(value > 0 for value in figures.values())
    assert record["parts"]["methods"]["figures"]["toypaper, warm: MiB kept for the backward pass"] > 0
    assert record["parts"]["plain step"]["skipped"].keys() == {"compiled steps"}
    assert "no installed method" in record["parts"]["teachers"]["skipped"]["teachers"]
    shown, figure = capsys.readouterr().out, (toy / "out" / "bench.svg").read_text()
    for text in ("timm step by hand", "toypaper, warmed: step"):
        assert text in shown
        assert text in figure
    assert sorted(path.name for path in (toy / "out").iterdir()) == ["bench.json", "bench.svg"]


def test_other_losses_are_an_error_and_no_ratio(toy, monkeypatch, capsys):
    update = plain.ByHand.update
    monkeypatch.setattr(plain.ByHand, "update", lambda *given: update(*given) * (1 + 1e-7))
    assert code_of(*short(toy, "plain step")) == 1
    assert "loss 0 is" in capsys.readouterr().err
    assert not (toy / "out").exists()


def test_what_cannot_be_measured_is_a_usage_error(toy, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert code_of(*short(toy), "--device", "cuda") == 2
    assert "0 CUDA devices found" in capsys.readouterr().err
    assert code_of(*short(toy, "several GPUs")) == 2
    assert "'several GPUs': needs a GPU" in capsys.readouterr().err
    assert code_of("--minutes", "0") == 2
    assert code_of("--only", "everything") == 2


@pytest.mark.slow
def test_files_are_loaded_by_both(toy, monkeypatch):
    monkeypatch.setattr(loaders, "FILES", 40)
    assert code_of(*short(toy, "streamed loader")) == 0
    rows = json.loads((toy / "out" / "bench.json").read_text())["parts"]["streamed loader"]["rows"]
    expected = [f"timm, files: {side} px, workers {workers}" for side in (32, 224) for workers in (1, 2)]
    assert [row["first"] for row in rows] == expected


def test_a_paper_without_the_scale_is_left_out_and_so_is_what_has_no_memory(toy, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(suite.of_methods, "methods", full)
    assert code_of("--scale", "small", "--minutes", "0.001", "--out", toy / "out", "--only", "methods") == 0
    record = json.loads((toy / "out" / "bench.json").read_text())
    assert "out of memory at scale small" in record["parts"]["methods"]["skipped"]["methods"]
    assert record["peak_mib"] > 0
    assert sorted(path.name for path in (toy / "out").iterdir()) == ["bench.json"]


# --- times


def test_pairs_are_taken_in_turn_until_the_time_is_up():
    calls = []
    times = timing.interleave(lambda: calls.append("a"), lambda: calls.append("b"), rounds=3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert [len(own) for own in times] == [3, 3]
    assert len(timing.interleave(int, int, seconds=0.0)[0]) == 2


def test_the_ratio_is_that_of_the_pairs():
    found = timing.ratio([1.0, 4.0, 9.0, 2.0, 5.0], [1.0, 2.0, 3.0, 4.0, 1.0])
    assert (found["ratio"], found["low"], found["high"], found["pairs"]) == (2.0, 1.0, 3.0, 5)
    assert (found["first_ms"], found["second_ms"]) == (4000.0, 2000.0)


def test_time_that_is_left_goes_to_later_parts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    budget = timing.Budget(100.0, {"a": 1, "b": 1, "c": 2})
    assert budget.take("a") == 25.0
    now[0] = 10.0
    assert budget.take("b") == 30.0
    now[0] = 120.0
    assert budget.take("c") == 0.0


@pytest.mark.parametrize(("device", "rtol", "off", "passes"), [
    ("cpu", None, 0.0, True), ("cpu", None, 1e-9, False), ("cpu", 1e-4, 1e-5, True), ("cpu", 1e-4, 1e-3, False),
    ("cuda", None, 5e-3, True), ("cuda", None, 5e-2, False),
])  # fmt: skip
def test_the_gate(device, rtol, off, passes):
    def check():
        return check_losses("x", [1.0, 2.0], [1.0, 2.0 * (1 + off)], torch.device(device), rtol=rtol)

    if passes:
        assert check().startswith("2 losses, ")
    else:
        with pytest.raises(VitutorError, match="loss 1 is"):
            check()


# --- steps and teachers


def subject(build=Supervised.build, *settings):
    config = tiny_config("augment.pad_crop=0", *settings)
    return Subject("pupil", build, config, BaselineConfig.from_mapping(config.model_dump(), where="plain"))


def test_a_paper_with_terms_of_its_own_is_raced_against_the_student_alone(tmp_path, monkeypatch):
    papers = {"drloc": pytest.importorskip("drloc.cli").PAPER}
    monkeypatch.setattr(subjects, "installed_papers", lambda: papers)
    raced = subjects.subjects("digits", tmp_path, bf16=False)
    assert [one.name for one in raced] == ["drloc, drloc"]
    found = methods.methods(raced, ALONE, 0.0)
    assert [(row.first, row.second) for row in found.rows] == [("drloc, drloc: step", "plain student: step")]
    kept = found.figures
    assert (
        kept["drloc, drloc: MiB kept for the backward pass"]
        > (kept["drloc, drloc, plain student: MiB kept for the backward pass"])
    )


def test_compiled_steps_are_compared_where_there_is_time(monkeypatch):
    monkeypatch.setattr(plain, "COMPILE_S", 0.0)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = plain.steps(CONFIG, ALONE, 0.1)
    pairs = [(row.first, row.second) for row in found.rows]
    assert pairs[1:] == [
        ("timm step by hand, compiled", "plain step, compiled"),
        ("plain step", "plain step, compiled"),
    ]
    assert found.rows[1].equal == "5 losses, within 0.0001"


def test_teachers_are_compared_with_what_they_said(monkeypatch):
    monkeypatch.setattr("vitutor_core.bench.synthetic.CLASSES", 10)
    found = methods.teachers([subject(Pupil.build)], ALONE, 0.0)
    assert [(row.first, row.second) for row in found.rows] == [
        ("pupil: teacher online", "pupil: logits stored"),
        ("pupil: logits stored", "plain student"),
    ]
    assert found.rows[0].equal == "16 losses, bit for bit"
    monkeypatch.setattr("vitutor_core.distill.logits.decode", lambda *_: torch.zeros(20, 10))
    with pytest.raises(VitutorError, match="logits stored and online"):
        methods.teachers([subject(Pupil.build)], ALONE, 0.0)


def test_what_autograd_keeps_grows_with_the_batch_and_not_with_the_weights():
    few, many = (methods.kept_bytes(subject(Supervised.build, f"train.batch_size={n}").drive(
        tiny_config(f"train.batch_size={n}"), ALONE)) for n in (20, 40))  # fmt: skip
    assert 1.9 < many / few < 2.1


# --- what needs a GPU


def fail_from(step):
    """Let updates from that one on fail, as torch does in its sync debug mode."""

    @contextmanager
    def refused():
        update = Driven.update

        def checked(driven, batches):
            if driven.state.step >= step:
                raise RuntimeError("called a synchronizing CUDA operation\nmore")
            return update(driven, batches)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Driven, "update", checked)
            yield

    return refused


@pytest.mark.parametrize(("step", "made"), [(1000, 10), (7, 4)])
def test_steps_without_a_wait_are_counted(step, made, monkeypatch):
    monkeypatch.setattr(gpu, "STEPS", 10)
    train = loaders.resident_loader(CONFIG, CPU)
    found = gpu.queue([subject()], CONFIG, train, ALONE, refused=fail_from(step))
    for name in ("plain student", "pupil"):
        assert found.figures[f"{name}: steps without a wait of the host, of 10"] == made
        assert found.figures[f"{name}: kernels launched per step"] == 0  # of a GPU
        reason = found.skipped.get(f"{name}: 10 steps without a wait")
        assert reason == (None if made == 10 else "called a synchronizing CUDA operation")


def test_torchs_mode_is_set_back(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with pytest.raises(KeyError), gpu.waits_refused():
        raise KeyError
    assert modes == ["error", "default"]


def test_one_gpu_does_not_scale():
    found = gpu.scaling(CONFIG, 1.0, lambda *_: pytest.fail("started"), most=1)
    assert found.skipped == {"several GPUs": "1 GPU; it takes two"}


@pytest.mark.slow
def test_several_processes_share_the_work(monkeypatch):
    monkeypatch.setattr(sys, "executable", forked.python())
    found = gpu.scaling(CONFIG, 0.1, subjects.on_processes, device="cpu", most=2)
    assert found.figures.keys() == {
        "1 processes: ms per step",
        "2 processes: ms per step",
        "2 processes: efficiency, of 1; goal 0.9",
    }
    assert all(value > 0 for value in found.figures.values())


def test_on_a_gpu_everything_is_measured(monkeypatch):
    asked = []
    for module, name in [
        (suite.limits, "roofline"), (plain, "steps"), (plain, "waiting"), (loaders, "resident"), (loaders, "streamed"),
        (methods, "methods"), (methods, "teachers"), (gpu, "queue"), (gpu, "scaling"),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, lambda *given, name=name: asked.append((name, given)) or Result())
    monkeypatch.setattr(loaders, "resident_loader", lambda *_: None)
    processes = Processes(0, 1, torch.device("cuda", 0))
    found = suite.run("cifar100", [], processes, minutes=1.0, launch=subjects.on_processes)
    assert tuple(found) == tuple(suite.SHARES)
    assert len(asked) == len(suite.SHARES)
    config = suite.plain_config("cifar100", processes.device)
    assert config.train.precision == "bf16"
    assert suite.run("cifar100", [], ALONE, minutes=1.0, launch=subjects.on_processes).keys() == set(suite.SHARES) - {
        "host and kernels",
        "several GPUs",
    }


def test_noise_has_the_shapes_of_the_config():
    config = tiny_config("augment.mixup=0.8")
    data = synthetic(config, CPU, updates=2)
    (batch,), (other,) = itertools.chain(data.train.epoch(0))
    assert (*batch.images.shape, *batch.targets.shape) == (20, 3, 16, 16, 20, 100)
    assert not torch.equal(batch.images, other.images)
    assert torch.equal(next(data.train.epoch(1, start_step=1))[0].images, other.images)
