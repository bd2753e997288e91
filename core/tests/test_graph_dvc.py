"""What reruns, asked of DVC itself on the real graph in a copy of the checkout: nothing is trained."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conformance import forked
from vitutor_core.graph.dvc import texts_of
from vitutor_core.graph.stages import read_graph
from vitutor_core.paper import installed_papers

ROOT = Path(__file__).parents[2]
SCALES = {"digits": Path()} | {scale: Path(f"scales/{scale}") for scale in ("scenes", "small", "cifar100", "imagenet")}
ROWS = (
    "dearkd@vit",
    "dearkd@distill",
    "drloc@swin_drloc",
    "mae_lite_distill@mae_finetune",
    "bootstrapping_vit@vit_sam",
)
EVALUATIONS = tuple(row.replace("@", "_evaluate@") for row in ROWS)
PAPERS = ("dearkd", "drloc", "mae_lite_distill", "bootstrapping_vit")
TABLES, REPORTS = tuple(f"table@{paper}" for paper in PAPERS), tuple(f"report@{paper}" for paper in PAPERS)
TARGETS = ("data@digits", "teacher@cnn", *ROWS, *EVALUATIONS, *TABLES, *REPORTS)
PRETEND = """
import sys
from pathlib import Path
from dvc.repo import Repo, lock_repo
repo = Repo.init(no_scm=True)
with lock_repo(repo):
    repo.reproduce("plan")
    for path in (Path(out.fs_path) for stage in repo.index.stages for out in stage.outs):
        file = path if path.suffix else path / "dummy"
        if not path.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path.name)
    for target in sys.argv[1:]:
        repo.commit(target, force=True)
"""
"""Plans, makes dummy outputs of all stages, and lets DVC believe that targets were run."""
STALE = """
import json, sys
from dvc.repo import Repo, lock_repo
repo = Repo()
with lock_repo(repo):
    repo.reproduce("plan")
    print(json.dumps([at.addressing for at in repo.index.stages if at.addressing in sys.argv and at.status()]))
"""
"""What `dvc repro plan` does, and then `dvc status` says of targets; the graph is read once for all of them."""
CORE = "core/src/vitutor_core/"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scale", SCALES)
def test_the_graphs_are_what_the_recipes_say(scale):
    folder = ROOT / SCALES[scale]
    for name, text in texts_of(folder, read_graph(scale)).items():
        assert (folder / name).read_text() == text, "run 'make graph'"


class Checkout:
    """A copy of the checkout whose stages count as run."""

    def __init__(self, folder):
        self.folder = folder
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in listed.splitlines():
            if "/src/" in name or name in {"dvc.yaml", "inputs.json", "params.yaml", ".dvcignore"}:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        sources = [str(folder / package / "src") for package in ("core", *installed_papers())]
        programs = {"vitutor": "vitutor_core.cli.main"}
        tools = f"{forked.commands(folder / 'bin', programs, imports=forked.DVC)}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(sources), "PATH": tools}
        self.run(PRETEND, *TARGETS)

    def run(self, code, *arguments):
        given = {"cwd": self.folder, "env": self.environment, "imports": forked.DVC}
        return forked.run(code, *arguments, check=True, **given).stdout

    @contextlib.contextmanager
    def edited(self, *edits):
        """Append a text to files, or replace one by another."""
        before = {name: (self.folder / name).read_text() for name, _ in edits}
        try:
            for name, edit in edits:
                path = self.folder / name
                text = path.read_text()
                old, new = edit if isinstance(edit, tuple) else (text, text + edit)
                assert old in text
                path.write_text(text.replace(old, new, 1))
            yield
        finally:
            for name, text in before.items():
                (self.folder / name).write_text(text)

    def stale(self):
        """Plan again, and return which of the targets DVC would run because of their plan."""
        return set(json.loads(self.run(STALE, *TARGETS).splitlines()[-1]))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("checkout"))


NOTHING = (
    (f"{CORE}train/update.py", "\n# a comment\n"),
    (f"{CORE}data/sources/domainnet.py", "\n# a comment\n"),
    (f"{CORE}evaluate/accuracy.py", ("over all processes", "over every process")),  # in a docstring
    (f"{CORE}progress.py", "\n_X = 1\n"),
    ("dearkd/src/dearkd/recipes/digits.yaml", "\n# a comment\n"),
    ("params.yaml", ("processes: 1", "processes: 2")),
    ("params.yaml", ("rows: []", "rows: [vit, distill, swin_drloc, mae_finetune, vit_sam, mae]")),
)
CHANGES = {
    # Which other modules count as training: `test_graph_code`.
    "the update": (f"{CORE}train/update.py", "\n_X = 1\n", {"teacher@cnn", *ROWS, *EVALUATIONS}),
    "plain supervision": (
        f"{CORE}train/supervised.py",
        "\n_X = 1\n",
        {"teacher@cnn", "mae_lite_distill@mae_finetune", "mae_lite_distill_evaluate@mae_finetune"},
    ),
    "sharpness-aware steps": (
        f"{CORE}train/sam.py",
        "\n_X = 1\n",
        {"bootstrapping_vit@vit_sam", "bootstrapping_vit_evaluate@vit_sam"},
    ),
    "a loss": (
        "dearkd/src/dearkd/losses/hidden.py",
        "\n_X = 1\n",
        {"dearkd@vit", "dearkd@distill", "dearkd_evaluate@vit", "dearkd_evaluate@distill"},
    ),
    "a metric": (f"{CORE}evaluate/accuracy.py", "\n_X = 1\n", set(EVALUATIONS)),
    "a table": (f"{CORE}report/table.py", "\n_X = 1\n", {*TABLES, *REPORTS}),
    "a plot": (f"{CORE}report/plots.py", "\n_X = 1\n", set(REPORTS)),
    "a hyper-parameter": (
        "dearkd/src/dearkd/recipes/digits.yaml",
        ("distill: {student: *plain, method.pairs", "distill: {optim.lr: 1e-3, student: *plain, method.pairs"),
        {"dearkd@distill", "dearkd_evaluate@distill"},
    ),
    "a number in print": ("dearkd/src/dearkd/paper_results.yaml", ("top1: 72.3", "top1: 72.4"), {"table@dearkd"}),
    "seeds": ("params.yaml", ("seeds: [0, 1, 2]", "seeds: [0, 1, 2, 3]"), {*ROWS, *EVALUATIONS}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_reruns_is_what_changed(checkout, change):
    name, edit, expected = CHANGES[change]
    with checkout.edited((name, edit)):
        assert checkout.stale() == expected


def test_what_changes_no_result_reruns_nothing(checkout):
    """All of it at once, since each alone would show, as would what is stale without a change."""
    with checkout.edited(*NOTHING):
        assert checkout.stale() == set()


def test_a_graph_that_is_not_of_the_recipes_is_refused(checkout):
    change = "dearkd/src/dearkd/recipes/digits.yaml", ("rows:\n", "rows:\n  another: {optim.lr: 1e-3}\n")
    with checkout.edited(change):
        done = subprocess.run(
            ["vitutor", "plan"],
            cwd=checkout.folder,
            env=checkout.environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "dearkd@another" in done.stderr
    assert "run 'vitutor graph --scale digits' there" in done.stderr
