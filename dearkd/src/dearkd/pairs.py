"""Which block of a student learns from which stage of a teacher, where the config leaves it to their shapes."""

from __future__ import annotations

from typing import Any

from vitutor_core.errors import ConfigError

Pairs = tuple[tuple[int, str], ...]


def auto_pairs(student: Any, teacher: Any, *, scale: float = 1.0) -> Pairs:
    """Pair two thirds of the student's blocks with the last stage whose cells are no larger than a patch.

    One third of the blocks is paired with the stage before, of smaller cells. With DeiT and RegNetY-16GF this gives
    the defaults, ((4, "s2"), (8, "s3")). Where all cells are larger, the stage with the smallest is taken; one pair is
    left where there is no stage before, or no block.

    Args:
        student: a vision transformer, with ``blocks`` and ``patch_embed``.
        teacher: a timm model, with ``feature_info``.
        scale: side of the student's images over that of the teacher's.

    Raises:
        ConfigError: the student has no blocks, or the teacher lists no stages.

    """
    depth, patch = len(getattr(student, "blocks", ())), getattr(student, "patch_embed", None)
    size = getattr(patch, "patch_size", None)
    if depth == 0 or size is None:
        raise ConfigError("method.pairs=auto: the student has no blocks of patches of one size; set method.pairs=[]")
    side = size if isinstance(size, int) else max(size)
    # Of the stages with equal cells the deepest one counts, as of the blocks of a ViT.
    stages = {entry["reduction"]: entry["module"] for entry in getattr(teacher, "feature_info", ())}
    if not stages:
        raise ConfigError("method.pairs=auto: the teacher lists no stages; name modules in method.pairs, or set it []")
    cells = sorted(stages)
    last = max((index for index, cell in enumerate(cells) if cell * scale <= side), default=0)
    first, second = round(depth / 3), max(round(2 * depth / 3), 1)
    pairs = [(second, stages[cells[last]])]
    if last > 0 and 1 <= first < second:
        pairs.insert(0, (first, stages[cells[last - 1]]))
    return tuple(pairs)
