"""Means and standard deviations of pixels in [0, 1], by which images are normalised."""

from __future__ import annotations

from typing import NamedTuple

Channels = tuple[float, float, float]


class Statistics(NamedTuple):
    """Per channel, in the order red, green, blue."""

    mean: Channels
    std: Channels


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Also of every source that has no entry of its own."""

CIFAR10 = Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
DIGITS = Statistics((0.3044, 0.3044, 0.3044), (0.3755, 0.3755, 0.3755))
"""Of the training half; the images are grey."""
