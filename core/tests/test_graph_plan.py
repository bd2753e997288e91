"""What a plan runs: groups, rows and what they need, seeds, presets; and what cannot run here."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from vitutor_core.cli.vitutor import vitutor
from vitutor_core.config import parse_yaml
from vitutor_core.errors import ConfigError
from vitutor_core.graph.dvc import graph_files, out_of_date, write_graph
from vitutor_core.graph.needs import needs_of, source_name
from vitutor_core.graph.params import Params, change_params
from vitutor_core.graph.plan import _printed, _values_hash, build_plan
from vitutor_core.graph.planned import PlannedRow
from vitutor_core.graph.ready import obstacles
from vitutor_core.graph.stages import Graph, read_graph
from vitutor_core.paper import installed_papers

PARAMS = """# set by hand
scale: digits
seeds: [0, 1, 2]
preset: null
set: []
groups: [core]
rows: []  # all
processes: 1
"""


def plan(**changes):
    params = Params.from_mapping(changes, where="params.yaml")
    return build_plan(params, read_graph(params.scale))


def running(found, folder):
    return {
        name.split("/")[1].removesuffix(".json")
        for name, content in found.items()
        if name.startswith(folder) and content["run"]
    }


def test_rows_bring_what_they_need_and_nothing_else():
    found = plan(rows=["free_adaptive", "mae_distilled_finetune"])
    assert running(found, "dearkd/") == {"free_adaptive", "free_plain"}  # whose student the images disagree with
    assert running(found, "stages/dearkd") == {"dearkd_generate-plain", "dearkd_generate-adaptive"}
    assert running(found, "mae_lite_distill/") == {"mae_distilled_finetune", "mae_distilled", "mae_teacher"}
    assert running(found, "teachers/") == {"cnn"}
    assert not running(found, "drloc/")
    assert found["drloc/vit.json"] == {"run": False, "why": "not among `rows` in params.yaml"}


def test_a_row_of_one_paper_alone():
    found = plan(rows=["dearkd@vit"])
    assert running(found, "dearkd/") == {"vit"}
    assert "joint" in running(found, "bootstrapping_vit/")  # of which nothing is named
    assert running(plan(rows=["vit"]), "drloc/") == {"vit"}


def test_groups_are_off_until_asked_for():
    rows = running(plan(scale="imagenet"), "drloc/")
    assert rows
    assert not [
        row for row in rows if row.endswith("_clipart") or row.startswith(("t2t_finetune", "t2t_drloc_finetune"))
    ]
    more = running(plan(scale="imagenet", groups=["core", "domainnet"]), "drloc/")
    assert {"swin_clipart", "swin_drloc_sketch"} <= more - rows
    assert not running(plan(scale="imagenet"), "stages/coadvise_robustness")
    shifted = plan(scale="imagenet", groups=["core", "robustness"])
    assert running(shifted, "stages/coadvise") >= {"coadvise_robustness-sak"}
    assert shifted["stages/coadvise_robustness-sak.json"]["sets"] == ["a", "r", "c"]
    assert running(shifted, "stages/mae_lite_distill_robustness") == {
        f"mae_lite_distill_robustness-{row}" for row in ("deit_tiny", "deit_tiny_distilled", "mae_finetune", "mae_long")
    }
    assert shifted["stages/mae_lite_distill_robustness-mae_long.json"]["sets"] == ["v2", "real"]


def test_a_plain_vit_waits_for_no_teacher():
    needs = needs_of(read_graph("imagenet").papers["dearkd"].configs["vit"])
    assert (needs.teachers, needs.rows, needs.source) == ((), (), "folder:imagenet")
    assert "cnn" not in read_graph("imagenet").teachers  # which no row of that scale uses


def test_a_row_that_teaches_has_one_seed():
    found = plan(seeds=[3, 4])
    assert found["mae_lite_distill/mae_teacher.json"]["seeds"] == [0]
    assert found["mae_lite_distill/mae_distilled.json"]["seeds"] == [3, 4]


def test_a_preset_and_settings_reach_the_rows_that_are_run():
    found = plan(scale="cifar100", preset="px224", set=["train.accumulate=2"], rows=["joint"])
    joint = found["bootstrapping_vit/joint.json"]
    assert joint["config"]["data.image_size"] == 224
    assert (joint["preset"], joint["config"]["train.accumulate"]) == ("px224", 2)
    assert plan(scale="cifar100", preset="px224", rows=["dearkd"])["dearkd/dearkd.json"]["preset"] is None
    with pytest.raises(ConfigError, match=r"preset: the scale 'digits' has no 'offical'; did you mean 'official'\?"):
        plan(preset="offical")
    with pytest.raises(ConfigError, match="change the data, teachers or rows that it needs"):
        plan(rows=["dearkd"], set=["data.source=cifar10"])


def test_names_that_are_not_there():
    with pytest.raises(ConfigError, match=r"rows: the scale 'digits' has no 'dearkt'; did you mean 'dearkd'\?"):
        plan(rows=["dearkt"])
    with pytest.raises(ConfigError, match="groups: the scale 'cifar100' has no 'birds'; it has cars, core"):
        plan(scale="cifar100", groups=["birds"])


def test_every_item_of_a_graph_is_planned_at_every_scale():
    for scale in ("digits", "cifar100", "imagenet"):
        graph, found = read_graph(scale), plan(scale=scale)
        for name, paper in graph.papers.items():
            assert {f"{name}/{row}.json" for row in paper.configs} <= found.keys()
        assert {f"data/{source_name(source)}.json" for source in graph.sources} <= found.keys()
        assert {f"teachers/{teacher}.json" for teacher in graph.teachers} <= found.keys()


def test_a_graph_of_fewer_papers_is_part_of_that_of_all(tmp_path):
    whole = read_graph("digits")
    alone = Graph(whole.scale, {"drloc": whole.papers["drloc"]}, {})
    assert "drloc@swin_short" in out_of_date(tmp_path, alone)
    write_graph(tmp_path, whole)
    assert out_of_date(tmp_path, whole) == []
    assert out_of_date(tmp_path, alone) == []
    inputs = tmp_path / "inputs.json"
    inputs.write_text(inputs.read_text().replace('"swin_short":', '"swin_shorter":'))
    assert "drloc@swin_short" in out_of_date(tmp_path, alone)


def test_what_differs_in_the_name_of_an_item_alone_is_written_once():
    stages, inputs = _loaded(read_graph("imagenet"), is_repository=True)
    rows = ("deit_tiny", "deit_tiny_distilled", "mae_finetune", "mae_long")
    assert inputs["mae_lite_distill_robustness"] == {row: [] for row in rows}
    assert "results/runs/mae_lite_distill/${key}" in stages["mae_lite_distill_robustness"]["do"]["deps"]
    assert "results/evaluation/${key}" in stages["table"]["do"]["deps"]
    assert inputs["table"]["mae_lite_distill"] == ["robustness/mae_lite_distill"]
    assert inputs["table"]["dearkd"] == ["evaluation/dearkd"]  # again, as it has nothing of its own


def test_numbers_in_print_count_by_their_values():
    """Whatever reads them, since what C reads is not all that is YAML."""
    found = {package: Path(str(files(package)), "paper_results.yaml").read_text() for package in installed_papers()}
    hashes = {package: _printed(package) for package in found} | {"": _values_hash("a: [b:c]  # as", Path("x"))}
    for package, text in (found | {"": "a: ['b:c']"}).items():
        values = json.dumps(parse_yaml(text, where=package), sort_keys=True)
        assert hashes[package] == hashlib.sha256(values.encode()).hexdigest()


def _loaded(graph, *, is_repository):
    texts = graph_files(graph, root="", is_repository=is_repository)
    return parse_yaml(texts["dvc.yaml"], where="")["stages"], json.loads(texts["inputs.json"])["inputs"]


def test_changing_params_keeps_comments(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS)
    change_params(path, ("seeds=0,1", "rows=vit dearkd", "preset=official", "set=train.epochs=3 optim.lr=1e-3"))
    params = Params.read(path)
    assert (params.seeds, params.rows, params.preset) == ((0, 1), ("vit", "dearkd"), "official")
    assert params.set == ("train.epochs=3", "optim.lr=1e-3")
    assert path.read_text().startswith("# set by hand\n")
    assert "# all" in path.read_text()
    change_params(path, ("rows=", "preset="))
    assert (Params.read(path).rows, Params.read(path).preset) == ((), None)
    before = path.read_text()
    for change, message in (("row=vit", "did you mean 'rows'"), ("seeds=a", "seeds"), ("processes=0", "processes")):
        with pytest.raises(ConfigError, match=message):
            change_params(path, (change,))
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("seeds: [0, 0]", "each seed once"), ("seeds: []", "seeds"), ("scales: digits", "'scale'"), ("- x", "fields")],
)
def test_params_that_cannot_be(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Params.read(tmp_path / "params.yaml")


def test_params_that_cannot_be_read_cannot_be_changed(tmp_path):
    with pytest.raises(ConfigError, match=r"params\.yaml: No such file"):
        change_params(tmp_path / "params.yaml", ("seeds=0",))
    (tmp_path / "params.yaml").write_text("- x")
    with pytest.raises(ConfigError, match="write fields such as"):
        change_params(tmp_path / "params.yaml", ("seeds=0",))


def test_what_cannot_run_here_is_named_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(tmp_path))
    monkeypatch.setattr("vitutor_core.graph.missing._reaches", lambda host: False)
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    graph = read_graph("imagenet")
    groups = ["core", "domainnet", "published_weights", "robustness"]
    params = Params.from_mapping({"scale": "imagenet", "groups": groups}, where="x")
    drloc = obstacles(graph, "drloc", params)
    assert drloc["swin_drloc_short"] is None
    assert "no images in" in drloc["swin_clipart"]
    assert str(tmp_path / "domainnet") in drloc["swin_clipart"]
    assert "VITUTOR_DATA_ROOT" in drloc["swin_clipart"]
    assert "cannot be reached" in drloc["swin"]  # CIFAR-100
    dearkd = obstacles(graph, "dearkd", params)
    assert dearkd["vit"] is None
    assert "regnety_160.deit_in1k" in dearkd["dearkd"]
    assert dearkd["transfer_cifar10"] is not None
    mae = obstacles(graph, "mae_lite_distill", params)
    assert mae["mae_finetune"] is None
    assert mae["mae_distilled_finetune"] == "it needs the row mae_distilled"
    assert f"no images in {tmp_path / 'imagenet-v2'}" in mae["mae_lite_distill_robustness@mae_long"]
    (tmp_path / "imagenet-v2" / "0").mkdir(parents=True)
    mae = obstacles(graph, "mae_lite_distill", params)
    assert f"no images in {tmp_path / 'imagenet-real'}" in mae["mae_lite_distill_robustness@mae_finetune"]


def test_ready_leaves_out_what_cannot_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(tmp_path))
    monkeypatch.setattr("vitutor_core.graph.missing._reaches", lambda host: False)
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.replace("digits", "imagenet"))
    with pytest.raises(ConfigError, match="37 chosen rows cannot run here"):
        vitutor.main(["ready", "dearkd", "--params", str(path)], standalone_mode=False)
    done = CliRunner().invoke(vitutor, ["ready", "dearkd", "--choose", "--params", str(path)])
    assert done.exit_code == 0
    assert Params.read(path).rows == tuple(
        f"dearkd@{row}"
        for row in (
            *("vit", "mhca", "vit_base", "vit_small", "vit_10", "vit_25", "vit_50"),
            *(f"deit_plain_{percent}" for percent in (10, 25, 50, 100)),
        )
    )
    again = CliRunner().invoke(vitutor, ["ready", "dearkd", "--params", str(path)])
    assert again.output.splitlines() == ["all chosen rows can run"]


def test_a_planned_row_is_read_as_it_was_written(tmp_path):
    for name, content in plan(rows=["vit"], seeds=[1], processes=2).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    row = PlannedRow.read(tmp_path, "dearkd", "vit")
    assert (row.run, row.scale, row.seeds, row.processes) == (True, "digits", (1,), 2)
    assert not PlannedRow.read(tmp_path, "dearkd", "mhca").run
    with pytest.raises(ConfigError, match="make one with 'vitutor plan'"):
        PlannedRow.read(tmp_path, "dearkd", "nothing")


def test_data_that_other_papers_lack_stop_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(tmp_path))
    monkeypatch.setattr("vitutor_core.graph.missing._reaches", lambda host: False)
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    found = plan(scale="imagenet")
    assert found["data/folder-imagenet.json"]["run"]
    assert not found["data/cifar100.json"]["run"]
    assert "cannot be reached" in found["data/cifar100.json"]["why"]
    (tmp_path / "cifar100").mkdir()  # as a failed download leaves it
    assert not plan(scale="imagenet")["data/cifar100.json"]["run"]
    (tmp_path / "cifar100" / "train-0.parquet").touch()
    assert plan(scale="imagenet")["data/cifar100.json"]["run"]


def test_stages_that_are_left_out_import_nothing_heavy(tmp_path):
    """With two rows chosen of two hundred, all other stages are run too, to say that they are not."""
    graph = read_graph("imagenet")
    for name, content in build_plan(Params(scale="imagenet", rows=("mae_lite_distill@scratch",)), graph).items():
        path = tmp_path / "results" / "plan" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content | {"run": False, "why": "not wanted"} if "run" in content else content))
    commands = {}
    stages, inputs = _loaded(graph, is_repository=False)
    for stage, entry in stages.items():
        if "foreach" in entry and stage not in {"data", "table", "report"}:
            item = next(iter(inputs[entry["foreach"].removeprefix("${inputs.").removesuffix("}")]))
            commands[stage] = entry["do"]["cmd"].replace("${key}", item).removeprefix("${in} ").split()
            for argument in commands[stage]:  # what other stages have left out leaves a folder
                if argument.startswith("results/runs/"):
                    (tmp_path / argument).mkdir(parents=True, exist_ok=True)
    assert len(commands) > 12
    script = (
        "import json, sys\nfrom vitutor_core.paper import installed_papers\nfrom importlib import import_module\n"
        "mains = {'vitutor': 'vitutor_core.cli.main'}\n"
        "mains |= {paper.command: f'{name}.cli' for name, paper in installed_papers().items()}\n"
        f"for arguments in json.loads({json.dumps(json.dumps(list(commands.values())))}):\n"
        "    sys.argv = arguments\n    try:\n        import_module(mains[arguments[0]]).main()\n"
        "    except SystemExit as end:\n        assert not end.code, arguments\n"
        "    assert not {'torch', 'timm', 'matplotlib'} & set(sys.modules), arguments\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not wanted") == len(commands)
