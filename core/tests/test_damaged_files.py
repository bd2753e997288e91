"""Files that commands read back, damaged: one line that names the file and says what to do."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vitutor_core.cli.entry import run
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.data.sources.folder import training_folder
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.files import write_json
from vitutor_core.recipe import read_recipe
from vitutor_core.report.analyses import analysis_pictures
from vitutor_core.report.render import markdown_grid, plain


@pytest.fixture
def call(capsys):
    """Run a vitutor command in this process; return its exit code and its last message."""

    def called(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(vitutor, [str(argument) for argument in arguments])
        return caught.value.code or 0, capsys.readouterr().err.rpartition("\nerror: ")[2].removeprefix("error: ")

    return called


def written_table(results, call):
    """Let a table be written that says why there is none."""
    (results / "evaluation" / "dearkd").mkdir(parents=True)
    assert call("report", "table", "dearkd", "--results", results)[0] == 0
    return results / "tables" / "dearkd.json"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "{}",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: json.dumps({"paper": "dearkd", "tables": []}),
        lambda text: json.dumps({**json.loads(text), "paper": "drloc"}),
        lambda text: json.dumps({**json.loads(text), "skipped": {"why": 1}}),
        lambda text: text.replace("dearkd", "d\xffarkd"),
    ],
)
@pytest.mark.parametrize("command", ["show", "html", "publish"])
def test_a_damaged_table(tmp_path, call, damage, command):
    path = written_table(tmp_path, call)
    more = ("--to", tmp_path / "docs") if command == "publish" else ()
    if command != "publish":
        assert call("report", command, "dearkd", "--results", tmp_path)[0] == 0
    path.write_text(damage(path.read_text()), encoding="latin-1")
    code, message = call("report", command, "dearkd", "--results", tmp_path, *more)
    assert (code, message) == (
        3,
        f"{path}: no readable table; make it with 'vitutor report table dearkd'\n",
    )


@pytest.mark.parametrize("paper", ["os", "../x", ".", "", "vitutor_core", "dearkd/../os", "json.decoder"])
def test_a_paper_that_is_none(tmp_path, call, paper):
    code, message = call("report", "table", paper, "--results", tmp_path)
    assert (code, message.count("\n")) == (2, 1)
    assert "is not installed" in message


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"pictures": [{}]}', '{"pictures": 1}', "\xff", "[" * 100_000])
def test_a_damaged_analysis(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "analysis.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"analysis\.json: not readable; run the command that made it again"):
        analysis_pictures(tmp_path, tmp_path / "out")


RECIPES = {
    "not UTF-8": b"base: {seed: 1}  # gr\xfc\xdfe",
    "UTF-16": "base: {}".encode("utf-16"),
    "NUL": b"base: \x00",
    "empty": b"",
    "a number": b"5",
    "a list": b"[1, 2]",
    "nested": b"base: " + b"[" * 3000,
    "nested mappings": b"base: " + b"{a: " * 3000,
    "rows in a list": b"base: {}\nrows: [1, 2]",
    "a row that is a number": b"base: {}\nrows: {a: 1}",
    "a row called 1": b"base: {}\nrows: {1: {}}",
    "base in a list": b"base: [1]",
    "a preset in a list": b"base: {}\npresets: {a: [1]}",
    "a field called 1": b"base: {}\nrows: {a: {1: 2}}",
    "groups in a list": b"base: {}\ngroups: [a]",
    "a group as a number": b"base: {}\ngroups: {a: 1}",
    "an analysis as text": b"base: {}\nanalyses: {a: row}",
    "an agreement as text": b"base: {}\nagreements: {a: row}",
    "an agreement without rows": b"base: {}\nagreements: {a: {teachers: [b]}}",
    "an agreement of one row": b"base: {}\nagreements: {a: {rows: [b]}}",
    "an agreement of one teacher": b"base: {}\nagreements: {a: {rows: [b, c], teachers: [d]}}",
    "products as a number": b"base: {}\nproducts: 7",
    "a product as a number": b"base: {}\nproducts: [7]",
    "a product of numbers": b"base: {}\nproducts: [{rows: 1, variants: 2}]",
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_that_is_none(tmp_path, kind):
    path = tmp_path / "own.yaml"
    path.write_bytes(RECIPES[kind])
    with pytest.raises(ConfigError, match=r"own\.yaml: ") as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_markdown_of_hostile_names():
    hostile = "<img src=x onerror=alert(1)> | [a](javascript:b) `c` *d* \\ &amp;\n# e"
    shown = plain(hostile)
    assert not set("<>\n") & set(shown)
    assert "\\[a\\](javascript:b) \\`c\\` \\*d\\* \\\\ &amp;amp; # e" in shown
    grid = markdown_grid(["row"], [[hostile]]).splitlines()
    assert len(grid) == 3
    assert grid[2].replace("\\|", "").count("|") == 2


def images(folder, count=3):
    listed = [f"train/a/{number}.png" for number in range(count)]
    for file in listed:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / file)
    write_json(folder / "manifest.json", {"images": [{"file": file} for file in listed]})


def test_training_images_that_the_manifest_lists_and_that_are_gone(tmp_path):
    images(tmp_path)
    assert len(training_folder(tmp_path, ("a",)).labels) == 3
    (tmp_path / "train" / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"a/1\.png: 1 of 3 images are missing; make them again"):
        training_folder(tmp_path, ("a",))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"images": [{}]}', "\xff"])
def test_a_damaged_manifest(tmp_path, text):
    images(tmp_path)
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"manifest\.json: not readable; make the images again"):
        training_folder(tmp_path, ("a",))
