"""The heads of a student that are measured out of distribution (Co-advise, Table 9)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from coadvise.method import CLASS
from vitutor_core.evaluate.shifts import Heads, prediction
from vitutor_core.runs import RunRecord


def heads(model: Any, record: RunRecord) -> Heads:
    """Return the prediction and the logits of each token, named as `coadvise.evaluation.token_metrics` does."""
    if not hasattr(model, "token_logits"):
        return prediction(model, record)
    roles = tuple(record.teachers)

    def of_tokens(images: Tensor) -> dict[str, Tensor]:
        tokens = model.forward_features(images)
        logits = model.token_logits(tokens)
        names = [CLASS, *(roles if roles and len(logits) > 1 else (f"token{n}" for n in range(1, len(logits))))]
        return {"": model.forward_head(tokens), **{f"{n}_": own for n, own in zip(names, logits, strict=True)}}

    return of_tokens
