"""The loss of SimMIM (Xie et al., CVPR 2022, arXiv 2111.09886, eq. 2): raw pixels of what the encoder did not see."""

from __future__ import annotations

from torch import Tensor


def masked_l1_loss(predictions: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
    """Return the mean absolute error over all values of the masked patches of a batch.

    Args:
        predictions: (B, N, P), what is predicted for every patch.
        patches: (B, N, P), `patchify` of the images.
        masked: (B, N), 1 where the encoder saw a mask token in place of the patch, else 0.

    Raises:
        ValueError: the shapes do not fit.

    """
    if predictions.shape != patches.shape or masked.shape != patches.shape[:2]:
        shapes = f"{tuple(predictions.shape)}, {tuple(patches.shape)} and {tuple(masked.shape)}"
        raise ValueError(f"masked_l1_loss: predictions, patches and masked have shapes {shapes}")
    errors = (predictions - patches).abs().mean(-1)
    return (errors * masked).sum() / masked.sum()
