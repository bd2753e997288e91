"""What torch.compile cannot do is one line that says how to go on without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed, InternalTorchDynamoError, Unsupported
from torch._inductor.exc import CppCompileError, InductorError

from core.tests.train_samples import run
from vitutor_core.errors import ConfigError


def backend(*_: object) -> Callable[..., object]:
    raise ValueError("no backend\nsecond line")


ADVICE = r"^train\.compile: .* \(.+\); go on with --set train\.compile=false"
KINDS: dict[str, Callable[[], Exception]] = {
    "C++": lambda: CppCompileError(["g++"], "error: no such type"),
    "inductor": lambda: InductorError(RuntimeError("bad kernel"), None),  # type: ignore[no-untyped-call]
    "backend": lambda: BackendCompilerFailed(backend, ValueError("bad backend"), None),
    "internal": lambda: InternalTorchDynamoError("bad trace"),
    "unsupported": lambda: Unsupported("a graph break"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_compile_error_says_how_to_go_on_without(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(method: torch.nn.Module, **_: Any) -> torch.nn.Module:
        def fail(*_: object) -> None:
            raise KINDS[kind]()

        method.register_forward_pre_hook(fail)
        return method

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(ConfigError, match=ADVICE) as caught:
        run(tmp_path / "run", "train.compile=true")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    run(tmp_path / "run", "train.compile=false", "train.epochs=1")  # nothing is in the way


def test_other_errors_of_a_step_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(method: torch.nn.Module, **_: Any) -> torch.nn.Module:
        def fail(*_: object) -> None:
            raise KeyError("a bug")

        method.register_forward_pre_hook(fail)
        return method

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(KeyError, match="a bug"):
        run(tmp_path / "run", "train.compile=true")
