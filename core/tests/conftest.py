from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from PIL import Image

from core.tests.photo_samples import photo_settings, write_photos
from core.tests.toy_paper import paper_on_path
from core.tests.train_samples import run as run_tiny
from core.tests.train_samples import tiny_config
from vitutor_core.cli.entry import run as run_command
from vitutor_core.cli.paper import paper_group
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let sources look for their files in the test's own folder."""
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of photos of four classes: 32 to train on, 24 to evaluate."""
    return write_photos(tmp_path_factory.mktemp("photos") / "set", train=8, val=6)


@pytest.fixture(scope="session")
def photo_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run on the photos, with averaged weights: seed 0 of a row of the toy paper."""
    out = tmp_path_factory.mktemp("runs") / "plain" / "seed-0"
    config = tiny_config(*photo_settings(photos), "train.ema_decay=0.8")
    train(config, Supervised.build, label=RunLabel("toypaper", "plain", "digits", "test"), out=out)
    return out


@pytest.fixture(scope="module")
def toy_paper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of the toy paper's package, on the path of this process."""
    with paper_on_path(tmp_path_factory.mktemp("toy")) as folder:
        yield folder


@pytest.fixture(scope="module")
def toypaper(toy_paper: Path) -> click.Group:
    """Return the command line of the toy paper."""
    from toypaper.cli import PAPER

    return paper_group(PAPER)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of two classes, four images each in both splits."""
    for split in ("train", "val"):
        for label, name in enumerate(("blue", "green")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (20, 18), (0, 200 * label, 200 - 50 * number)).save(folder / f"{number}.jpg")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny run, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_tiny(out)
    return out


Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Called:
    """Run a command line in this process; return its exit code, output and messages."""

    def called(group: click.Group, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_command(group, [str(argument) for argument in arguments])
        return int(caught.value.code or 0), *capsys.readouterr()

    return called
