"""l2: the norm prior of generated images (DeepInversion, arXiv 1912.08795, as used by DearKD eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor


def l2_prior(images: Tensor) -> Tensor:
    """Return the Euclidean norm of each image (B, C, H, W), in normalised pixel units; mean over the batch."""
    norms: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norms.mean()
