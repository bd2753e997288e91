"""Sizes for a user's own images: the arithmetic, what of it the user may set, and every paper's recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.tests.conftest import Called
from core.tests.photo_samples import write_photos
from vitutor_core import sizing
from vitutor_core.cli.paper import paper_group
from vitutor_core.compare.contest import Contest
from vitutor_core.compare.price import Prices, check_row
from vitutor_core.config import setting
from vitutor_core.errors import ConfigError
from vitutor_core.jobs import train as jobs
from vitutor_core.jobs.reproduce import Row
from vitutor_core.jobs.sizes import size_lines
from vitutor_core.jobs.teacher import recipe_teachers
from vitutor_core.jobs.train import Asked
from vitutor_core.own import CPU_SIZE, FULL_SIZE, HOLDOUT, PRETRAINED, Images, Machine, Wanted, derive
from vitutor_core.paper import Paper, installed_papers
from vitutor_core.recipe import OWN, read_recipe, recipe_path
from vitutor_core.runs import RunRecord

CPU, GPU = Machine(2, False, False), Machine(16, True, False)
PAPERS = {name: paper for name, paper in installed_papers().items() if recipe_path(name, OWN).exists()}


def images(train: int = 160, side: int = 400) -> Images:
    return Images(train, train, train // 4, 4, side, held_out=True)


@pytest.mark.parametrize(
    "side", [1, 8, 15, 16, 17, 23, 24, 31, 32, 47, 48, 63, 64, 65, 100, 175, 191, 192, 223, 224, 5000]
)
@pytest.mark.parametrize("machine", [CPU, GPU])
def test_the_size_is_the_images_own_in_whole_patches(side: int, machine: Machine) -> None:
    sizes = derive(images(side=side), machine)
    most = FULL_SIZE if machine.has_gpu else CPU_SIZE
    assert sizes.image_size % (2 * sizes.patch_size) == 0
    assert 16 <= sizes.image_size <= most
    assert 6 <= sizes.image_size // sizes.patch_size <= 22
    assert abs(sizes.image_size - min(max(side, 16), most)) <= sizes.patch_size


@pytest.mark.parametrize("count", [2, 3, 4, 7, 20, 40, 160, 1_000, 50_000, 10**6])
@pytest.mark.parametrize("machine", [CPU, GPU])
def test_batch_and_epochs_fit_the_images_and_bound_the_updates(count: int, machine: Machine) -> None:
    sizes = derive(images(count), machine)
    updates = count // sizes.batch_size
    assert sizes.batch_size % 2 == 0  # Mixup pairs images
    assert updates >= (2 if count >= 4 else 1)
    assert 1 <= sizes.epochs <= 300
    bound = 20_000 if machine.has_gpu else 1_500
    assert updates * sizes.epochs < bound + updates
    assert updates * sizes.epochs >= bound or sizes.epochs == 300
    assert sizes.warmup_epochs == round(sizes.epochs / 20, 2)
    assert 1 <= sizes.interval <= sizes.epochs


def test_what_is_set_is_taken_and_the_rest_fits_it() -> None:
    sizes = derive(images(), CPU, Wanted(image_size=96, batch_size=20, epochs=7, holdout=0.5))
    assert (sizes.image_size, sizes.batch_size, sizes.epochs, sizes.holdout) == (96, 20, 7, 0.5)
    assert (sizes.patch_size, sizes.warmup_epochs, sizes.long_epochs) == (8, 0.35, 14)
    assert derive(images(), CPU, Wanted(image_size=50)).patch_size == 10
    with pytest.raises(ConfigError, match=r"data\.image_size: 53 px cannot be cut into patches; set it to 54"):
        derive(images(), CPU, Wanted(image_size=53))
    with pytest.raises(ConfigError, match=r"train\.batch_size: 200 is larger than an epoch of 160 .*; set it to 32"):
        derive(images(), CPU, Wanted(batch_size=200))
    part = images()._replace(whole=1_000)
    assert derive(part, CPU, Wanted(batch_size=200, full_epochs=True)).batch_size == 200


def test_a_teacher_is_pre_trained_where_a_gpu_and_the_weights_are_at_hand() -> None:
    with_weights = GPU._replace(has_weights=True)
    assert (derive(images(), with_weights).cnn, derive(images(), with_weights).cnn_pretrained) == (PRETRAINED, True)
    assert (derive(images(), GPU).cnn, derive(images(), GPU).cnn_pretrained) == ("resnet18", False)
    assert derive(images(side=32), with_weights).cnn == "resnet18_cifar"
    assert derive(images(), CPU).cnn == "resnet8_tiny"


def test_a_large_set_is_streamed() -> None:
    assert derive(images(10_000, 224), GPU).loader == "resident"
    assert derive(images(100_000, 224), GPU).loader == "streamed"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Return a folder of a folder per class, without splits: 10 images of each of four classes."""
    return write_photos(tmp_path / "set", train=10, val=2) / "train"


def resolved(paper: Paper, row: str | None, folder: Path, *settings: str):
    return paper.resolve(OWN, None, row, (setting("data.source", f"folder:{folder}"), *settings))


@pytest.mark.parametrize("paper", PAPERS.values(), ids=list(PAPERS))
@pytest.mark.parametrize("machine", [CPU, GPU, GPU._replace(has_weights=True)], ids=["cpu", "gpu", "weights"])
def test_every_row_is_resolved_and_what_is_set_wins(
    paper: Paper, machine: Machine, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "machine", lambda device: machine)
    for row in (None, *read_recipe(recipe_path(paper.package, OWN)).rows):
        config = resolved(paper, row, classes)
        assert config.data.holdout == HOLDOUT
        assert "$" not in config.model_dump_json()
        changed = resolved(paper, row, classes, "train.batch_size=2", "student.kwargs.patch_size=1", "data.holdout=0.5")
        assert (changed.train.batch_size, changed.data.holdout) == (2, 0.5)
        assert changed.student.kwargs["patch_size"] == 1
        for teacher in recipe_teachers(config, OWN).values():
            assert teacher.data == config.data
            assert (teacher.student.name == PRETRAINED) == (machine.has_weights and config.data.image_size == 224)


def test_the_table_says_what_was_chosen_and_why(classes: Path) -> None:
    config = resolved(PAPERS["dearkd"], None, classes, "runtime.device=cpu")
    lines = dict(size_lines(config, recipe_teachers(config, OWN)))
    assert lines["images"] == "32 to train on, 8 to evaluate on, held out of the training images; 4 classes"
    assert lines["size"].startswith(f"{config.data.image_size} px")
    assert lines["teacher"].startswith("cnn: resnet8_tiny")
    assert lines["training"].startswith("300 epochs of 2 updates of 16 images, 600 updates")


def test_every_line_of_a_comparison_takes_its_first_step_at_the_photos_size(classes: Path) -> None:
    contest = Contest(OWN, PAPERS, (setting("data.source", f"folder:{classes}"), "runtime.device=cpu"))
    prices = Prices(contest)
    for entry in contest.entries():
        prices.check(entry)
        config = entry.row.config(0)
        assert (config.train.batch_size, config.train.epochs, config.data.holdout) == (16, 300, HOLDOUT)
        assert config.data.image_size == contest.budget.data.image_size
    assert (contest.sizes.embed_dim, contest.sizes.depth) == (64, 4)


@pytest.mark.parametrize("paper", PAPERS.values(), ids=list(PAPERS))
def test_every_row_takes_its_first_step(paper: Paper, classes: Path) -> None:
    settings = (setting("data.source", f"folder:{classes}"), "runtime.device=cpu")
    for row in read_recipe(recipe_path(paper.package, OWN)).rows:
        check_row(Row(paper, row, OWN, settings=settings))


def test_a_row_that_starts_from_others_has_them_trained_first(classes: Path, tmp_path: Path, call: Called) -> None:
    out = tmp_path / "run"
    arguments = ("--scale", OWN, "--source", f"folder:{classes}", "--row", "mae_distilled_finetune", "--out", out)
    group = paper_group(PAPERS["mae_lite_distill"])
    code, said, told = call(group, "train", *arguments, "--set", "train.epochs=1", "--set", "data.image_size=16")
    assert (code, said.startswith("top-1 ")) == (0, True)
    rows = [line.split()[1] for line in told.splitlines() if line.startswith("row ")]
    assert rows == ["mae_distilled,", "mae_teacher,"]  # each before what is said of its sizes
    record = RunRecord.read(out)
    assert record.config["student"]["weights"] == str(out / "rows" / "mae_distilled")
    taught = RunRecord.read(out / "rows" / "mae_distilled")
    assert set(taught.teachers)
    assert (taught.config["train"]["epochs"], taught.config["data"]["image_size"]) == (1, 16)


def test_another_run_is_refused_before_its_rows_and_teachers_are_trained(
    classes: Path, tmp_path: Path, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = write_photos(tmp_path / "others", train=11, val=2) / "train"
    group, out = paper_group(PAPERS["mae_lite_distill"]), tmp_path / "run"
    asked = ("train", "--scale", OWN, "--row", "mae_finetune", "--out", out, "--set", "data.image_size=16", "--set")
    mine = ("--source", f"folder:{classes}")
    assert call(group, *asked, "train.epochs=1", *mine)[0] == 0
    for trains in ("_rows_before", "with_teachers"):
        monkeypatch.setattr(f"vitutor_core.jobs.train.{trains}", lambda *_, **__: pytest.fail("trained"))
    for changed, message in (
        (("train.epochs=2", *mine), "train.epochs: 1 -> 2"),
        (("train.epochs=1", "--source", f"folder:{others}"), "data: '"),
    ):
        code, _, told = call(group, *asked, *changed)
        assert (code, f"{out}: this folder holds another run (" in told, message in told) == (2, True, True)
        assert len(max(told.split(), key=len)) < 200


def test_a_written_recipe_has_the_rows_before_it_from_its_scale(
    classes: Path, tmp_path: Path, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, group = tmp_path / "my.yaml", paper_group(PAPERS["mae_lite_distill"])
    own = ("--scale", OWN, "--source", f"folder:{classes}", "--row", "mae_distilled_finetune", "--set", "seed=3")
    assert call(group, "config", *own, "--set", "data.image_size=16", "--out", recipe)[0] == 0
    before: list[Asked] = []

    def trained(asked: Asked, *_: object) -> None:
        before.append(asked)
        raise ConfigError("stop")

    train_row, asked = jobs.train_row, Asked(PAPERS["mae_lite_distill"], OWN, recipe, None, None, ("seed=4",), "")
    monkeypatch.setattr(jobs, "train_row", trained)
    with pytest.raises(ConfigError, match="row mae_distilled: stop"):
        train_row(asked, tmp_path / "run", tmp_path / "teachers")
    config = before[0].config()
    assert (config.data.source, config.data.image_size, config.seed) == (f"folder:{classes}", 16, 4)


def test_a_validation_split_is_used_where_there_is_one(classes: Path) -> None:
    assert resolved(PAPERS["drloc"], None, classes.parent).data.holdout is None
    assert resolved(PAPERS["drloc"], None, classes.parent, "data.eval_split=val").data.holdout is None


def test_mistakes_are_answered_before_torch_is_imported(classes: Path) -> None:
    code = (
        "import sys; from vitutor_core.errors import ConfigError; from vitutor_core.paper import installed_papers\n"
        "try: installed_papers()['drloc'].resolve('own', None, None, tuple(sys.argv[1:]))\n"
        "except ConfigError as error: print('torch' in sys.modules, error)"
    )

    def said(*settings: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *settings], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert said() == "False data.source: which images? name their folder with --source folder:PATH"
    assert said(f"data.source=folder:{classes}", "train.batch_size=99") == (
        "False train.batch_size: 99 is larger than an epoch of 32 images; set it to 16"
    )
    assert said(f"data.source=folder:{classes}", "student.kwargs.num_heads=3").startswith(
        "False own.yaml: student: kwargs.embed_dim is 64, not a multiple of the 3 of kwargs.num_heads; set it to 63 or"
    )
    assert "px are not a multiple of its patches of 5 px" in said(
        f"data.source=folder:{classes}", "student.kwargs.patch_size=5"
    )
