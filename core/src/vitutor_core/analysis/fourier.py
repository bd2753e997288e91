"""How much of a layer's map is high frequency (Park and Kim, ICLR 2022, arXiv 2202.06709)."""

from __future__ import annotations

import torch
from torch import Tensor


def log_amplitudes(maps: Tensor, *, true_nyquist: bool = False) -> Tensor:
    """Return the log amplitude along the diagonal from frequency 0 on, relative to frequency 0.

    maps: (B, C, H, H). Returns (H / 2,): entry i is the mean over images and channels of log(|F| + 1e-6) at frequency
    (i, i), minus that at (0, 0). For even H it ends one step below the highest frequency there is, as published;
    ``true_nyquist`` appends that one, where white noise has 0. (Below it, white noise has ln(2) / 2: those bins are
    complex, that of frequency 0 is real.)

    Raises `ValueError` for maps that are not square, and for ``true_nyquist`` with an odd side, which has no such bin.
    """
    side = maps.shape[-1]
    if maps.ndim != 4 or maps.shape[2] != side or (true_nyquist and side % 2):
        raise ValueError(f"log_amplitudes: maps of shape {tuple(maps.shape)}, true_nyquist={true_nyquist}")
    amplitudes = torch.log(torch.fft.fft2(maps).abs() + 1e-6).mean(dim=(0, 1)).diagonal()
    # Without a shift, the diagonal runs from 0 upwards; from side / 2 on come the negative frequencies.
    curve = amplitudes[: (side + 1) // 2 + int(true_nyquist)]
    return curve - curve[0]
