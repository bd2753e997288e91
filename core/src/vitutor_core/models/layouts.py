"""How the authors of published checkpoints name their tensors: a table per family, to be read as data.

The families of core's own models are here; a paper gives those of its models by ``Paper(layouts=...)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

from vitutor_core.paper import installed_papers, load

Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """One family's names, and what becomes of them.

    Attributes:
        family: what messages call it.
        renames: a pattern that a name starts with, and what takes its place; the first that matches counts. Other
            names stay as they are.
        computed: a pattern of names that are computed from the architecture and hold no weights.
        aside: how names begin, after renaming, that are none of the model's: a decoder, a projector, a teacher.
        values: by a pattern of new names, what brings a tensor into our shape.
        models: published architectures, as timm name and arguments; the first that fits is taken.
        crop: ratio of the central crop in its authors' evaluation.

    """

    family: str
    renames: Names = ()
    computed: str | None = None
    aside: tuple[str, ...] = ()
    values: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    models: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    crop: float = 0.875

    def rename(self, name: str) -> str:
        """Return our name of a tensor."""
        for pattern, ours in self.renames:
            found = re.match(pattern, name)
            if found:
                return found.expand(ours) + name[found.end() :]
        return name

    def read(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the tensors by our names: those of the model, and what was beside it; two of one name stay apart."""
        own: dict[str, Tensor] = {}
        aside: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if self.computed is not None and re.search(self.computed, name):
                continue
            ours = self.rename(name)
            target = aside if self.aside and ours.startswith(self.aside) else own
            target[name if ours in target else ours] = self._shaped(ours, value)
        return own, aside

    def _shaped(self, name: str, value: Tensor) -> Tensor:
        change = next((change for pattern, change in self.values.items() if re.fullmatch(pattern, name)), None)
        return value if change is None else change(value)


def involution_renames(theirs: str, ours: str) -> Names:
    """Return the names of an involution as OpenMMLab's classifiers have it; both arguments are patterns."""
    parts = (("conv1.conv", "reduce"), ("conv1.bn", "bn"), ("conv2.conv", "generate"))
    return tuple((rf"{theirs}\.{re.escape(part)}\.", f"{ours}.{name}.") for part, name in parts)


def stem_renames(theirs: str, ours: str, last: str) -> Names:
    """Return the names of RedNet's stem in OpenMMLab's layout; ``last`` is our name of its last BatchNorm."""
    parts = (("0.conv", "0"), ("0.bn", "1"), ("2", "4"), ("4.conv", "6"))
    return (
        *involution_renames(rf"{theirs}\.1", f"{ours}.3"),
        *((rf"{theirs}\.{re.escape(part)}\.", f"{ours}.{name}.") for part, name in parts),
        (rf"{theirs}\.4\.bn\.", f"{last}."),
    )


DEIT = Layout(
    "DeiT",
    models=tuple(
        (f"deit_{size}_{kind}patch16_{side}", {})
        for side in (224, 384)
        for kind in ("", "distilled_")
        for size in (("tiny", "small", "base") if side == 224 else ("base",))
    ),
)

REDNET = Layout(
    "RedNet",
    (
        *stem_renames(r"backbone\.stem", "conv1", "bn1"),
        *involution_renames(r"backbone\.(layer\d+\.\d+)\.conv2", r"\1.conv2"),
        (r"backbone\.", ""),
        (r"head\.fc\.", "fc."),
    ),
    models=tuple((f"rednet{depth}", {}) for depth in (26, 38, 50, 101, 152)),
)

CVT = Layout(
    "CvT",
    (
        (r"stage\d+\.cls_token", "cls_token"),
        (r"stage(\d+)\.patch_embed\.proj\.", r"embeddings.\1.conv."),
        (r"stage(\d+)\.patch_embed\.norm\.", r"embeddings.\1.norm."),
        (r"stage(\d+)\.blocks\.(\d+)\.attn\.conv_proj_([qkv])\.conv\.", r"stages.\1.blocks.\2.attn.conv_\3.0."),
        (r"stage(\d+)\.blocks\.(\d+)\.attn\.conv_proj_([qkv])\.bn\.", r"stages.\1.blocks.\2.attn.conv_\3.1."),
        (r"stage(\d+)\.blocks\.(\d+)\.attn\.proj_([qkv])\.", r"stages.\1.blocks.\2.attn.\3."),
        (r"stage(\d+)\.blocks\.", r"stages.\1.blocks."),
    ),
    models=(("cvt_13", {}), ("cvt_13", {"depths": (1, 4, 16)})),
)

T2T = Layout(
    "T2T-ViT",
    (
        *((rf"tokens_to_token\.attention{n + 1}\.w$", f"patch_embed.performers.{n}.projection") for n in (0, 1)),
        *((rf"tokens_to_token\.attention{n + 1}\.", f"patch_embed.performers.{n}.") for n in (0, 1)),
        (r"tokens_to_token\.project\.", "patch_embed.proj."),
    ),
    models=(("t2t_vit_14", {"qk_scale": 384**-0.5}),),
    crop=0.9,
)

SWIN = Layout(
    "Swin",
    (
        # Patches are merged at the end of a stage there, and at the start of the next in timm.
        *((rf"layers\.{stage}\.downsample\.", f"layers.{stage + 1}.downsample.") for stage in range(3)),
        (r"head\.", "head.fc."),
    ),
    computed=r"\.(relative_position_index|attn_mask)$",
    models=tuple(
        (f"swin_{size}_patch4_window{window}_{side}", {})
        for window, side, sizes in ((7, 224, ("tiny", "small", "base", "large")), (12, 384, ("base", "large")))
        for size in sizes
    ),
)

OWN = Layout("timm")
"""The names that our models have."""
FAMILIES = (DEIT, REDNET, CVT, T2T, SWIN)
"""Of core's own models."""


@cache
def layouts() -> tuple[Layout, ...]:
    """Return all layouts that are known here, those of installed papers included."""
    of_papers = (load(paper.layouts) for paper in installed_papers().values() if paper.layouts is not None)
    return OWN, *FAMILIES, *(layout for found in of_papers for layout in found)
