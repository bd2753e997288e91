"""The loss of DINO (Caron et al., ICCV 2021, arXiv 2104.14294, eq. 1 to 4): a teacher that is centred and sharpened."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def self_distillation_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    centre: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Return the cross-entropy between the teacher's and the student's softmax, of pairs of different views.

    Args:
        students: outputs (B, K) for each view; the first are the views of ``teachers``, in their order.
        teachers: outputs (B, K) for each global view.
        centre: (K,), what is taken off the teacher's outputs, so that no output dominates.
        temperature: of the student's softmax.
        teacher_temperature: of the teacher's; a lower one sharpens, so that the outputs do not become uniform.

    Returns:
        The mean over the images and over the pairs, in nats. No gradient flows to the teacher.

    Raises:
        ValueError: the shapes do not fit, or no pair is of different views.

    """
    shapes = {tuple(output.shape) for output in (*students, *teachers)}
    if len(shapes) != 1 or centre.shape != teachers[0].shape[1:] or len(students) < max(2, len(teachers)):
        counts = f"{len(students)} student and {len(teachers)} teacher outputs"
        raise ValueError(f"self_distillation_loss: {counts} of shapes {sorted(shapes)}, centre {tuple(centre.shape)}")
    targets = [((output.detach().float() - centre) / teacher_temperature).softmax(-1) for output in teachers]
    logs = [(output.float() / temperature).log_softmax(-1) for output in students]
    terms = [
        -(target * log).sum(-1).mean()
        for taught, target in enumerate(targets)
        for seen, log in enumerate(logs)
        if seen != taught
    ]
    return torch.stack(terms).mean()
