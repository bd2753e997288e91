"""Backbones registered with timm, and one forward pass that gives logits, feature maps and attention."""

from __future__ import annotations

from vitutor_core.models import cnn, cvt, rednet, t2t
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.taps import Taps, forward_taps

__all__ = ["Taps", "cnn", "cvt", "evaluation_mode", "forward_taps", "rednet", "t2t"]
