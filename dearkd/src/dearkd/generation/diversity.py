"""How different the images of one class are: pairs, distances of features, LPIPS (Table 6)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.data import keyed
from vitutor_core.data.types import Split
from vitutor_core.errors import CheckpointError, ConfigError, DataError, ResourceError
from vitutor_core.models.intermediates import read_intermediates

_STREAM = 4
_BATCH = 64
# AlexNet's pooling leaves nothing of smaller images.
_SMALLEST_SIDE = 64

Distance = Callable[[Tensor, Tensor], Tensor]
"""Maps two batches (B, 3, H, W) of pixels in [0, 1] to distances (B,)."""


def same_class_pairs(labels: NDArray[np.int64], per_class: int, seed: int) -> NDArray[np.int64]:
    """Draw pairs of different images of one class, ``per_class`` for each class with two images: (P, 2) positions.

    Raises `DataError` if no class has two.
    """
    pairs = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            draws = np.arange(per_class)
            first = (keyed.uniform(seed, _STREAM, label, 0, draws) * len(members)).astype(np.int64)
            step = 1 + (keyed.uniform(seed, _STREAM, label, 1, draws) * (len(members) - 1)).astype(np.int64)
            pairs.append(np.stack([members[first], members[(first + step) % len(members)]], axis=1))
    if not pairs:
        raise DataError("diversity: no class has two images to compare; generate with a larger images_per_class")
    return np.concatenate(pairs)


def mean_distance(
    split: Split, pairs: NDArray[np.int64], prepare: Callable[[Any], Any], distance: Distance, device: torch.device
) -> float:
    """Return the mean distance of pairs (P, 2) of a split's images; ``prepare`` brings an image to its size."""

    def load(positions: NDArray[np.int64]) -> Tensor:
        pixels = np.stack([np.asarray(prepare(split.read(int(position)))) for position in positions])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).to(device)

    def distances() -> Iterator[Tensor]:
        for start in range(0, len(pairs), _BATCH):
            some = pairs[start : start + _BATCH]
            yield distance(load(some[:, 0]), load(some[:, 1]))

    with torch.inference_mode():
        return float(torch.cat(list(distances())).double().mean())


def feature_distance(model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> Distance:
    """Return the Euclidean distance, in [0, 2], of a network's pooled features at unit length."""
    network: Any = model

    def features(pixels: Tensor) -> Tensor:
        means, stds = (torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in (mean, std))
        tokens = read_intermediates(model, (pixels - means) / stds).tokens
        return F.normalize(network.forward_head(tokens, pre_logits=True), dim=1)

    return lambda first, second: torch.linalg.vector_norm(features(first) - features(second), dim=1)


def lpips_if_available(device: torch.device) -> Distance | None:
    """Return LPIPS with torchvision's AlexNet, or None without the package or the weights."""
    try:
        return lpips_distance("download", device)
    except (ConfigError, ResourceError):
        return None


def lpips_distance(weights: str, device: torch.device) -> Distance:
    """Return LPIPS v0.1 with AlexNet (Zhang et al., arXiv 1801.03924); small images are enlarged to 64 px first.

    ``weights`` is a safetensors file with torchvision's AlexNet, or ``download``.
    Raises `ConfigError` without the package `lpips`, `CheckpointError` for a file of other weights, and
    `ResourceError` where the download fails.
    """
    try:
        import lpips
    except ImportError:
        raise ConfigError("--lpips: the package lpips is missing; pip install 'vitutor-dearkd[lpips]'") from None
    backbone = _alexnet(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips names the torchvision of its time
        model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    convolutions = (module for module in model.net.modules() if isinstance(module, nn.Conv2d))
    for module, layer in zip(convolutions, (0, 3, 6, 8, 10), strict=True):
        module.load_state_dict({name: backbone[f"features.{layer}.{name}"] for name in ("weight", "bias")})
    model = model.to(device).eval().requires_grad_(False)

    def prepared(pixels: Tensor) -> Tensor:
        if min(pixels.shape[-2:]) < _SMALLEST_SIDE:
            size = (_SMALLEST_SIDE, _SMALLEST_SIDE)
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        return pixels * 2 - 1

    def distance(first: Tensor, second: Tensor) -> Tensor:
        found: Tensor = model(prepared(first), prepared(second))
        return found.flatten()

    return distance


def _alexnet(weights: str) -> dict[str, Tensor]:
    if weights == "download":
        from torchvision.models import AlexNet_Weights

        try:
            loaded: dict[str, Tensor] = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(
                progress=False, check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:
            raise ResourceError(
                f"--lpips download: cannot fetch AlexNet's weights ({error}); give them as a safetensors file"
            ) from None
        return loaded
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(weights).absolute()
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        raise CheckpointError(f"{path}: no safetensors file with AlexNet's weights; or say --lpips download") from None
    shapes = [
        tuple(tensors[name].shape) if (name := f"features.{k}.weight") in tensors else None for k in (0, 3, 6, 8, 10)
    ]
    if shapes != [(64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)]:
        raise CheckpointError(f"{path}: not torchvision's AlexNet (features.0.weight and so on)")
    return tensors
