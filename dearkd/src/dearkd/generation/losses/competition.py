"""The competition term of Adaptive DeepInversion (arXiv 1912.08795), the paper's baseline ADI in Table 5."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

_LOW, _HIGH = 0.01, 0.99


def competition_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 3.0) -> Tensor:
    """Return ``1 - clamp(J, 0, 1)``: small where student and teacher, logits (B, K) each, disagree.

    With P and Q their softmax at ``temperature`` and M the mean of both, all three then clamped to [0.01, 0.99] entry
    by entry and not normalised again, ``J = (KL(M || P) + KL(M || Q)) / 2``: summed over classes, mean over the batch.
    This is the released code's form: the mixture stands first in both divergences, unlike in the Jensen-Shannon
    divergence that the paper names. J can exceed 1, where loss and gradient are 0. Both logits get gradients.

    Raises:
        ValueError: the shapes differ.

    """
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(student_logits.shape)} against {tuple(teacher_logits.shape)} of the teacher"
        raise ValueError(f"competition_loss: logits of shape {shapes}; both must have the same classes")
    student = (student_logits / temperature).softmax(dim=1)
    teacher = (teacher_logits / temperature).softmax(dim=1)
    mixture = ((student + teacher) / 2).clamp(_LOW, _HIGH)
    student, teacher = student.clamp(_LOW, _HIGH), teacher.clamp(_LOW, _HIGH)
    # kl_div takes its second distribution first, and its logarithm.
    divergence = (
        F.kl_div(student.log(), mixture, reduction="batchmean")
        + F.kl_div(teacher.log(), mixture, reduction="batchmean")
    ) / 2
    return 1 - divergence.clamp(0, 1)
