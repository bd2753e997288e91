"""The config of a MAE-Lite run: the shared sections, what the run is for, and the settings of each pre-training."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from vitutor_core.config import Config, fingerprinted
from vitutor_core.schema import LARGE, DetectionConfig, Layer, RunConfig, Share, TeacherConfig, Weight

Objective = Literal["mae", "moco", "dino", "simmim", "compress", "supervised", "token", "probe", "detect"]


class ObjectiveConfig(Config):
    """What a run is for; docs/fidelity/mae_lite_distill.md says where the numbers come from."""

    objective: Objective = fingerprinted(
        "supervised",
        help="Purpose; mae, moco, dino, simmim: pre-train an encoder; compress: pre-train it by a contrastive teacher "
        "(SEED); supervised: train or fine-tune it; token: train a model with a token for a teacher's answers (DeiT); "
        "probe: train a linear head on it; detect: fine-tune it as the backbone of a detector",
    )
    keep_blocks: int | None = fingerprinted(
        None,
        help="Keep the first k pre-trained blocks and start the others fresh, in supervised training; null: keep all",
        ge=0,
        le=1000,
    )


class MAEConfig(Config):
    """Masked pre-training (section 2), and the distillation of attention (eq. 3) or hidden states during it."""

    mask_ratio: float = fingerprinted(0.75, help="Share of the patches that the encoder does not see", gt=0, lt=1)
    normalise_pixels: bool = fingerprinted(True, help="Predict patches of mean 0 and variance 1")
    decoder_width: int = fingerprinted(96, help="Width of the decoder", ge=4, le=2**16)
    decoder_depth: int = fingerprinted(1, help="Blocks of the decoder", ge=1, le=1000)
    decoder_heads: int = fingerprinted(3, help="Attention heads of the decoder", ge=1, le=1024)
    distill_layers: tuple[Layer, ...] = fingerprinted(
        (), help="Blocks (from 1) that are distilled, each from the teacher's block of the same number"
    )
    distill_target: Literal["attention", "hidden"] = fingerprinted(
        "attention", help="What of a block is distilled: its attention (eq. 3), or the hidden states that it puts out"
    )
    distill_weight: float = fingerprinted(1.0, help="Weight alpha of the distillation loss", gt=0, le=LARGE)
    distill_quantity: Literal["logits", "probs"] = fingerprinted(
        "logits", help="Attention before the softmax, as released, or after it"
    )
    head_map_init: Literal["random", "identity"] = fingerprinted("random", help="Start of the map between heads")
    decouple_after: int | None = fingerprinted(
        None,
        help="Decoupled distillation: the decoder sees the tokens after this block, and an extra block behind the "
        "last gives the logits that the one layer of distill_layers teaches; null: off",
        ge=1,
        le=1000,
    )


class ViewConfig(Config):
    """How views of an image differ in colour; the defaults are those of MoCo-v3 and DINO."""

    flip: float = fingerprinted(0.5, help="Probability of a horizontal flip", ge=0, le=1)
    jitter: tuple[Weight, Weight, Weight, Weight] = fingerprinted(
        (0.4, 0.4, 0.2, 0.1), help="Strength of the jitter of brightness, contrast, saturation and hue"
    )
    jitter_probability: float = fingerprinted(0.8, help="Probability of the colour jitter", ge=0, le=1)
    grey: float = fingerprinted(0.2, help="Probability of a grey view", ge=0, le=1)
    solarise: float = fingerprinted(0.2, help="Probability of solarising the second view", ge=0, le=1)


class MoCoConfig(ViewConfig):
    """Contrastive pre-training by MoCo-v3; the defaults are the released ones."""

    temperature: float = fingerprinted(0.2, help="Temperature of the contrastive loss", gt=0, le=LARGE)
    momentum: float = fingerprinted(0.99, help="Momentum of the key encoder at the start; it rises to 1", ge=0, lt=1)
    hidden: int = fingerprinted(4096, help="Hidden width of projector and predictor", ge=1, le=2**17)
    features: int = fingerprinted(256, help="Features that are compared", ge=1, le=2**17)
    crop_scale: tuple[Share, Share] = fingerprinted((0.08, 1.0), help="Area range of the random resized crop of a view")
    blur: tuple[Share, Share] = fingerprinted((1.0, 0.1), help="Probability of blurring the first and the second view")


class DINOConfig(ViewConfig):
    """Self-distillation by DINO (arXiv 2104.14294); the defaults are the released ones."""

    prototypes: int = fingerprinted(65536, help="Outputs of the head", ge=2, le=2**20)
    hidden: int = fingerprinted(2048, help="Hidden width of the head", ge=1, le=2**17)
    bottleneck: int = fingerprinted(256, help="Features that the prototypes are compared with", ge=1, le=2**17)
    batch_norm: bool = fingerprinted(False, help="BatchNorm in the head, which small batches and widths need")
    momentum: float = fingerprinted(0.996, help="Momentum of the teacher at the start; it rises to 1", ge=0, lt=1)
    centre_momentum: float = fingerprinted(0.9, help="Momentum of the centre of the teacher's outputs", ge=0, lt=1)
    temperature: float = fingerprinted(0.1, help="Temperature of the student", gt=0, le=LARGE)
    teacher_temperature: float = fingerprinted(0.04, help="Temperature of the teacher", gt=0, le=LARGE)
    frozen_epochs: int = fingerprinted(1, help="Epochs at the start in which the prototypes are kept", ge=0, le=1000)
    crop_scale: tuple[Share, Share] = fingerprinted((0.4, 1.0), help="Area range of the two global crops")
    local_crops: int = fingerprinted(8, help="Local crops of an image, which the student alone sees", ge=0, le=64)
    local_scale: tuple[Share, Share] = fingerprinted((0.05, 0.4), help="Area range of the local crops")
    local_size: int = fingerprinted(96, help="Side of the local crops in pixels", ge=1, le=2**14)
    blur: tuple[Share, Share, Share] = fingerprinted(
        (1.0, 0.1, 0.5), help="Probability of blurring the first, the second and a local crop"
    )


class SimMIMConfig(Config):
    """Masked pre-training by SimMIM (arXiv 2111.09886); the defaults are the released ones."""

    mask_patch: int = fingerprinted(32, help="Side of the squares that are masked, in pixels", ge=1, le=2**14)
    mask_ratio: float = fingerprinted(0.6, help="Share of the squares that are masked", gt=0, lt=1)


class CompressionConfig(Config):
    """Compression of a contrastive teacher by SEED (arXiv 2101.04731), which Table 2 compares with."""

    queue: int = fingerprinted(65536, help="Features of the teacher that similarities are taken to", ge=1, le=2**24)
    hidden: int = fingerprinted(2048, help="Hidden width of the student's projector", ge=1, le=2**17)
    student_temperature: float = fingerprinted(0.2, help="Temperature of the student's similarities", gt=0, le=LARGE)
    teacher_temperature: float = fingerprinted(0.01, help="Temperature of the teacher's similarities", gt=0, le=LARGE)


class MAELiteConfig(RunConfig):
    """Everything that a MAE-Lite run needs."""

    teacher: TeacherConfig | None = fingerprinted(None, help="The frozen teacher of the distillation; null: none")
    method: ObjectiveConfig = fingerprinted(ObjectiveConfig(), help="What the run is for")
    mae: MAEConfig = fingerprinted(MAEConfig(), help="Masked pre-training")
    moco: MoCoConfig = fingerprinted(MoCoConfig(), help="Contrastive pre-training")
    dino: DINOConfig = fingerprinted(DINOConfig(), help="Self-distillation")
    simmim: SimMIMConfig = fingerprinted(SimMIMConfig(), help="Masked pre-training with mask tokens in the encoder")
    compress: CompressionConfig = fingerprinted(CompressionConfig(), help="Compression of a contrastive teacher")
    detect: DetectionConfig | None = fingerprinted(
        None, help="Settings of the detector; only with method.objective=detect"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        objective, mae = self.method.objective, self.mae
        starts = self.student.weights is not None or self.student.start_row is not None
        taught = objective in {"compress", "token"} or (objective == "mae" and bool(mae.distill_layers))
        if taught != (self.teacher is not None):
            raise ValueError(
                "a teacher and mae.distill_layers go together, in a run with method.objective=mae; with "
                "method.objective=compress or token there is a teacher alone"
            )
        if len(set(mae.distill_layers)) != len(mae.distill_layers) or min(mae.distill_layers, default=1) < 1:
            raise ValueError(f"mae.distill_layers: {list(mae.distill_layers)}; name each block once, from 1")
        if mae.decouple_after is not None and len(mae.distill_layers) != 1:
            raise ValueError("mae.decouple_after needs one layer in mae.distill_layers")
        if mae.distill_target == "hidden" and not mae.distill_layers:
            raise ValueError("mae.distill_target=hidden: name the blocks in mae.distill_layers")
        if mae.distill_target == "hidden" and (
            (mae.distill_quantity, mae.head_map_init, mae.decouple_after) != ("logits", "random", None)
        ):
            raise ValueError(
                "mae.distill_target=hidden compares no attention; leave mae.distill_quantity, mae.head_map_init and "
                "mae.decouple_after as they are"
            )
        if mae.decoder_width % 4 or mae.decoder_width % mae.decoder_heads:
            raise ValueError("mae.decoder_width must be a multiple of 4 and of mae.decoder_heads")
        if (objective == "detect") != (self.detect is not None):
            raise ValueError("the section detect and method.objective=detect go together")
        if self.method.keep_blocks is not None and not (objective == "supervised" and starts):
            raise ValueError("method.keep_blocks: keeps blocks of an encoder to fine-tune; set student.weights")
        pretrains = {"mae", "moco", "dino", "simmim", "compress"}
        if objective in pretrains and (starts or self.augment.mixup or self.augment.cutmix):
            raise ValueError(f"method.objective={objective} starts fresh, and needs images that are not mixed")
        return self
