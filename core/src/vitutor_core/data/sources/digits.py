"""scikit-learn's bundled handwritten digits: real images that need no download."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data.sources.images import array_split
from vitutor_core.data.sources.statistics import DIGITS
from vitutor_core.data.sources.subsets import draw_share
from vitutor_core.data.types import Source

_SPLIT_SEED = 1797
"""Fixed, and not a config field: every run is evaluated on the same images."""


def digits_source() -> Source:
    """Open the 1,797 grey images of 8 x 8 pixels; half of each class is held out for evaluation.

    Values 0 to 16 become ``round(v * 255 / 16)``. Both halves keep the order of the file.
    """
    pixels, labels = _read()
    held_out = draw_share(labels, 0.5, _SPLIT_SEED)
    return Source(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        mean=DIGITS.mean,
        std=DIGITS.std,
        train=array_split(pixels[~held_out], labels[~held_out], "digits, training half"),
        evaluation=array_split(pixels[held_out], labels[held_out], "digits, evaluation half"),
    )


@cache
def _read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # They lie in a text file, which a comparison of methods would otherwise read many times.
    from sklearn.datasets import load_digits

    bundle = load_digits()
    return np.rint(bundle.images * (255 / 16)).astype(np.uint8), bundle.target.astype(np.int64)
