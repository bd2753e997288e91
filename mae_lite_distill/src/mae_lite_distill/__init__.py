"""MAE-Lite (Wang et al., ICML 2023, arXiv 2205.14443): distilled masked pre-training of lightweight ViTs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitutor_core.lazy import lazily

if TYPE_CHECKING:
    from mae_lite_distill.autoencoder import MaskedAutoencoder
    from mae_lite_distill.config import MAEConfig

__all__ = ["MAEConfig", "MaskedAutoencoder"]
__version__ = "0.1.0"

__getattr__ = lazily(
    __name__, {"MAEConfig": "mae_lite_distill.config", "MaskedAutoencoder": "mae_lite_distill.autoencoder"}
)
