"""Random Erasing (Zhong et al., arXiv:1708.04896) as in timm's ``pixel`` mode: a rectangle becomes N(0, 1) noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitutor_core.data import keyed
from vitutor_core.data.augment.boxes import NUM_DRAWS, random_boxes
from vitutor_core.data.sampler import SampleKeys
from vitutor_core.data.transfer import to_device

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)

_FIRST_DRAW = 32
_BANK_SIZE = 2**18
_BANK_KEY = -1


class RandomErasing:
    """Erase one rectangle with ``probability``, after normalisation.

    The noise of a view is the stretch of a fixed bank of keyed normal numbers that begins at a keyed offset. So the
    bank goes to the device once, and not fresh noise with every batch.
    """

    def __init__(self, probability: float, size: int, seed: int, device: torch.device) -> None:
        self._probability = probability
        pixels = 3 * size * size
        bank = keyed.normal(seed, _BANK_KEY, np.arange(_BANK_SIZE + pixels)).astype(np.float32)
        self._stretches = to_device(bank, device).unfold(0, pixels, 1)

    def __call__(self, images: Tensor, keys: SampleKeys) -> Tensor:
        """Erase in (B, 3, size, size) normalised images, in place, and return them."""
        side, device = images.shape[-1], images.device
        draws = keys.uniform(_FIRST_DRAW, 2 + NUM_DRAWS)
        rectangles, found = random_boxes(draws[:, 2:], side, margin=1, area=AREA, aspect=ASPECT)
        rows = np.flatnonzero(found & (draws[:, 0] < self._probability))
        if not len(rows):
            return images
        offsets = to_device((draws[rows, 1] * len(self._stretches)).astype(np.int64), device)
        noise = self._stretches[offsets].view(-1, *images.shape[1:])
        first, extent = to_device(rectangles[rows].reshape(-1, 2, 1, 2), device).unbind(1)
        axis = torch.arange(side, device=device)[:, None]
        vertical, horizontal = ((axis >= first) & (axis < first + extent)).float().unbind(2)
        mask = (vertical[:, :, None] * horizontal[:, None, :])[:, None]
        selected = to_device(rows, device)
        return images.index_copy_(0, selected, images.index_select(0, selected).lerp_(noise, mask))
