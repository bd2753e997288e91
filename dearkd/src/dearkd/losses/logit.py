"""L_logit: hard-label distillation of the pooled patch tokens (DearKD, arXiv 2204.12997, eq. 5)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def logit_loss(dist_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the cross-entropy with the teacher's top-1 classes as labels, DearKD eq. 5; mean over the batch.

    No smoothing and no temperature; under Mixup the teacher labels the mixed image.

    Args:
        dist_logits: (B, K), the distillation head on the mean of the student's patch tokens.
        teacher_logits: (B, K).

    Raises:
        ValueError: the shapes differ.

    """
    if dist_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(dist_logits.shape)} against {tuple(teacher_logits.shape)} of the teacher"
        raise ValueError(f"logit_loss: logits of shape {shapes}; both must have the same classes")
    return F.cross_entropy(dist_logits, teacher_logits.argmax(dim=1))
