"""What the losses over several layers ask of their lists."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_layers(
    loss: str, student: Sequence[Tensor], teacher: Sequence[Tensor], maps: Sequence[Tensor], *, axis: int
) -> None:
    """Raise `ValueError` unless each layer has a map (C', C) that brings the student's ``axis`` to the teacher's size.

    ``loss`` is the name of the loss; the student's tensors have C, the teacher's C' entries along the axis, and equal
    sizes along all others.
    """
    if not student or {len(teacher), len(maps)} != {len(student)}:
        raise ValueError(f"{loss}: {len(student)} layers, {len(teacher)} of the teacher and {len(maps)} maps")
    for ours, theirs, learnt in zip(student, teacher, maps, strict=True):
        expected = list(ours.shape)
        expected[axis] = learnt.shape[0]
        if list(theirs.shape) != expected or learnt.shape[1] != ours.shape[axis]:
            shapes = f"{tuple(ours.shape)}, {tuple(theirs.shape)} and {tuple(learnt.shape)}"
            raise ValueError(f"{loss}: student, teacher and map of shapes {shapes}")
