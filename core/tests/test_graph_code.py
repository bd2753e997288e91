"""Code enters the graph by what it computes."""

from __future__ import annotations

import json

import pytest

from conformance import forked
from vitutor_core.graph.code import MEASURING, closure, code_fingerprint, module_fingerprint
from vitutor_core.graph.stages import _modules, train_code
from vitutor_core.paper import installed_paper, installed_papers
from vitutor_core.provenance import versions
from vitutor_core.recipe import read_recipe, recipe_path

SOURCE = '''"""A module."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elsewhere import Other


class Box:
    """A box."""

    size: int = field(3, help="how large")
    """In pixels."""

    def grow(self, by: float) -> float:
        # larger
        if by < 0:
            raise ValueError(f"{by} is negative")
        return self.size * by
'''
NO_CHANGE = {
    "comment": ("# larger", "# smaller"),
    "module docstring": ("A module.", "Another."),
    "docstring": ("A box.", "A crate."),
    "docstring of a field": ("In pixels.", "In mm."),
    "annotation": ("by: float) -> float", "by: int) -> int"),
    "annotation of a field": ("size: int", "size: float"),
    "help": ("how large", "how big"),
    "wording of an error": ("is negative", "is below zero"),
    "import for type checkers": ("import Other", "import Another as Other"),
    "layout": ("self.size * by", "(self.size  *  by)"),
}
CHANGE = {
    "operator": ("self.size * by", "self.size + by"),
    "number": ("field(3", "field(4"),
    "condition": ("by < 0", "by <= 0"),
    "error": ("ValueError", "TypeError"),
}


def fingerprint_of(text, folder):
    path = folder / f"{abs(hash(text))}.py"
    path.write_text(text)
    return module_fingerprint(path)


@pytest.mark.parametrize("case", NO_CHANGE)
def test_what_computes_nothing_does_not_count(tmp_path, case):
    old, new = NO_CHANGE[case]
    assert old in SOURCE
    assert fingerprint_of(SOURCE, tmp_path) == fingerprint_of(SOURCE.replace(old, new), tmp_path)


@pytest.mark.parametrize("case", CHANGE)
def test_what_computes_counts(tmp_path, case):
    old, new = CHANGE[case]
    assert old in SOURCE
    assert fingerprint_of(SOURCE, tmp_path) != fingerprint_of(SOURCE.replace(old, new), tmp_path)


def test_the_closure_follows_imports_in_functions_and_data_files():
    found = closure(["vitutor_core.data.check"])
    assert {"vitutor_core.data.sources.open", "vitutor_core.data.sources.domainnet", "vitutor_core"} <= found.keys()
    assert "vitutor_core.data.sources/imagenet100.txt" in found
    assert not [name for name in found if name.startswith("vitutor_core.train")]
    assert "vitutor_core.graph.dvc" in closure(["vitutor_core.cli.graph"])  # imported in a function


TRAINING = {f"vitutor_core.{name}" for name in ("train.update", "train.loop", "train.state", "train.method")}
TRAINING |= {"vitutor_core.data.sampler"}


def test_training_ends_where_measuring_begins():
    methods = {name: paper.method.partition(":")[0] for name, paper in installed_papers().items()}
    for package, method in (methods | {"": "vitutor_core.train.supervised"}).items():
        found = closure([method, "vitutor_core.train.session"], without=MEASURING)
        assert found.keys() >= TRAINING
        assert not [name for name in found if MEASURING & set(name.split("."))]
        others = set(methods) - {package}
        assert not others & {name.partition(".")[0] for name in found}


def test_a_progress_bar_is_in_no_fingerprint():
    """What evaluates and what draws figures decode images, which shows a bar."""
    for root in ("train.evaluation", "evaluate.shifts", "jobs.analyse", "jobs.agreement"):
        found = closure([f"vitutor_core.{root}"])
        assert "vitutor_core.data.loaders.resident" in found
        assert "vitutor_core.progress" not in found


def test_fingerprints_differ_between_papers_and_are_stable():
    prints = {name: train_code(paper) for name, paper in installed_papers().items()}
    assert len(set(prints.values())) == len(prints)
    assert code_fingerprint(["vitutor_core.data.check"]) == code_fingerprint(["vitutor_core.data.check"])


def test_the_code_of_a_term_beside_a_method_counts():
    pytest.importorskip("dearkd")
    both = installed_paper("dearkd+drloc")
    assert {"drloc.compose", "drloc.localise", "vitutor_core.compose"} <= closure(_modules(both)).keys()
    assert len({train_code(paper) for paper in (installed_paper("dearkd"), installed_paper("drloc"), both)}) == 3
    assert {"vitutor-dearkd", "vitutor-drloc"} <= versions("dearkd+drloc").keys()


RUN = """
import json, sys
from pathlib import Path
from vitutor_core.jobs.teacher import with_teachers
from vitutor_core.paper import installed_paper, load
from vitutor_core.runs import RunRecord
from vitutor_core.train.evaluation import evaluate_run
from vitutor_core.train.session import RunLabel, train

package, row, settings, folder = sys.argv[1], sys.argv[2], sys.argv[3].split(";"), Path(sys.argv[4])
paper = installed_paper(package)
config = paper.resolve("digits", None, row, tuple(settings))
config = with_teachers(config, "digits", folder, settings=tuple(settings))
label = RunLabel(package, row, "digits", "x")
train(config, load(paper.method).build, label=label, out=folder / "run", measure=False)
trained = [name for name in sys.modules if name.partition(".")[0] in {"vitutor_core", package}]
evaluate_run(folder / "run", RunRecord.read(folder / "run", package), load(paper.config), load(paper.method).build)
evaluated = [name for name in sys.modules if name.partition(".")[0] in {"vitutor_core", package}]
print(json.dumps([trained, evaluated]))
"""
ROWS = {
    "bootstrapping_vit": ("shared", "vit_sam"),
    "coadvise": ("sak",),
    "dearkd": ("dearkd", "deit_10"),
    "drloc": ("swin_drloc", "cvt_drloc", "t2t_drloc"),
    "mae_lite_distill": ("mae", "moco", "scratch_probe"),
}
TELLING = {"cli", "provenance", "progress"}
SHORT = (
    *("train.epochs=1", "train.epoch_length=subset", "train.batch_size=8", "optim.warmup_epochs=0"),
    *("data.fraction=1.0", "data.per_class=3"),
)


def rows_of_every_paper():
    for name in installed_papers():
        yield from ((name, row) for row in ROWS.get(name) or list(read_recipe(recipe_path(name, "digits")).rows)[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("package", "row"), list(rows_of_every_paper()))
def test_no_code_that_runs_escapes_the_closure(tmp_path, package, row):
    done = forked.run(RUN, package, row, ";".join(SHORT), tmp_path, check=True)
    paper = installed_papers()[package]
    own = [reference.partition(":")[0] for reference in (paper.method, paper.config)]
    trained, evaluated = json.loads(done.stdout.splitlines()[-1])
    # What starts a run (commands, plans, announcements, a config's own sizes) computes nothing of it.
    starting = ("paper", "baseline", "recipe", "own", "sizing", "explain", "terminal")
    starts = {f"vitutor_core.{name}" for name in starting} | {f"{package}.cli"}
    starts |= {
        name
        for name in trained
        if name.startswith(("vitutor_core.graph", "vitutor_core.jobs", f"{package}.generation"))
    }
    seen = closure([*own, "vitutor_core.train.session"], without=MEASURING).keys()
    # Teachers have stages of their own.
    seen |= closure(["vitutor_core.train.supervised"], without=MEASURING).keys()
    escaped = [name for name in trained if name not in seen | starts and not MEASURING & set(name.split("."))]
    assert not escaped
    seen |= closure([*own, "vitutor_core.train.evaluation"], without=frozenset({"report", "cli"})).keys()
    assert not [name for name in evaluated if name not in seen | starts and not TELLING & set(name.split("."))]
