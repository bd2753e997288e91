from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for path in ROOT.glob("*/src/**/*.py") if ".venv" not in path.parts)

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    *(("torch", "load"), ("jit", "load"), ("hub", "load"), ("hub", "load_state_dict_from_url")),
    *(("os", "system"), ("os", "popen")),
    ("time", "time"),  # durations come from the monotonic clock
}
UNPICKLES = ROOT / "core" / "src" / "vitutor_core" / "models" / "pickled.py"
"""The one module that may read a pickle, of tensors and plain values alone."""
KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("shell", True), ("trust_remote_code", True)}


def findings(source):
    """Return what a module does that no module may do, each as a line number and a description."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [(node.lineno, name) for name in names if name.partition(".")[0] in MODULES]
        found += [(node.lineno, name) for name in names if tuple(name.split(".")[-2:]) in METHODS]
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                found.append((node.lineno, node.func.id))
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in KEYWORDS:
                    found.append((node.lineno, keyword.arg))
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if (owner, node.attr) in METHODS:
                found.append((node.lineno, f"{owner}.{node.attr}"))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_does_what_none_may_do(path):
    found = findings(path.read_text())
    assert [what for _, what in found] == (["torch.load"] if path == UNPICKLES else [])


def test_the_one_pickle_is_read_for_tensors_alone():
    calls = [
        node
        for node in ast.walk(ast.parse(UNPICKLES.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    (call,) = calls
    assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}["weights_only"] == "True"
    for path in SOURCES:
        assert "add_safe_globals" not in path.read_text()
        assert ("safe_globals" in path.read_text()) == (path == UNPICKLES)


def test_every_package_is_looked_at():
    packages = {path.relative_to(ROOT).parts[0] for path in SOURCES}
    assert packages == {path.parent.name for path in ROOT.glob("*/src")}
    assert "core" in packages


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch\nload = torch.load",
        "from torch import load",
        "f('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
        "import yaml\nyaml.load('x')",
        "eval('1')",
        "exec('1')",
        "subprocess.run('x', shell=True)",
        "torch.jit.load('x')",
        "import time\ntime.time()",
        "from time import time",
    ],
)
def test_the_search_finds(source):
    assert findings(source)


@pytest.mark.parametrize(
    "source", ["model.eval()", "safetensors.torch.load_file('x')", "re.compile('x')", "f(weights_only=True)"]
)
def test_the_search_leaves_alone(source):
    assert not findings(source)


def test_the_floor_of_torch_is_above_the_known_holes():
    # CVE-2025-32434 and CVE-2026-24747: before 2.10 even weights_only=True could run code.
    project = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]
    (torch,) = [text for text in project["dependencies"] if text.startswith("torch>")]
    assert tuple(int(part) for part in torch.removeprefix("torch>=").split(".")) >= (2, 10)


@pytest.mark.parametrize(
    "module", ["vitutor_core", "vitutor_core.schema", "vitutor_core.cli.vitutor", "vitutor_core.cli.paper"]
)
def test_light_modules_import_nothing_heavy(module):
    heavy = ("torch", "torchvision", "timm", "numpy", "matplotlib", "dvc", "sklearn", "pyarrow", "PIL")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
