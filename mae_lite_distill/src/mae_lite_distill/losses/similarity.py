"""Self-supervised compression by similarities to a queue (SEED, Fang et al., ICLR 2021, arXiv 2101.04731)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity_loss(
    student: Tensor, teacher: Tensor, queue: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Return the cross-entropy of the student's similarities with the teacher's as targets; mean over the images.

    Both are compared, by cosines, with the teacher's features of other images and, last, with its own of the image.

    Args:
        student: (B, C), projected features, of any length.
        teacher: (B, C), features of the same images, of any length.
        queue: (K, C), features of the teacher of length 1, of other images.
        student_temperature: of the student's softmax over the K + 1 cosines.
        teacher_temperature: of the teacher's.

    Raises:
        ValueError: the shapes do not fit.

    """
    if student.ndim != 2 or teacher.shape != student.shape or queue.shape[1:] != student.shape[1:]:
        shapes = f"{tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(queue.shape)}"
        raise ValueError(f"similarity_loss: student, teacher and queue have shapes {shapes}")
    # In bfloat16 a cosine is off by a third of the teacher's temperature.
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (F.normalize(features.float(), dim=1) for features in (student, teacher))
        own = (ours * theirs).sum(1, keepdim=True)
        similar = torch.cat([ours @ queue.T, own], dim=1) / student_temperature
        targets = torch.cat([theirs @ queue.T, torch.ones_like(own)], dim=1) / teacher_temperature
        return F.cross_entropy(similar, targets.softmax(1))
