"""The heads of a student that are measured out of distribution (Co-advise, Table 9)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from coadvise.method import by_token
from vitutor_core.evaluate.shifts import Heads, prediction
from vitutor_core.runs import RunRecord


def heads(model: Any, record: RunRecord) -> Heads:
    """Return the prediction and the logits of each token, named as `coadvise.evaluation.token_metrics` does."""
    if not hasattr(model, "token_logits"):
        return prediction(model, record)

    def of_tokens(images: Tensor) -> dict[str, Tensor]:
        tokens = model.forward_features(images)
        named = by_token(model.token_logits(tokens), record.teachers)
        return {"": model.forward_head(tokens), **{f"{name}_": logits for name, logits in named.items()}}

    return of_tokens
