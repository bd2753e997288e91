"""Backbones registered with timm, and one forward pass that gives logits, feature maps and attention."""

from __future__ import annotations

from vitutor_core.models import cnn, cvt, rednet, t2t
from vitutor_core.models.intermediates import Intermediates, read_intermediates
from vitutor_core.models.modes import evaluation_mode

__all__ = ["Intermediates", "cnn", "cvt", "evaluation_mode", "read_intermediates", "rednet", "t2t"]
