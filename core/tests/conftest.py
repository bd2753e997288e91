from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let sources look for their files in the test's own folder."""
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(tmp_path))
    return tmp_path
