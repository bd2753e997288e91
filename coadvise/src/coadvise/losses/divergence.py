"""The distillation term of Co-advise (arXiv 2106.12378, eq. 1): a divergence between student token and teacher."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Direction = Literal["teacher_student", "student_teacher"]


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    direction: Direction = "teacher_student",
) -> Tensor:
    """Return tau^2 times the Kullback-Leibler divergence between softened predictions, in nats.

    Sum over classes, mean over the batch; DeiT's soft distillation divides by the number of classes as well.

    Args:
        student_logits: (B, K), of one token's head.
        teacher_logits: (B, K).
        temperature: tau, which divides the logits of both.
        direction: ``teacher_student`` is KL(teacher || student), sum of p_t (log p_t - log p_s), as in the released
            code; the order of the arguments in eq. 1 is ``student_teacher``.

    Raises:
        ValueError: the shapes differ.

    """
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(student_logits.shape)} against {tuple(teacher_logits.shape)} of the teacher"
        raise ValueError(f"divergence: logits of shape {shapes}; both must have the same classes")
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    of, against = (teacher, student) if direction == "teacher_student" else (student, teacher)
    return temperature**2 * F.kl_div(against, of, reduction="batchmean", log_target=True)
