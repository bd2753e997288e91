from __future__ import annotations

from pathlib import Path

import pytest

from vitutor_core.errors import DataError
from vitutor_core.report.publish import replace_block

ROOT = Path(__file__).parents[2]


def test_only_the_named_block_is_replaced():
    text = "a\n<!-- results:x -->\nold\n<!-- end -->\nb\n<!-- results:y -->\nkept\n<!-- end -->\n"
    expected = "a\n<!-- results:x -->\nnew\n<!-- end -->\nb\n<!-- results:y -->\nkept\n<!-- end -->\n"
    assert replace_block(text, "x", "new", where="f") == expected
    with pytest.raises(DataError, match="no block"):
        replace_block(text, "z", "new", where="f")


def test_the_scales_share_one_graph():
    graphs = [(ROOT / folder / "dvc.yaml").read_text() for folder in (".", "scales/cifar100", "scales/imagenet")]
    assert graphs[0] == graphs[1] == graphs[2]
