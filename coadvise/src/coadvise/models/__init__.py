"""The students of Co-advise: CiT, and the CNN and MLP of its ablation."""

from __future__ import annotations

from coadvise.models.cit import CiT
from coadvise.models.other_students import mixer_tiny_patch16_224, resnet10
from coadvise.models.stems import StemEmbed

__all__ = ["CiT", "StemEmbed", "mixer_tiny_patch16_224", "resnet10"]
