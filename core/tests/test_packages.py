"""What is installed: the licence is in every wheel, and other systems are refused in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/pyproject.toml"))


def test_packages_say_the_same_of_themselves():
    described = [tomllib.loads((package / "pyproject.toml").read_text())["project"] for package in PACKAGES]
    assert len(described) >= 6
    for same in ("classifiers", "license", "requires-python", "version"):
        assert len({str(project[same]) for project in described}) == 1, same
    for package in PACKAGES:
        assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.slow
def test_a_wheel_holds_the_licence(tmp_path):
    package = shutil.copytree(ROOT / "drloc", tmp_path / "drloc", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(package)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (licence,) = [name for name in files.namelist() if name.endswith("licenses/LICENSE")]
        assert files.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert "drloc/recipes/digits.yaml" in files.namelist()


def test_other_systems_are_refused_in_one_line():
    script = "import os; os.name = 'nt'; import drloc.cli"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: ViTutor runs on Linux and macOS; on Windows, install it inside WSL\n"
