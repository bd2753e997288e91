"""`vitutor compare` on the toy paper: which lines there are, what they share, what they cost, and that it goes on."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core.tests.toy_paper import write_toy_paper
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.compare import papers as compare
from vitutor_core.compare import price
from vitutor_core.compare import running as contest
from vitutor_core.compare.contest import Contest
from vitutor_core.compare.price import Prices
from vitutor_core.data.types import DataInfo
from vitutor_core.errors import ConfigError, VitutorError
from vitutor_core.jobs import reproduce, teacher
from vitutor_core.paper import Paper, load
from vitutor_core.train.cost import Length, step_seconds, training_flops
from vitutor_core.train.method import Method, StepOutput

PAPER = Paper(
    "toypaper",
    config="vitutor_core.schema:RunConfig",
    method="vitutor_core.train.supervised:Supervised",
)
SMALL = (
    *("data.per_class=4", "train.epochs=1", "train.epoch_length=subset", "train.batch_size=20", "optim.lr=0.01"),
    *("student.kwargs.embed_dim=16", "student.kwargs.depth=1", "student.kwargs.num_heads=2"),
    *("student.kwargs.patch_size=8", "runtime.device=cpu"),
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    folder = write_toy_paper(tmp_path / "toy")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(compare, "installed_papers", lambda: {"toypaper": PAPER})
    yield tmp_path
    for name in ("toypaper", "toypaper.cli"):
        sys.modules.pop(name, None)


@pytest.fixture
def made(monkeypatch):
    """Train in this process, and tell what is trained; teachers for one epoch. No step is timed: see the estimate."""
    rows = []

    def in_process(jobs, *_, done, **__):
        rows.append(jobs[0].arguments["label"]["row"])
        for job in jobs:
            load(job.target)(**job.arguments)
            done(job)

    monkeypatch.setattr(reproduce, "run_jobs", in_process)
    monkeypatch.setitem(teacher._INHERITED, "train", ("epochs",))
    monkeypatch.setattr(price, "step_seconds", lambda *_, **__: 0.01)
    monkeypatch.setattr(compare, "longer", lambda table, _, alone: table.longer(alone, 3))  # as many as it takes: below
    return rows


def run(where, *arguments, settings=SMALL):
    words = [word for text in settings for word in ("--set", text)]
    command = ["compare", "--seeds", "0,1", "--out", str(where / "out"), *words, *arguments]
    vitutor.main(command, standalone_mode=False)
    return json.loads((where / "out" / "compare.json").read_text())


def shapes(where, line):
    (run,) = (where / "out" / "runs").glob(f"*/{line}/seed-0")
    return {name: tuple(value.shape) for name, value in load_file(run / "student.safetensors").items()}


def test_one_student_by_several_lines_and_a_finished_one_is_kept(toy, made, capsys):
    chosen = ("--methods", "cnn,kd_hard,warmed,wide,plain_long")
    board = run(toy, *chosen)
    assert made == ["plain", "cnn", "kd_hard", "warm", "warmed", "wide", "plain_long"]
    lines = {line["name"]: line for line in board["lines"]}
    assert lines.keys() == {*made} - {"warm"}
    common = [name for name, line in lines.items() if line["own"] is None]
    assert {str(shapes(toy, name)) for name in common} == {str(shapes(toy, "plain"))}
    assert shapes(toy, "wide")["pos_embed"][2] == 32 != shapes(toy, "plain")["pos_embed"][2]
    assert len({lines[name]["parameters"] for name in common}) == 1
    assert lines["plain_long"]["spent"]["updates"] == 3 * lines["plain"]["spent"]["updates"] == 6
    assert all(lines[name]["parameters"] != lines["plain"]["parameters"] for name in ("cnn", "wide"))

    assert (lines["warmed"]["spent"]["updates"], lines["warmed"]["before"]["updates"]) == (2, 2)
    assert [found["name"] for found in board["teachers"]] == ["cnn"]
    taught = board["teachers"][0]
    assert lines["kd_hard"]["before"]["updates"] == taught["updates"] > 0
    both = lines["kd_hard"]["seconds"]
    assert both == pytest.approx(lines["kd_hard"]["spent"]["seconds"] + taught["seconds"])
    warmed = json.loads((toy / "out" / "evaluation" / "toypaper" / "warmed" / "seed-1" / "metrics.json").read_text())
    assert warmed["config"]["student"]["weights"].endswith("runs/toypaper/warm/seed-1")
    assert warmed["config"]["optim"]["lr"] == 0.01
    assert "smoke test" in capsys.readouterr().out
    assert {path.name for path in (toy / "out").glob("compare*")} == {
        *("compare.json", "compare.md", "compare.html", "compare-gains.svg")
    }

    made.clear()
    run(toy, *chosen)
    assert made == []
    changed = run(toy, "--methods", "wide", settings=(*SMALL, "data.per_class=5"))
    assert made == ["plain", "wide"]
    assert ({line["name"] for line in changed["lines"]}, changed["train_images"]) == ({"plain", "wide"}, 50)


def test_seeds_that_were_not_asked_for_and_are_of_other_settings_are_left_out(toy, made):
    run(toy, "--methods", "warmed", "--seeds", "0,1")
    board = run(toy, "--methods", "warmed", "--seeds", "0", settings=(*SMALL, "optim.lr=0.02", "data.per_class=5"))
    assert [line["top1"]["n"] for line in board["lines"]] == [1, 1]
    measured = [path.parent.name for path in (toy / "out" / "evaluation" / "toypaper").glob("*/seed-*/metrics.json")]
    assert measured == ["seed-0", "seed-0"]


def test_a_run_that_was_trained_again_is_evaluated_again(toy, made, monkeypatch):
    before = run(toy, "--methods", "other", "--seeds", "0")
    monkeypatch.setattr(reproduce, "train_code", lambda paper: "another")
    after = run(toy, "--methods", "other", "--seeds", "0")
    assert made == ["plain", "other"] * 2
    commands = [(toy / "out" / kind / "toypaper/other/seed-0/metrics.json") for kind in ("runs", "evaluation")]
    assert [json.loads(path.read_text())["code"] for path in commands] == ["another", "another"]
    assert len(before["lines"]) == len(after["lines"]) == 2


def test_interrupted_it_goes_on_with_what_is_left(toy, made, monkeypatch):
    train_row = contest.reproduce_row

    def stop(row, *arguments, **options):
        if row.name == "warmed":
            raise VitutorError("stopped")
        train_row(row, *arguments, **options)

    monkeypatch.setattr(contest, "reproduce_row", stop)
    with pytest.raises(VitutorError, match=r"^toypaper, row warmed: stopped"):
        run(toy, "--methods", "warmed,other")
    assert made == ["plain", "warm"]
    assert [line["name"] for line in json.loads((toy / "out" / "compare.json").read_text())["lines"]] == ["plain"]
    monkeypatch.setattr(contest, "reproduce_row", train_row)
    made.clear()
    board = run(toy, "--methods", "warmed,other")
    assert made == ["warmed", "other"]
    assert {line["name"] for line in board["lines"]} == {"plain", "warmed", "other"}


def test_ctrl_c_while_it_evaluates_says_that_it_goes_on(toy, made, monkeypatch, call):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(contest, "evaluate_row", interrupted)
    words = [word for text in SMALL for word in ("--set", text)]
    code, _, errors = call(vitutor, "compare", "--methods", "plain", "--seeds", "0", "--out", toy / "out", *words)
    assert (code, errors.splitlines()[-1]) == (130, "error: interrupted; run it again to go on")
    assert made == ["plain"]


def test_what_is_published_names_no_folder_of_this_machine(toy, made):
    run(toy, "--methods", "other", "--publish", str(toy / "docs"))
    written = {path.name: path.read_text() for path in (toy / "docs").iterdir()}
    assert written.keys() == {"digits.json", "digits.md", "digits-runs.json", "digits-gains.svg"}
    assert "![digits gains](digits-gains.svg)" in written["digits.md"]
    commands = json.loads(written["digits-runs.json"])
    assert {record["row"] for record in commands} == {"plain", "other"}
    assert str(toy) not in written["digits.json"] + written["digits.md"]


def test_lines_that_a_published_table_loses_are_named_before_anything_is_trained(toy, made, monkeypatch, capsys):
    publish = ("--publish", str(toy / "docs"), "--seeds", "0")
    before = run(toy, "--methods", "other", "--compose", "other+warmed", *publish)
    assert "will be without" not in capsys.readouterr().err
    monkeypatch.setattr(contest, "reproduce_row", lambda *_, **__: (_ for _ in ()).throw(VitutorError("trained")))
    with pytest.raises(VitutorError, match="trained"):
        run(toy, "--methods", "other", *publish)
    lost = sorted({line["name"] for line in before["lines"]} - {"plain", "other"})
    assert lost == ["other+warmed", "warmed"]
    said = next(line for line in capsys.readouterr().err.splitlines() if "will be without" in line)
    assert said.startswith(f"{toy / 'docs' / 'digits.json'}: will be without ")
    assert all(name in said for name in lost)
    assert said.endswith("; name them in --compose or --methods to keep them")


def test_an_estimate_trains_nothing(toy, monkeypatch, capsys):
    monkeypatch.setattr(contest, "reproduce_row", lambda *_, **__: pytest.fail("trained"))
    words = [word for text in SMALL for word in ("--set", text)]
    vitutor.main(["compare", "--estimate", "--out", str(toy / "out"), *words], standalone_mode=False)
    said = capsys.readouterr().err
    assert "9 lines, 30 runs; about" in said  # the row that pre-trains is one, too
    assert "wide                        Wide" in said
    assert "student of its own: twice the width" in said
    assert not (toy / "out").exists()


def test_one_time_is_said_and_it_is_that_of_what_is_left(toy, made, monkeypatch, capsys):
    monkeypatch.setattr(contest, "default_jobs", lambda: 1)
    monkeypatch.setattr(contest, "_START_S", 100.0)
    monkeypatch.setattr(contest, "_RUN_S", 50.0)  # two updates take 0.02 s besides
    words = [word for text in SMALL for word in ("--set", text)]

    def said(*arguments):
        estimate = ["compare", "--estimate", "--methods", "other", "--seeds", "0,1", "--out", str(toy / "out"), *words]
        vitutor.main([*estimate, *arguments], standalone_mode=False)
        return next(line for line in capsys.readouterr().err.splitlines() if " runs; " in line)

    assert said() == "2 lines, 4 runs; about 5 min left, estimated from a timed step of each"  # 100 + 4 x 50
    run(toy, "--methods", "plain")
    for seed in (0, 1):
        path = toy / "out" / "runs" / "vitutor_core" / "plain" / f"seed-{seed}" / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 150.06}))
    capsys.readouterr()
    assert " 4 runs; about 6 min 40 s left, " in said()  # 100 + 2 x 50, which take three times as long
    run(toy, "--methods", "other")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("[")] == ["[1/2] plain", "[2/2] other: about 5 min left"]
    assert said() == "2 lines, 4 runs; all trained"
    assert "; about 5 min left" in said("--set", "data.per_class=5")  # others, of which none is there


def test_of_a_run_that_was_begun_the_rest_is_left(toy):
    row = Contest("digits", {"toypaper": PAPER}, (*SMALL, "train.epochs=4")).entry("other").row
    folders = reproduce.Folders(toy / "out", toy / "out" / "work")
    assert reproduce.share_left(row, 0, folders) == 1
    begun = toy / "out" / "work" / "toypaper" / "digits" / "other-seed-0-abc"
    begun.mkdir(parents=True)
    (begun / "curves.csv").write_text("epoch\n0\n1\n2\n")
    assert reproduce.share_left(row, 0, folders) == 0.25
    assert reproduce.share_left(row, 1, folders) == 1


def test_a_paper_without_a_recipe_at_the_scale_has_no_lines_there(toy):
    of_core = {"plain", "cnn", "kd_soft", "kd_hard", "kd_token"}
    assert set(Contest("digits", {"toypaper": PAPER}).lines) > of_core
    assert set(Contest("small", {"toypaper": PAPER}).lines) == of_core


def test_a_composition_has_one_name_and_is_one_line(toy):
    table = Contest("digits", {"toypaper": PAPER}, SMALL)
    entries = compare._entries(table, ["other+warmed"], ["warmed+other", "other+warmed"])
    assert [entry.name for entry in entries] == ["plain", "other+warmed", "warmed", "other"]
    assert table.entry("warmed+other") == table.entry("other+warmed")
    assert table.entry("warmed+other").parts == ("other", "warmed")


class Pair(Method):
    """A linear student, and a linear teacher that leaves after the first epoch."""

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(48, 2)
        self._teacher = nn.Linear(48, 2)

    def forward(self, batch, clock):
        images = batch.images.flatten(1)
        loss = self.student(images).square().mean()
        if self._teacher is not None:
            with torch.no_grad():
                taught = self._teacher(images).mean()
            loss = loss + taught
        return StepOutput(loss)

    def on_epoch(self, clock):
        left = clock.epoch >= 1 and self._teacher is not None
        if left:
            self._teacher = None
        return left


def test_operations_are_those_counted_by_hand():
    info = DataInfo("toy", ("a", "b"), 4, 3, (0.5,) * 3, (0.5,) * 3, 8, 8, "")
    # 48 x 2 products forward and as many for the gradient of the weights; a product is two operations.
    student, taught = 2 * 2 * 96, 2 * 96
    found = training_flops(Pair(), info, Length(epochs=3, updates=5, batch=7))
    assert found == 5 * 7 * (3 * student + taught)


class Drawing(Pair):
    """Its forward needs what is drawn ahead, as that of DRLoc does."""

    def prepare(self, batch, clock):
        return batch._replace(drawn={"noise": torch.rand(1)})

    def forward(self, batch, clock):
        return super().forward(batch._replace(images=batch.images + batch.drawn["noise"]), clock)


def test_a_step_is_priced_with_what_is_drawn_for_it():
    info = DataInfo("toy", ("a", "b"), 4, 3, (0.5,) * 3, (0.5,) * 3, 8, 8, "")
    length = Length(epochs=1, updates=1, batch=2)
    assert training_flops(Drawing(), info, length) == training_flops(Pair(), info, length)
    assert step_seconds(Drawing(), info, length, torch.device("cpu"), bf16=False) > 0


@pytest.mark.parametrize("bf16", [True, False])
def test_a_step_is_timed_in_the_precision_of_the_run(bf16):
    seen = set()

    class Seeing(Pair):
        def forward(self, batch, clock):
            seen.add(torch.is_autocast_enabled("cpu"))
            return super().forward(batch, clock)

    info = DataInfo("toy", ("a", "b"), 4, 3, (0.5,) * 3, (0.5,) * 3, 8, 8, "")
    step_seconds(Seeing(), info, Length(epochs=1, updates=1, batch=2), torch.device("cpu"), bf16=bf16)
    assert seen == {bf16}


def test_a_line_costs_its_run_and_each_thing_that_it_needs_once(toy):
    table = Contest("digits", {"toypaper": PAPER}, SMALL)
    prices = Prices(table)
    entries = {entry.name: entry for entry in table.entries()}
    for entry in entries.values():
        prices.check(entry)
    ((warm, every),) = table.before(entries["warmed"].row)
    assert (warm.name, every) == ("warm", True)
    assert prices.total(entries["plain"]) == prices.of(entries["plain"].row).flops
    assert prices.total(entries["warmed"]) == prices.of(warm).flops + prices.of(entries["warmed"].row).flops
    (cnn,) = prices.teachers(entries["kd_hard"]).items()
    both = prices.of(entries["kd_hard"].row).flops + prices.teacher(*cnn).flops
    assert prices.total(entries["kd_hard"]) == both
    assert prices.of(entries["plain"].row).updates == 2
    longest = compare.longer(table, prices, entries["plain"]).row.config(0).train.epochs
    most = max(prices.total(entry) for entry in entries.values() if entry.is_common)
    assert (longest - 1) * prices.total(entries["plain"]) < most <= longest * prices.total(entries["plain"])


def test_a_teacher_is_priced_with_the_batch_that_it_gets(toy, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "vitutor_core.compare.price.fitting_batch", lambda config, largest=None: asked.append(largest) or ()
    )
    table = Contest("digits", {"toypaper": PAPER}, SMALL)
    Prices(table).check(table.entry("kd_hard"))
    assert asked == [20]


def test_a_line_that_is_not_on_the_common_student_must_say_so(toy):
    lines = toy / "toy" / "toypaper" / "compare.yaml"
    lines.write_text(lines.read_text().replace("own: twice the width, ", ""))
    with pytest.raises(ConfigError, match=r"toypaper, row wide: its student is not the common one \(blocks"):
        run(toy, "--methods", "wide")
    assert not (toy / "out").exists()


@pytest.mark.filterwarnings("ignore:student.name")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--papers", "toypapr"), r"'toypapr' is not installed; did you mean 'toypaper'\?$"),
        (("--papers", "other"), r"'other' is not installed; pip install \./other$"),
        (("--methods", "warmd"), r"--methods: no line 'warmd'; did you mean 'warmed'\?; there are plain, cnn"),
        (("--compose", "other+kd_soft"), r"--compose other\+kd_soft: 2 methods, 0 starts and 0 terms; at most one"),
        (("--compose", "warmed+wide"), r"--compose warmed\+wide: Wide needs a student of its own"),
        (("--compose", "other"), r"--compose other: join lines by \+, as A\+B"),
        (("--compose", "warmed+warmed"), r"--compose warmed\+warmed: join different lines"),
        (("--compose", "plain+warmed"), r"--compose plain\+warmed: join different lines"),
        (("--student", "resnet18"), r"student\.name: resnet18 is no vision transformer"),
        (("--set", "data.source=folder:nowhere"), r"vitutor-core, row plain: .*nowhere: no such folder"),
        (("--set", "train.batch_size=500"), r"vitutor-core, row plain: train\.batch_size: 500 is larger"),
        (("--set", "runtime.device=mps"), r"vitutor-core, row plain: runtime\.device: 'mps'"),
        (("--set", "optim.lr=-1"), r"optim\.lr"),
    ],
)
def test_every_line_is_checked_before_the_first_run(toy, monkeypatch, arguments, message):
    monkeypatch.setattr(contest, "reproduce_row", lambda *_, **__: pytest.fail("trained"))
    settings = () if arguments[0] == "--student" else SMALL
    with pytest.raises(VitutorError, match=message):
        run(toy, *arguments, settings=settings)
    assert not (toy / "out").exists()


def test_a_mistake_of_the_last_row_is_found_before_the_first(toy, monkeypatch):
    monkeypatch.setattr(contest, "reproduce_row", lambda *_, **__: pytest.fail("trained"))
    lines = toy / "toy" / "toypaper" / "compare.yaml"
    lines.write_text(lines.read_text().replace("$student.wide", "17"))
    with pytest.raises(ConfigError, match=r"^toypaper, line wide: .*embed_dim is 17"):
        run(toy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plain: {title: A, row: plain}", "toypaper/compare.yaml: there is a line 'plain' already"),
        ("a: {title: A}", "toypaper/compare.yaml: a: name either a row or a teacher"),
        ("a: {title: A, row: plain, adds: nothing}", r"toypaper/compare.yaml: a: adds: "),
        ("a: {title: A, row: plan}", r"toypaper, line a: .*no row 'plan'; did you mean 'plain'\?"),
        ("a: {title: A, row: plain, changes: {plain: {seed: $student.widht}}}", r"\$student\.widht: no such size"),
    ],
)
def test_lines_that_cannot_be_meant(toy, text, message):
    (toy / "toy" / "toypaper" / "compare.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        Contest("digits", {"toypaper": PAPER}, SMALL).entries()
