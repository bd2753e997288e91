from __future__ import annotations

import json
import sys

import pytest

from core.tests.toy_paper import write_toy_paper
from vitutor_core.cli import compare, reproduce
from vitutor_core.cli.main import vitutor
from vitutor_core.errors import ConfigError, VitutorError
from vitutor_core.paper import Paper, load

PAPER = Paper(
    "toypaper",
    config="vitutor_core.schema:RunConfig",
    method="vitutor_core.train.supervised:Supervised",
)
BUDGET = {
    "data": {"source": "digits", "image_size": 16, "per_class": 4},
    "optim": {"lr": 0.01, "schedule_unit": "update"},
    "train": {"epochs": 1, "batch_size": 20},
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    folder = write_toy_paper(tmp_path / "toy")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(compare, "installed_papers", lambda: {"toypaper": PAPER})
    monkeypatch.setattr(compare, "_budget", lambda scale: BUDGET)
    yield tmp_path
    for name in ("toypaper", "toypaper.cli"):
        sys.modules.pop(name, None)


def run(where, *arguments):
    vitutor.main(["compare", "--seeds", "0,1", "--out", str(where / "out"), *arguments], standalone_mode=False)


def test_every_row_gets_the_budget_and_a_finished_one_is_kept(toy, monkeypatch, capsys):
    made = []

    def in_process(jobs, *_, done, **__):
        made.append(jobs[0].arguments["label"]["row"])
        for job in jobs:
            load(job.target)(**job.arguments)
            done(job)

    monkeypatch.setattr(reproduce, "run_jobs", in_process)
    run(toy)
    assert made == ["plain", "warm", "tuned"]
    (line,) = json.loads((toy / "out" / "compare.json").read_text())["lines"]
    assert (line["paper"], line["updates"], line["pretraining_updates"], line["train_images"]) == ("toypaper", 2, 4, 40)
    tuned = json.loads((toy / "out" / "evaluation" / "toypaper" / "tuned" / "seed-1" / "metrics.json").read_text())
    assert tuned["config"]["optim"]["lr"] == 0.01
    assert tuned["config"]["student"]["weights"].endswith("runs/toypaper/warm/seed-1")
    warm = json.loads((toy / "out" / "evaluation" / "toypaper" / "warm" / "seed-1" / "metrics.json").read_text())
    assert (warm["config"]["optim"]["lr"], warm["config"]["data"]["per_class"]) == (1e-2, 4)
    mean = line["method"]["mean"] - line["plain"]["mean"]
    assert line["gain"]["mean"] == pytest.approx(mean)
    assert "toypaper" in capsys.readouterr().out

    made.clear()
    run(toy)
    assert made == []
    run(toy, "--set", "data.per_class=5")
    assert made == ["plain", "warm", "tuned"]


def test_gains_share_their_five_percent_and_digits_get_no_verdict(capsys):
    def line(paper, p, source):
        gain = {"mean": 2.0, "standard_error": 0.5, "df": 8.0, "p": p, "over": "seeds and images"}
        stats = {"mean": 70.0, "sd": 1.0}
        cost = {"updates": 9, "pretraining_updates": 0, "cost": 1.0, "teachers": {}}
        return {"paper": paper, "plain": stats, "method": stats, "gain": gain, "source": source, **cost}

    for source, verdicts in (("folder:mine", ["above", "inconclusive"]), ("digits", [None, None])):
        lines = compare._judged([line("one", 0.01, source), line("two", 0.06, source)])
        compare._show(lines)
        assert [found.get("verdict") for found in lines] == verdicts
        assert ("smoke test" in capsys.readouterr().out) == (source == "digits")


def test_no_name_or_number_is_cut_in_the_table(capsys):
    gain = {"mean": -17.5, "standard_error": 17.7, "df": 2.0, "p": 0.9, "over": "seeds"}
    stats = {"mean": 56.2, "sd": 23.0}
    cost = {"updates": 9_000, "pretraining_updates": 18_000, "cost": 10.5, "source": "folder:mine"}
    teachers = {"cnn": "resnet8_tiny", "inn": "rednet_tiny"}
    line = {"paper": "bootstrapping_vit", "plain": stats, "method": stats, "gain": gain, "teachers": teachers, **cost}
    compare._show(compare._judged([line]))
    shown = capsys.readouterr().out
    for text in ("bootstrapping_vit", "56.2 +- 23.0", "-17.5 +- 17.7", "cnn: resnet8_tiny", "inn: rednet_tiny"):
        assert text in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


def test_a_paper_that_is_not_there(toy):
    with pytest.raises(ConfigError, match=r"'toypapr' is not installed; did you mean 'toypaper'\?$"):
        run(toy, "--papers", "toypapr")
    with pytest.raises(ConfigError, match=r"'other' is not installed; pip install \./other$"):
        run(toy, "--papers", "other")


def test_a_paper_that_names_no_rows_is_refused_before_anything_is_trained(toy):
    recipe = toy / "toy" / "toypaper" / "recipes" / "digits.yaml"
    recipe.write_text(recipe.read_text().partition("compare:")[0])
    with pytest.raises(ConfigError, match="recipe of toypaper at 'digits' has no key 'compare'; leave it out"):
        run(toy)
    assert not (toy / "out").exists()


def test_a_row_changed_by_the_budget_keeps_what_is_its_own(toy):
    changes = [f"{name}={json.dumps(value)}" for name, value in BUDGET.items()]
    config = PAPER.resolve("digits", None, "tuned", tuple(changes))
    assert config.student.start_row == "warm"
    assert config.train.epochs == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data.source=folder:nowhere",), r"toypaper, row plain: .*nowhere: no such folder"),
        (("train.batch_size=500",), r"toypaper, row plain: train\.batch_size: 500 is larger"),
        (("student={name: inception_v3}",), r"toypaper, row plain: student\.name: inception_v3 does not work"),
        (("runtime.device=mps",), r"toypaper, row plain: runtime\.device: 'mps'"),
        (("optim.lr=-1",), r"toypaper, row plain: .*optim\.lr"),
    ],
)
def test_every_config_is_checked_before_the_first_run(toy, monkeypatch, settings, message):
    monkeypatch.setattr(compare, "reproduce_row", lambda *_: pytest.fail("trained"))
    with pytest.raises(VitutorError, match=message):
        run(toy, *(word for setting in settings for word in ("--set", setting)))
    assert not (toy / "out").exists()


def test_a_mistake_of_the_last_row_is_found_before_the_first(toy, monkeypatch):
    monkeypatch.setattr(compare, "reproduce_row", lambda *_: pytest.fail("trained"))
    recipe = toy / "toy" / "toypaper" / "recipes" / "digits.yaml"
    recipe.write_text(recipe.read_text().replace("{student.start_row: warm}", "{student.kwargs.patch_size: 7}"))
    with pytest.raises(ConfigError, match=r"^toypaper, row tuned: .*patches of 7 px"):
        run(toy)


def test_an_error_of_a_run_says_whose_it_is(toy, monkeypatch):
    def fail(*_):
        raise VitutorError("seed 0 failed")

    monkeypatch.setattr(compare, "reproduce_row", fail)
    with pytest.raises(VitutorError, match=r"^toypaper, row plain: seed 0 failed"):
        run(toy)
