from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vitutor_core.analysis.attention import attention_distance

CORNERS = [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
NINE = [[row, column] for column in (-1.0, 0.0, 1.0) for row in (-1.0, 0.0, 1.0)]
# Side of the grid, strength alpha and centre Delta of each head, and the mean distance that the released code of
# ConViT (commit 0a9340a, class GPSA) gives with these weights in float64.
CONVIT = {
    "four heads": (5, [1.0] * 4, CORNERS, [0.8676849127265783] * 4),
    "nine heads": (
        4,
        [1.5] * 9,
        NINE,
        [
            1.1647034735527250, 0.8620600484117250, 1.1647034735527250,
            0.8620600484117250, 0.4616822527507939, 0.8620600484117250,
            1.1647034735527250, 0.8620600484117250, 1.1647034735527250,
        ],
    ),
    "arbitrary": (
        5,
        [0.9749126434326172, -0.25, 0.5699730515480042],
        [
            [1.296994686126709, -0.6299363970756531],
            [0.761317253112793, -0.9501450061798096],
            [0.16361871361732483, 1.1774591207504272],
        ],
        [1.2646444726317583, 3.9171848612334683, 1.2324536381382476],
    ),
}  # fmt: skip


def positional_attention(side: int, alpha: list[float], delta: list[list[float]]) -> Tensor:
    """Softmax over keys of -alpha ||p_j - p_i - Delta||^2, without prefix tokens: (1, H, N, N)."""
    cells = list(itertools.product(range(side), repeat=2))
    logits = [
        [[-a * ((key[0] - query[0] - d[0]) ** 2 + (key[1] - query[1] - d[1]) ** 2) for key in cells] for query in cells]
        for a, d in zip(alpha, delta, strict=True)
    ]
    return torch.tensor(logits, dtype=torch.float64).softmax(dim=-1)[None]


def slow_distance(attention: Tensor, grid: tuple[int, int], num_prefix: int) -> list[float]:
    """The definition, one query at a time."""
    cells = list(itertools.product(range(grid[0]), range(grid[1])))
    result = []
    for head in range(attention.shape[1]):
        means = []
        for image, (i, query) in itertools.product(range(len(attention)), enumerate(cells)):
            row = [float(attention[image, head, num_prefix + i, num_prefix + j]) for j in range(len(cells))]
            far = sum(weight * math.dist(query, key) for weight, key in zip(row, cells, strict=True))
            means.append(far / sum(row))
        result.append(sum(means) / len(means))
    return result


@pytest.mark.parametrize("case", CONVIT)
def test_agrees_with_released_code(case: str) -> None:
    side, alpha, delta, expected = CONVIT[case]
    found = attention_distance(positional_attention(side, alpha, delta), (side, side), 0)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("grid", "num_prefix"), [((3, 5), 0), ((3, 5), 1), ((4, 2), 2)])
def test_agrees_with_the_definition(grid: tuple[int, int], num_prefix: int) -> None:
    tokens = num_prefix + grid[0] * grid[1]
    logits = torch.randn(2, 3, tokens, tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    attention = logits.softmax(dim=-1)
    found = attention_distance(attention, grid, num_prefix)
    assert found.tolist() == pytest.approx(slow_distance(attention, grid, num_prefix), rel=1e-12)


@pytest.mark.parametrize("num_prefix", [0, 1])
def test_uniform_attention(num_prefix: int) -> None:
    tokens = num_prefix + 196
    uniform = torch.full((1, 2, tokens, tokens), 1 / tokens)
    assert attention_distance(uniform, (14, 14), num_prefix).tolist() == pytest.approx([7.2808] * 2, abs=5e-5)
    assert attention_distance(uniform, (14, 14), num_prefix, 16).tolist() == pytest.approx([116.5] * 2, abs=0.05)


def test_itself_and_one_tap() -> None:
    """A head that looks at itself, and one that looks one column to the right, at the border at itself."""
    right = torch.eye(6).roll(1, dims=1)
    right[[2, 5]] = torch.eye(6)[[2, 5]]
    attention = torch.stack([torch.eye(6), right])[None]
    assert attention_distance(attention, (2, 3), 0).tolist() == pytest.approx([0.0, 4 / 6])


def test_prefix_tokens_do_not_matter() -> None:
    content = positional_attention(4, [1.0], [[0.0, 1.0]])
    attention = torch.zeros(1, 1, 17, 17, dtype=torch.float64)
    attention[..., 0] = 1
    attention[..., 1:, 0] = 0.9
    attention[..., 1:, 1:] = 0.1 * content
    torch.testing.assert_close(attention_distance(attention, (4, 4), 1), attention_distance(content, (4, 4), 0))


def test_bfloat16_is_computed_in_float32() -> None:
    attention = positional_attention(4, [1.0], [[0.0, 0.0]]).bfloat16()
    found = attention_distance(attention, (4, 4), 0)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(slow_distance(attention, (4, 4), 0), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 17, 16), (2, 17, 17), (1, 2, 16, 16)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, H, 17, 17\)"):
        attention_distance(torch.ones(shape), (4, 4), 1)
