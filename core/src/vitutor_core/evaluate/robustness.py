"""Accuracy out of distribution: a model's 1000 classes on a subset's 200, and the error on corrupted images.

ImageNet-A and -R (Hendrycks et al., arXiv 1907.07174 and 2006.16241) have 200 of ImageNet's classes each; ImageNet-C
(Hendrycks and Dietterich, arXiv 1903.12261) has 15 corruptions at five severities.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitutor_core.data.types import EvalLoader
from vitutor_core.distributed import world
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.accuracy import evaluate

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)


class SubsetLogits(nn.Module):
    """Keeps the logits of some classes: (B, K) becomes (B, len(classes)), in the order of ``classes``.

    Raises:
        ConfigError: the model does not know one of them.

    """

    def __init__(self, model: nn.Module, known: Sequence[str], classes: Sequence[str]) -> None:
        super().__init__()
        unknown = [name for name in classes if name not in known]
        if unknown:
            raise ConfigError(f"subset of classes: the model does not know {', '.join(unknown[:3])}")
        self.model = model
        self.indices = torch.tensor([known.index(name) for name in classes])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits[:, self.indices.to(logits.device)]


class Corrupted:
    """An evaluation loader whose images are corrupted: ``loader``'s images, rounded to 8 bits, through `corrupt-tta`.

    ``mean`` and ``std`` are the loader's normalisation, of pixels in [0, 1]. The noise of an image depends on the
    corruption, the severity and the image's position alone.
    """

    def __init__(
        self, loader: EvalLoader, corruption: str, severity: int, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self._loader, self._corruption, self._severity = loader, corruption, severity
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        position, apart = world()
        for images, labels in self._loader:
            pixels = ((images.cpu() * self._std + self._mean) * 255).round().clamp(0, 255).byte()
            found = []
            for image in pixels.permute(0, 2, 3, 1).numpy():
                found.append(corrupt(image, self._corruption, self._severity, seed=position))
                position += apart
            batch = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 255
            yield ((batch - self._mean) / self._std).contiguous(), labels


def corrupt(image: NDArray[np.uint8], corruption: str, severity: int, *, seed: int) -> NDArray[np.uint8]:
    """Corrupt one 8-bit RGB image (H, W, 3); the strengths are ImageNet-C's, made for 224 pixels.

    Raises:
        ConfigError: the optional package `corrupt-tta` is not installed.

    """
    try:
        import corrupt_tta
    except ImportError:
        raise ConfigError("corruption error: install it with pip install 'vitutor-core[robustness]'") from None
    key = hashlib.sha256(f"{corruption}/{severity}/{seed}".encode()).digest()
    with _seeded(int.from_bytes(key[:4], "little")):
        result = corrupt_tta.corrupt(image, severity=severity, corruption_name=corruption)
    return np.asarray(result).clip(0, 255).astype(np.uint8)  # truncated, as ImageNet-C was saved


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that `corrupt-tta` uses, and give them back afterwards."""
    from corrupt_tta import corruptions

    state, random_noise = np.random.get_state(), corruptions.random_noise  # noqa: NPY002  # it uses the global one
    np.random.seed(seed)  # noqa: NPY002
    # scikit-image's salt and pepper would take a fresh generator from the system.
    corruptions.random_noise = functools.partial(random_noise, rng=seed)
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        corruptions.random_noise = random_noise


def corruption_errors(
    model: nn.Module,
    loader: EvalLoader,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    corruptions: Sequence[str] = CORRUPTIONS,
) -> dict[str, float]:
    """Return the top-1 error in percent on corrupted images, over all processes.

    ``error_<corruption>`` is the mean over severities, ``mce`` the plain mean over corruptions and severities: the mean
    corruption error *unnormalised*, not divided by AlexNet's as published mCEs are.
    """
    errors = {}
    for corruption in corruptions:
        total = 0.0
        for severity in severities:
            corrupted = Corrupted(loader, corruption, severity, mean=mean, std=std)
            total += 100 - evaluate(model, corrupted, num_classes=num_classes, device=device)["top1"]
        errors[f"error_{corruption}"] = total / len(severities)
    return errors | {"mce": sum(errors.values()) / len(errors)}
