from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from conformance.cost import cpu_seconds
from core.tests.toy_paper import environment
from core.tests.train_samples import before_update, tiny_config, weights
from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import paper_group
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.config import leaves
from vitutor_core.errors import DataError, goes_on
from vitutor_core.models.weights import read_card
from vitutor_core.paper import installed_papers
from vitutor_core.schema import RunConfig
from vitutor_core.train.run_folder import RunFolder

VITUTOR = [sys.executable, "-c", "from vitutor_core.cli.main import main; main()"]


def refuse(called, code, *parts):
    """Check that a command ended with ``code`` and one line that has all ``parts``."""
    found, _, errors = called
    assert found == code, errors
    assert "Traceback" not in errors
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


SMALL = ("--set", "data.per_class=null", "--set", "train.batch_size=4", "--set", "train.epochs=1")


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("train.epoch=5", ["unknown key 'train.epoch'; did you mean 'train.epochs'?"]),
        ("train.epochs=many", ["train.epochs:", "integer", "'many'"]),
        ("optim.lr=.nan", ["optim.lr:", "finite"]),
        ("train", ["--set train: write it as field.name=value"]),
        (
            "student={name: vit_tinny_patch16_224}",
            ["model 'vit_tinny_patch16_224'", "did you mean 'vit_tiny_patch16_224'?"],
        ),
        (
            "student.kwargs.num_heads=5",
            ["student: kwargs.embed_dim is 16, not a multiple of the 5 of kwargs.num_heads"],
        ),
        ("optim.name=adamm", ["optim.name: adamm"]),
        ("train.batch_size=1000", ["train.batch_size: 1000 is larger than an epoch of 100 images"]),
        ("runtime.device=gpu", ["runtime.device: 'gpu' is not a device"]),
    ],
)
def test_config_mistakes_exit_2_and_leave_no_folder(toypaper, call, tmp_path, setting, parts):
    refuse(call(toypaper, "train", "--set", setting, "--out", tmp_path / "a" / "run"), 2, *parts)
    assert not list(tmp_path.iterdir())


def test_all_mistakes_come_at_once_and_usage_mistakes_are_clicks(toypaper, call, tmp_path):
    settings = ("--set", "train.epoch=5", "--set", "optim.lr=-1")
    refuse(call(toypaper, "train", *settings, "--out", tmp_path / "run"), 2, "train.epoch", "optim.lr")
    refuse(call(toypaper, "train", "--row", "plane", "--out", tmp_path / "run"), 2, "did you mean 'plain'?")
    refuse(call(toypaper, "reproduce", "plain", "--seeds", "1,x", "--results", tmp_path / "run"), 2, "--seeds 1,x")
    (tmp_path / "file").touch()
    for arguments in (["trian"], ["train"], ["train", "--out", tmp_path / "file"], ["train", "--scale", "mnist"]):
        code, _, errors = call(toypaper, *arguments)
        assert (code, "Error" in errors, "Traceback" in errors) == (2, True, False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_data_exit_3_with_the_absolute_path(toypaper, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    refuse(
        call(toypaper, "train", "--set", "data.source=folder:no/such", "--out", out), 3, f"{tmp_path}/no/such: no such"
    )
    (tmp_path / "empty").mkdir()
    refuse(call(toypaper, "train", "--set", "data.source=folder:empty", "--out", out), 3, f"{tmp_path}/empty: expected")
    assert not out.exists()


def test_a_corrupt_image_exits_3_with_its_path(toypaper, call, tmp_path, images):
    bad = images / "train" / "green" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:400])
    source = f"data.source=folder:{images}"
    refuse(
        call(toypaper, "train", *SMALL, "--set", source, "--out", tmp_path / "run"), 3, f"{bad}: cannot read the image"
    )
    assert not (tmp_path / "run").exists()
    code, _, errors = call(vitutor, "data", "--source", f"folder:{images}")
    assert code == 3
    assert errors.splitlines()[-1].startswith(f"error: {bad}: cannot read")


def test_a_run_and_what_may_be_done_with_it(toypaper, call, tmp_path, monkeypatch):
    out = tmp_path / "run"
    code, output, _ = call(toypaper, "train", "--row", "plain", "--seed", "4", "--out", out)
    result = json.loads((out / "metrics.json").read_text())
    assert (code, result["seed"], result["row"]) == (0, 4, "plain")
    assert output == f"top-1 {result['metrics']['top1']:.2f} % on 896 images; {out}\n"

    code, output, _ = call(toypaper, "evaluate", out)
    again = json.loads(output)
    assert {name: again[name] for name in result["metrics"]} == result["metrics"]
    code, output, _ = call(toypaper, "export", out, "--to", tmp_path / "to" / "w.safetensors")
    assert code == 0
    assert read_card(tmp_path / "to" / "w.safetensors").method == "toypaper"

    # the same folder is refused for another config, another method and, meanwhile, another process
    refuse(
        call(toypaper, "train", "--row", "plain", "--out", out),
        2,
        f"{out}: this folder holds another run (seed: 4 -> 0",
    )
    refuse(
        call(vitutor, "teacher", "cnn", "--out", out),
        4,
        f"{out}: this folder holds a run of toypaper, not of",
    )
    with RunFolder(out):
        refuse(call(toypaper, "train", "--row", "plain", "--seed", "4", "--out", out), 7, f"process {os.getpid()} on")
    record = out / "metrics.json"
    record.write_text(json.dumps(result | {"paper": "another"}))
    refuse(call(toypaper, "evaluate", out), 4, f"{out}: a run of another, not of toypaper")
    refuse(call(toypaper, "export", out, "--to", tmp_path / "x"), 4, "not of toypaper")
    record.unlink()
    refuse(call(toypaper, "evaluate", out), 4, f"{record}: not a finished run")


def test_a_damaged_weights_file_exits_4(toypaper, call, tmp_path):
    out = tmp_path / "run"
    call(toypaper, "train", "--set", "train.epochs=1", "--out", out)
    path = out / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(call(toypaper, "export", out, "--to", tmp_path / "x"), 4, f"{path}: not a safetensors file")


def test_the_other_exit_codes(toypaper, call, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    refuse(call(toypaper, "train", "--out", tmp_path / "file" / "run"), 6, f"{tmp_path}/file/run: cannot write there")
    refuse(call(toypaper, "train", "--row", "diverging", "--out", tmp_path / "nan"), 5, "NaN or infinite", "optim.lr")
    before_update(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    refuse(call(toypaper, "train", "--out", tmp_path / "run"), 143, "stopped at step 4; run it again to go on")
    refuse(call(toypaper, "predict", tmp_path / "run", tmp_path / "file"), 4, "not a finished run; train it to its end")
    assert "goes on from update 4 of 10" in call(toypaper, "train", "--out", tmp_path / "run")[2]
    _, said, told = call(toypaper, "train", "--out", tmp_path / "run")
    assert told.endswith(f"{tmp_path}/run: was finished before, nothing was trained\n")
    assert said.startswith("top-1 ")


def test_debug_shows_where_an_error_comes_from(toypaper, call, tmp_path, monkeypatch):
    monkeypatch.setenv("VITUTOR_DEBUG", "0")  # the option sets it, for the processes that a command starts
    arguments = ("train", "--set", "data.source=folder:none", "--out", tmp_path / "run")
    code, _, errors = call(toypaper, *arguments, "--debug")
    assert code == 3
    assert errors.startswith("Traceback")
    assert "in require_folder" in errors
    assert errors.splitlines()[-1].startswith("error: ")
    monkeypatch.setenv("VITUTOR_DEBUG", "1")
    assert call(toypaper, *arguments)[2] == errors


def test_interrupts_and_bugs(call):
    raised = []

    @click.command()
    def command():
        raise raised[-1]

    raised.append(KeyboardInterrupt())
    assert call(command) == (130, "", "\nerror: interrupted\n")

    @click.command()
    @goes_on()
    def keeps():
        raise KeyboardInterrupt

    assert call(keeps) == (130, "", "error: interrupted; run it again to go on\n")
    raised.append(DataError("two\n  lines"))
    refuse(call(command), 3, "error: two lines")
    raised.append(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):  # exit code 1 and a traceback
        run(command, [])


@pytest.mark.parametrize("late", ["dataclasses", "click", "pydantic"])
@pytest.mark.parametrize("module", ["vitutor_core.cli.main", *(f"{package}.cli" for package in installed_papers())])
def test_an_interrupt_while_python_imports_is_one_line(module, late):
    """What raises here is the first import of a package that takes a while; Ctrl-C comes no earlier."""
    code = (
        "import sys\nclass Interrupted:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {late!r}:\n            raise KeyboardInterrupt\n"
        f"sys.meta_path.insert(0, Interrupted())\nfrom {module} import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_data_are_listed_and_checked(call, tmp_path, images):
    code, output, _ = call(vitutor, "data", "--out", tmp_path / "new" / "manifest.json")
    assert code == 0
    assert [line.split()[:2] for line in output.splitlines()[:3]] == [
        ["train", "901"],
        ["evaluation", "896"],
        ["classes", "10;"],
    ]
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["classes"] == list("0123456789")
    code, output, _ = call(vitutor, "data", "--source", f"folder:{images}", "--set", "data.image_size=8")
    assert "train               8 images, 4-4 per class" in output
    code, output, _ = call(vitutor, "data", "--source", f"folder:{images}/train")  # the classes alone, as `own` takes
    assert "train               6 images, 3-3 per class\nevaluation          2 images" in output
    assert "evaluated on a part of the training images, holdout=0.2" in output
    code, output, _ = call(vitutor, "data", "--source", f"folder:{images}", "--set", "data.holdout=0.5")
    assert "evaluated on a part of the training images, holdout=0.5" in output
    refuse(call(vitutor, "data", "--set", "fraktion=0.1"), 2, "unknown key 'fraktion'; did you mean 'fraction'?")


def test_the_doctor_finds_this_environment_well(call, monkeypatch, tmp_path):
    monkeypatch.delenv("VITUTOR_DATA_ROOT", raising=False)
    code, output, _ = call(vitutor, "doctor")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == [
        "versions",
        "device",
        "bf16",
        "torch.compile",
        "data",
        "free",
        "commit",
    ]
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(tmp_path / "none"))
    code, _, errors = call(vitutor, "doctor")
    assert (code, errors) == (2, f"error: VITUTOR_DATA_ROOT: {tmp_path}/none is not a directory\n")


def test_the_doctor_warns_of_an_old_torch(call, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "__version__", "2.9.1")
    code, _, errors = call(vitutor, "doctor")
    assert (code, "2.10 or newer" in errors) == (2, True)


def test_config_and_rows_are_printed(toypaper, call):
    code, output, errors = call(toypaper, "config", "--row", "long", "--seed", "3")
    printed = RunConfig.from_mapping(json.loads(output), where="x")
    assert (code, printed.seed, printed.train.epochs) == (0, 3, 1000)
    assert errors == f"fingerprint {printed.fingerprint()}\n"
    code, output, _ = call(toypaper, "rows")
    assert [line.split()[0] for line in output.splitlines()] == ["plain", "long", "diverging", "warm", "tuned"]


def test_help_names_every_command(toypaper, call):
    code, output, _ = call(vitutor, "--help")
    assert code == 0
    for name in ("data", "teacher", "predict", "report", "doctor"):
        assert f"\n  {name} " in output
    code, output, _ = call(toypaper, "-h")
    for name in ("train", "reproduce", "config", "rows", "evaluate", "predict", "export"):
        assert f"\n  {name} " in output


def _commands(group, *above):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, *above, name)
        else:
            yield (*above, name), command


@pytest.mark.parametrize("name", ["vitutor", *installed_papers()])
def test_every_option_says_what_it_is_and_its_default(name):
    group = vitutor if name == "vitutor" else paper_group(installed_papers()[name])
    options = [(path, o) for path, command in _commands(group) for o in command.params if isinstance(o, click.Option)]
    assert [(path, o.name) for path, o in options if not o.help or o.help[0].islower()] == []
    known = [(path, o) for path, o in options if isinstance(o.default, str | int | Path) and not o.is_flag]
    assert [(path, o.name) for path, o in known if not o.show_default and "[default: " not in o.help] == []


def test_the_example_of_a_setting_is_one_that_the_command_takes():
    examples = {
        path[-1]: o.help.split("e.g. ")[1].split(";")[0]
        for path, command in _commands(vitutor)
        for o in command.params
        if o.name == "settings" and "e.g. " in o.help
    }
    tags = {path: tag for path, tag, _ in leaves(tiny_config())}
    assert tags[examples.pop("data").partition("=")[0]] == "fingerprinted"
    assert tags[examples.pop("replay").partition("=")[0]] == "runtime"
    assert all(tiny_config(example) for example in examples.values())


def test_help_takes_under_a_second():
    seconds, done = cpu_seconds([*VITUTOR, "--help"])
    assert done.returncode == 0
    assert seconds < 1.0


def test_a_config_mistake_costs_no_import(toy_paper, tmp_path):
    code = (
        "import sys\nfrom toypaper.cli import main\n"
        f"sys.argv = ['toypaper', 'train', '--set', 'train.epoch=5', '--out', {str(tmp_path / 'run')!r}]\n"
        "try:\n    main()\nfinally:\n    print([m for m in ('torch', 'timm', 'matplotlib') if m in sys.modules])"
    )
    seconds, done = cpu_seconds([sys.executable, "-c", code], env=environment(toy_paper))
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert seconds < 2.0
    assert not (tmp_path / "run").exists()


def test_a_reader_who_goes_away_gets_no_traceback():
    with subprocess.Popen([*VITUTOR, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1  # click's own


TARGETS = {
    "a run": ("train", "--out"),
    "its weights": ("export", "RUN", "--to"),
    "its figures": ("evaluate", "ROW", "--out"),
    "a manifest": ("data", "--out"),
    "an analysis": ("analyze", "RUN", "--images", "8", "--batch", "4", "--out"),
    "a plan": ("plan", "--params", "PARAMS", "--out"),
    "a table": ("report", "table", "dearkd", "--results"),
    "a report": ("report", "html", "dearkd", "--results"),
}


@pytest.fixture(scope="module")
def trained(toy_paper, tmp_path_factory):
    """A published row with one run, and what the commands need besides."""
    from toypaper.cli import PAPER

    folder = tmp_path_factory.mktemp("trained")
    with pytest.raises(SystemExit):
        run(paper_group(PAPER), ["train", "--set", "train.epochs=1", "--out", str(folder / "ROW" / "seed-0")])
    (folder / "PARAMS").write_text("scale: digits\nseeds: [0]\n")
    return folder


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", ["in a file", "on a read-only disk"])
def test_what_cannot_be_written_is_one_line(toypaper, call, tmp_path, trained, monkeypatch, target, place):
    words = {"RUN": trained / "ROW" / "seed-0", "ROW": trained / "ROW", "PARAMS": trained / "PARAMS"}
    command, *arguments = (words.get(word, word) for word in TARGETS[target])
    (tmp_path / "file").touch()
    (tmp_path / "evaluation" / "dearkd").mkdir(parents=True)
    out = tmp_path / "file" / "x" if place == "in a file" else tmp_path / "read-only"
    if target in {"a table", "a report"}:
        out = tmp_path
        if place == "in a file":
            for name in ("tables", "reports"):
                (tmp_path / name).touch()
    if place != "in a file":

        def refuse_writing(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system", "somewhere")

        for name in ("mkdir", "replace", "write_text", "touch"):
            monkeypatch.setattr(Path, name, refuse_writing)
    group = toypaper if command in {"train", "export", "evaluate"} else vitutor
    code, _, errors = call(group, command, *arguments, out)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (code, len(lines), "Traceback" in errors) == (6, 1, False), errors
    assert "annot write" in lines[0]


def test_a_teacher_is_published_from_its_work_folder(call, tmp_path):
    arguments = ("--set", "train.epochs=1", "--work", tmp_path / "work", "--out", tmp_path / "cnn")
    code, output, _ = call(vitutor, "teacher", "cnn", *arguments)
    assert code == 0
    assert output.endswith(f"{tmp_path}/cnn\n")
    assert sorted(path.name for path in (tmp_path / "cnn").iterdir()) == [
        "curves.csv",
        "metrics.json",
        "student.safetensors",
    ]
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert "fc.weight" in weights(tmp_path / "cnn")
    refuse(call(vitutor, "teacher", "cnnn", "--out", tmp_path / "x"), 2, "no row 'cnnn'; did you mean 'cnn'?")
