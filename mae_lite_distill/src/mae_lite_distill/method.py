"""MAE-Lite (Wang et al., ICML 2023, arXiv 2205.14443): every row is a pre-training or an evaluation of one."""

from __future__ import annotations

from collections.abc import Callable

from mae_lite_distill.config import MAELiteConfig
from mae_lite_distill.methods.compression import Compression
from mae_lite_distill.methods.contrastive import ContrastivePretraining
from mae_lite_distill.methods.dino import DINO
from mae_lite_distill.methods.masked import MaskedPretraining
from mae_lite_distill.methods.probe import LinearProbe
from mae_lite_distill.methods.simmim import SimMIM
from mae_lite_distill.models.start import build_from_encoder
from vitutor_core.baseline import DistillConfig
from vitutor_core.data.types import DataInfo
from vitutor_core.train.baseline import Baseline
from vitutor_core.train.detector import Detector
from vitutor_core.train.method import Method
from vitutor_core.train.supervised import Supervised


def _with_token(config: MAELiteConfig, info: DataInfo) -> Method:
    """Build DeiT's distillation, arXiv 2012.12877, eq. 3: both terms have the same weight."""
    return Baseline.paired(config.student, config.teacher, DistillConfig(distill="token"), info)


_METHODS: dict[str, Callable[[MAELiteConfig, DataInfo], Method]] = {
    "mae": MaskedPretraining.build,
    "moco": ContrastivePretraining.build,
    "dino": DINO.build,
    "simmim": SimMIM.build,
    "compress": Compression.build,
    "token": _with_token,
    "probe": LinearProbe.build,
    "detect": Detector.build,
    "supervised": lambda config, info: Supervised(build_from_encoder(config, info)),
}


class MAELite:
    """Builds the method that ``method.objective`` names."""

    @staticmethod
    def build(config: MAELiteConfig, info: DataInfo) -> Method:
        """Build student and objective for the data at hand; raises `ConfigError` where they do not fit."""
        return _METHODS[config.method.objective](config, info)
