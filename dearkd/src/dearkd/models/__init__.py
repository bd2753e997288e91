"""The student with convolutional attention, and the aligners of its early blocks."""

from __future__ import annotations

from dearkd.models.aligner import Aligner
from dearkd.models.bias import relative_bias
from dearkd.models.mhca import MHCA
from dearkd.models.vit import DearKDVisionTransformer

__all__ = ["MHCA", "Aligner", "DearKDVisionTransformer", "relative_bias"]
