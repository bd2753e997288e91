from __future__ import annotations

import pytest
import torch

from coadvise.evaluation import token_metrics


def test_heads_and_teachers_by_hand():
    labels = torch.tensor([0, 1, 1])
    heads = {
        "class": torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]),  # 2 of 3 right
        "cnn": torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 1.0]]),  # 2 of 3 right; the mean of both is right thrice
    }
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # 2 of 3 right
    images = torch.arange(3.0)[:, None, None, None]

    def rows(table: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return table[batch[:, 0, 0, 0].long()]

    loader = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    found = token_metrics(
        lambda batch: {name: rows(table, batch) for name, table in heads.items()},
        {"cnn": lambda batch: rows(teacher, batch)},
        loader,
        torch.device("cpu"),
    )
    for name, expected in {"class": 2, "cnn": 2, "mean": 3, "teacher_cnn": 2}.items():
        assert found[f"{name}_top1"] == pytest.approx(100 * expected / 3)
    for name, table in heads.items():
        of, against = teacher.log_softmax(1), table.log_softmax(1)
        forward = (of.exp() * (of - against)).sum(1).mean().item()
        reverse = (against.exp() * (against - of)).sum(1).mean().item()
        assert found[f"{name}_kl_cnn"] == pytest.approx(forward, rel=1e-5)
        assert found[f"{name}_reverse_kl_cnn"] == pytest.approx(reverse, rel=1e-5)
    assert len(found) == 8
