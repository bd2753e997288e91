"""`vitutor compare` on the installed papers: every line and composition takes its first step; some are trained."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from vitutor_core.api import compare
from vitutor_core.compare.contest import Contest
from vitutor_core.compare.price import Prices
from vitutor_core.data.types import DataInfo
from vitutor_core.errors import ConfigError
from vitutor_core.jobs import reproduce, teacher
from vitutor_core.paper import installed_paper, installed_papers, load
from vitutor_core.runs import RunRecord

pytest.importorskip("dearkd")
TINY = (
    *("data.per_class=4", "train.epochs=1", "train.epoch_length=subset", "train.batch_size=20", "runtime.device=cpu"),
    *(
        "student.kwargs.embed_dim=24",
        "student.kwargs.num_heads=2",
        "student.kwargs.mlp_ratio=1",
        "optim.warmup_epochs=0",
    ),
)


def test_every_composition_of_the_papers_takes_its_first_step():
    contest = Contest("digits", installed_papers(), TINY)
    prices = Prices(contest)
    names = contest.compositions()
    assert {"dearkd+drloc", "coadvise+drloc", "joint+drloc", "dearkd+mae_tuned", "mae_tuned+drloc"} <= set(names)
    assert not any("cit" in name or "mhca" in name for name in names)  # they have students of their own
    for name in [*names, "dearkd+drloc+mae_tuned"]:
        prices.check(contest.entry(name))
    alone, both = (prices.of(contest.entry(name).row).flops for name in ("dearkd", "dearkd+drloc"))
    head = both - alone
    assert 0 < head < alone
    assert prices.total(contest.entry("dearkd+mae_tuned")) == pytest.approx(
        prices.total(contest.entry("dearkd"))
        + prices.total(contest.entry("mae_tuned"))
        - prices.of(contest.entry("plain").row).flops
    )


def test_terms_are_in_one_order_whatever_was_asked():
    contest = Contest("digits", installed_papers(), TINY)
    entry = contest.entry("mae_tuned+drloc+dearkd")
    assert (entry.name, entry.row.paper.package) == ("dearkd+drloc+mae_tuned", "dearkd+drloc")
    assert entry == contest.entry("dearkd+drloc+mae_tuned")
    assert contest.entry("drloc+mae_tuned").name == "mae_tuned+drloc"


def test_a_schedule_that_pre_training_cannot_have_is_found_before_anything_is_trained():
    contest = Contest("digits", installed_papers(), (*TINY[:-1], "optim.warmup_epochs=5"))
    with pytest.raises(ConfigError, match=r"row mae: optim\.warmup_epochs: 5 of 1 epochs leave none"):
        Prices(contest).check(contest.entry("mae_tuned"))


def test_the_term_of_another_paper_is_a_section_of_the_config(tmp_path):
    paper = installed_paper("dearkd+drloc")
    assert paper == installed_paper("dearkd").beside(installed_paper("drloc"))
    schema = load(paper.config)
    plain = load(installed_paper("dearkd").config)
    assert set(schema.model_fields) - set(plain.model_fields) == {"drloc"}
    assert schema is load(paper.config)
    config = Contest("digits", installed_papers(), TINY).entry("dearkd+drloc").row.config(0)
    assert isinstance(config, schema)
    assert (config.drloc.weight, config.drloc.hidden) == (0.5, 64)
    assert config.changed(["drloc.weight=0.1"]).fingerprint() != config.fingerprint()
    with pytest.raises(ConfigError, match="coadvise: it has no term that goes beside another method"):
        load("dearkd.config:DearKDConfig+coadvise")


@pytest.mark.slow
def test_methods_and_their_compositions_are_trained_to_a_table(tmp_path, monkeypatch):
    def in_process(jobs, *_, done, **__):
        for job in jobs:
            load(job.target)(**job.arguments)
            done(job)

    monkeypatch.setattr(reproduce, "run_jobs", in_process)
    monkeypatch.setitem(teacher._INHERITED, "train", ("epochs",))
    composed = ["joint+drloc", "dearkd+mae_tuned", "mae_tuned+drloc"]
    board = compare(tmp_path, seeds=[0], settings=TINY, methods=[], compose=composed)
    lines = {line["name"]: line for line in board["lines"]}
    assert lines.keys() == {"plain", "joint", "drloc", "dearkd", "mae_tuned", *composed}
    for name in composed:
        parts = [lines[part]["top1"]["mean"] for part in lines[name]["parts"]]
        expected = lines[name]["top1"]["mean"] - sum(parts) + lines["plain"]["top1"]["mean"]
        assert lines[name]["extra"]["mean"] == pytest.approx(expected)

    runs = tmp_path / "runs"
    common = {name: tuple(value.shape) for name, value in _weights(runs / "vitutor_core" / "plain").items()}
    folders = ["bootstrapping_vit+drloc/joint+drloc", "mae_lite_distill+drloc/mae_tuned+drloc"]
    folders += ["dearkd/dearkd+mae_tuned", "drloc/drloc", "dearkd/dearkd"]
    for folder in folders:
        assert {name: tuple(value.shape) for name, value in _weights(runs / folder).items()} == common

    record = RunRecord.read(runs / "dearkd" / "dearkd+mae_tuned" / "seed-0")
    encoder = runs / "mae_lite_distill" / "mae"
    assert record.config["student"]["weights"] == str(encoder / "seed-0")
    config = load("dearkd.config:DearKDConfig").from_mapping(record.config, where="run")
    torch.manual_seed(0)
    start = load("dearkd.method:DearKD").build(config, _info(record)).student.state_dict()
    for name, value in _weights(encoder).items():
        if not name.startswith("head."):
            assert torch.equal(value, start[name]), name
    both = json.loads((tmp_path / "evaluation" / folders[0] / "seed-0" / "metrics.json").read_text())
    assert both["paper"] == "bootstrapping_vit+drloc"
    assert {"top1", "agent_top1"} <= both["metrics"].keys()
    assert both["config"]["drloc"]["weight"] == 0.5


def _weights(row):
    return load_file(row / "seed-0" / "student.safetensors")


def _info(record: RunRecord) -> DataInfo:
    names = tuple(str(digit) for digit in range(10))
    return DataInfo("digits", names, record.config["data"]["image_size"], 3, (0.5,) * 3, (0.5,) * 3, 40, 896, "")
