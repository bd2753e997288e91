"""A config explains itself: where values come from, a commented recipe, completion in the shell, the page of fields."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from core.tests.conftest import Called
from core.tests.photo_samples import write_photos
from vitutor_core.cli import options
from vitutor_core.cli.paper import paper_group
from vitutor_core.config import leaves
from vitutor_core.explain import commented, explained, fields_of
from vitutor_core.jobs.train import Asked
from vitutor_core.paper import Paper, installed_papers, load
from vitutor_core.recipe import OWN, read_recipe, recipe_path, resolve, scales_of
from vitutor_core.report.fields import fields_page
from vitutor_core.runs import RunRecord

PAPERS = installed_papers()
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "fields.md"
every_paper = pytest.mark.parametrize("paper", PAPERS.values(), ids=list(PAPERS))


def command(package: str) -> click.Group:
    return paper_group(PAPERS[package])


@every_paper
def test_every_field_has_a_text_and_every_leaf_is_explained(paper: Paper) -> None:
    found = list(fields_of(load(paper.config)))
    assert all(field.text and field.kind for field in found)
    assert [field.path for field in found if not field.text[0].isupper() or field.text.endswith(".")] == []
    assert len({field.path for field in found}) == len(found)
    for scale in scales_of(paper.package):
        recipe = recipe_path(paper.package, scale)
        for row in (None, *list(read_recipe(recipe).rows)[:3]):
            config = paper.resolve(scale, None, row, ())
            lines = list(explained(config, recipe, preset=None, row=row, settings=()))
            assert len(lines) == 3 * len(list(leaves(config)))


@pytest.mark.parametrize(
    ("paper", "scale"),
    [
        pytest.param(paper, scale, id=f"{name}-{scale}")
        for name, paper in PAPERS.items()
        for scale in scales_of(paper.package)
    ],
)
def test_a_commented_config_is_a_recipe_that_resolves_to_the_same(paper: Paper, scale: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    for row in (None, *read_recipe(recipe_path(paper.package, scale)).rows):
        config = paper.resolve(scale, None, row, ())
        path.write_text(commented(config, "a command"))
        assert resolve(load(paper.config), path) == config
        if scale != "digits":
            break  # the rows of one scale have all that there is


def test_where_a_value_comes_from(call: Called, tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", train=3, val=1)
    own = ("--scale", OWN, "--source", f"folder:{folder}")

    def source(path: str, *arguments: str) -> str:
        code, out, _ = call(command("dearkd"), "config", *arguments, "--explain", path)
        assert code == 0
        return out.splitlines()[0].rpartition("  ")[2]

    assert source("train.accumulate") == "(default)"
    assert source("train.epochs") == "(recipe base)"
    assert source("method.distill", "--row", "vit") == "(row vit)"
    assert source("method.two_stage", "--row", "vit") == "(default)"  # the row sets the whole section anew
    assert source("method.stage1_epochs") == "(computed)"
    assert source("train.epochs", "--set", "train.epochs=30") == "(--set)"
    assert source("train.batch_size", *own) == "(recipe base: your images and machine)"
    code, out, _ = call(command("drloc"), "config", "--preset", "official", "--explain", "method.unit")
    assert (code, out.splitlines()[0]) == (0, 'method.unit = "cells"  (preset official)')


def test_a_section_alone_and_a_field_that_is_not_there(call: Called) -> None:
    code, out, _ = call(command("drloc"), "config", "--explain", "train")
    names = [line.split(" = ")[0] for line in out.splitlines() if not line.startswith(" ")]
    assert code == 0
    assert all(name.startswith("train.") for name in names)
    code, _, err = call(command("drloc"), "config", "--explain", "tran")
    assert (code, err) == (2, "error: --explain tran: no such field; did you mean 'train'?\n")
    code, _, err = call(command("drloc"), "config", "--explain", "lr")
    assert (code, err) == (2, "error: --explain lr: no such field; did you mean 'optim.lr'?\n")


def test_written_and_given_again(call: Called, tmp_path: Path) -> None:
    path = tmp_path / "my own.yaml"
    code, out, _ = call(command("coadvise"), "config", "--row", "cnn_inn", "--out", path)
    assert (code, out.split(";")[0]) == (0, f"written {path}")
    assert f"; coadvise train --scale digits --recipe '{path}' --out " in out  # as a shell takes it
    assert "# Images per update, over all processes" in path.read_text()
    before = call(command("coadvise"), "config", "--row", "cnn_inn")
    assert call(command("coadvise"), "config", "--recipe", path) == before
    code, out, err = call(command("coadvise"), "rows", "--recipe", path)
    assert (code, out, err) == (0, "", f"{path}: no rows and no presets; train its base, without --row\n")


def test_a_recipe_of_ones_own_is_of_the_scale_own(call: Called, tmp_path: Path) -> None:
    photos, path, dearkd = write_photos(tmp_path / "photos", train=4, val=1), tmp_path / "my.yaml", command("dearkd")
    own = ("--scale", OWN, "--source", f"folder:{photos}", "--set", "runtime.device=cpu", "--set", "train.epochs=1")
    code, out, _ = call(dearkd, "config", *own, "--out", path)
    assert (code, out) == (0, f"written {path}; dearkd train --recipe {path} --out RUN\n")
    assert call(dearkd, "train", "--recipe", path, "--out", tmp_path / "run")[0] == 0
    record = RunRecord.read(tmp_path / "run")
    teacher = RunRecord.read(tmp_path / "run" / "teachers" / "cnn")
    assert (record.scale, teacher.scale, teacher.config["data"]["source"]) == (OWN, OWN, f"folder:{photos}")


@pytest.mark.parametrize("name", ["train", "config"])
def test_a_scale_that_is_given_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Asked] = []
    called = options.asked(lambda asked, **_: seen.append(asked))
    monkeypatch.setattr(command("dearkd").commands[name], "callback", called)
    recipe, out = ("--recipe", str(tmp_path / "my.yaml")), ("--out", str(tmp_path / "out"))
    for given in ((), recipe, ("--scale", "small", *recipe), (*recipe, "--scale", "digits"), ("--scale", "small")):
        command("dearkd")([name, *given, *out], standalone_mode=False)
    assert [asked.scale for asked in seen] == ["digits", OWN, "small", "digits", "small"]


def test_rows_show_their_changes_as_they_are_set(call: Called, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    sections = "{student: {name: dearkd_tiny_patch16_224, kwargs: {}}, train: {epochs: 3}, method: {distill: none}}"
    path.write_text(f"base: {{}}\nrows:\n  a: {{}}\n  b: {sections}\n")
    _, out, _ = call(command("dearkd"), "rows", "--recipe", path)
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}
    assert shown == {
        "a": "the base as it is",
        "b": "student.name=dearkd_tiny_patch16_224, train.epochs=3, method.distill=none",
    }
    set_so = [argument for change in shown["b"].split(", ") for argument in ("--set", change)]
    assert call(command("dearkd"), "config", *set_so)[0] == 0


@pytest.mark.parametrize(
    ("words", "typed", "names"),
    [
        (["train", "--row"], "hidden", ["hidden_distill"]),
        (["train", "--scale", "own", "--row"], "", ["vit", "hidden_distill", "dearkd"]),
        (["config", "--scale"], "o", ["own"]),
        (["reproduce"], "mhca_", ["mhca_hidden_distill"]),
        (["train", "--recipe", "no-such-file.yaml", "--row"], "", []),
    ],
)
def test_the_shell_completes(words: list[str], typed: str, names: list[str]) -> None:
    complete = BashComplete(command("dearkd"), {}, "dearkd", "_DEARKD_COMPLETE")
    assert [item.value for item in complete.get_completions(words, typed)] == names


def test_presets_are_completed() -> None:
    complete = BashComplete(command("drloc"), {}, "drloc", "_DRLOC_COMPLETE")
    assert [item.value for item in complete.get_completions(["train", "--preset"], "off")] == ["official"]


def test_the_reference_page_is_what_the_schemas_say() -> None:
    assert PAGE.read_text() == fields_page(), "write it again: vitutor fields"
