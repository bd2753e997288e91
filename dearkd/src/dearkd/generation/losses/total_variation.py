"""TV: the total-variation prior of generated images (DeepInversion, arXiv 1912.08795, as used by DearKD eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Return the sum of four norms: of the horizontal, vertical and both diagonal differences of neighbouring pixels.

    Each is one Euclidean norm over the whole tensor (B, C, H, W), so the term grows with the root of the batch, and the
    paper's weight of 1e-4 belongs to this form and not to a mean.
    """
    differences = (
        images[..., :, :-1] - images[..., :, 1:],
        images[..., :-1, :] - images[..., 1:, :],
        images[..., :-1, :-1] - images[..., 1:, 1:],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(difference) for difference in differences]).sum()
