"""Detection and instance segmentation: Mask R-CNN (arXiv 1703.06870) of torchvision on a student."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from vitutor_core.data.detection.load import AnnotatedEvalLoader
from vitutor_core.data.types import Batch, DataInfo, EvalLoader, Objects
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.detection import average_precision
from vitutor_core.models.backbone import create_backbone, freeze_unused, map_reader
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.pyramid import build_pyramid
from vitutor_core.schema import DetectionConfig
from vitutor_core.train.method import Clock, Method, Report, StepOutput, Traits

_RATIOS = (0.5, 1.0, 2.0)
"""Aspect ratios of the anchors."""


class Detector(Method):
    """Mask R-CNN with the heads of ViTDet: two convolutions in the RPN, four and a linear layer for boxes, LayerNorm.

    The student is the backbone, and is published as every student is; the whole detector is in ``method.safetensors``.
    Losses and their settings are torchvision's, which are those of Mask R-CNN.
    """

    traits = Traits(classifies=False, measures=True)

    def __init__(self, student: nn.Module, info: DataInfo, detect: DetectionConfig) -> None:
        super().__init__()
        self.student = student
        self.size = info.image_size
        self._read = map_reader(student, window=detect.window, global_blocks=detect.global_blocks)
        freeze_unused(student, self._read, torch.zeros(1, info.channels, self.size, self.size))
        self.pyramid, strides = build_pyramid(self._read.maps, detect.channels)
        heads = _mask_rcnn(strides, info.num_classes + 1, detect)
        self.rpn, self.roi_heads = heads.rpn, heads.roi_heads

    @classmethod
    def build(cls, config: Any, info: DataInfo) -> Self:
        """Build the detector; ``config`` has the section `DetectionConfig` as ``detect``."""
        if config.train.ema_decay is not None:
            raise ConfigError("train.ema_decay: averages the student alone, not the heads of a detector; leave it out")
        return cls(create_backbone(config.student, info), info, config.detect)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        losses = self._run(batch.images, batch.objects or [_nothing(batch.images)] * len(batch.images))[1]
        return StepOutput(torch.stack(list(losses.values())).sum(), parts=losses)

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return what is found in each of (B, 3, S, S), in the images' pixels, the surest first, at most 100 each.

        ``boxes`` (n, 4), ``labels`` (n,) class ids from 0, ``scores`` (n,), and ``masks`` (n, 1, 28, 28), the
        probabilities within the box.
        """
        with evaluation_mode(self), torch.inference_mode():
            found: list[dict[str, Tensor]] = self._run(images, None)[0]
        return [one | {"labels": one["labels"] - 1} for one in found]

    def report(self, probe: Tensor | None = None, evaluation: EvalLoader | None = None) -> Report:
        if not isinstance(evaluation, AnnotatedEvalLoader):
            return Report()
        return Report(average_precision(self.detect, evaluation))

    def _run(self, images: Tensor, objects: Any) -> tuple[Any, dict[str, Tensor]]:
        targets = None
        if objects is not None:
            targets = [{"boxes": one.boxes, "labels": one.labels + 1, "masks": one.masks} for one in objects]
        levels = self.pyramid(self._read(self.student, images))
        sizes = [(self.size, self.size)] * len(images)
        # Boxes take the type of what the heads predict, and bf16 has no odd numbers of pixels above 256.
        with torch.autocast(images.device.type, enabled=False):
            levels = {name: level.float() for name, level in levels.items()}
            proposals, losses = self.rpn(ImageList(images, sizes), levels, targets)
            found, more = self.roi_heads(levels, proposals, sizes, targets)
        return found, {**losses, **more}


class _Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors as far apart as the cells of their level, which need not divide the image: 8 strides wide."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__(tuple((8 * stride,) for stride in strides), (_RATIOS,) * len(strides))
        self.strides = strides

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:  # theirs divide the image
        found: list[Tensor] = super().grid_anchors(grid_sizes, [(stride, stride) for stride in self.strides])
        return found


def _mask_rcnn(strides: tuple[int, ...], classes: int, detect: DetectionConfig) -> MaskRCNN:
    """Build what follows a pyramid of these strides; ``classes`` counts the background."""
    share = min(detect.proposals / 512, 1)  # of the proposals of Mask R-CNN, before and after suppression
    width, names = detect.channels, [str(number) for number in range(len(strides) - 1)]
    backbone = nn.Identity()
    backbone.out_channels = width  # type: ignore[assignment]  # torchvision reads it there
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=_Anchors(strides),
        rpn_head=RPNHead(width, len(_RATIOS), conv_depth=2),
        rpn_pre_nms_top_n_train=math.ceil(2000 * share),
        rpn_pre_nms_top_n_test=math.ceil(1000 * share),
        rpn_post_nms_top_n_train=math.ceil(1000 * share),
        rpn_post_nms_top_n_test=math.ceil(1000 * share),
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2),
        box_head=FastRCNNConvFCHead((width, 7, 7), [width] * 4, [4 * width], norm_layer=LayerNorm2d),
        box_predictor=FastRCNNPredictor(4 * width, classes),
        box_batch_size_per_image=detect.proposals,
        mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm_layer=LayerNorm2d),
        mask_predictor=MaskRCNNPredictor(width, width, classes),
    )


def _nothing(images: Tensor) -> Objects:
    """Return the objects of an image without any."""
    empty = images.new_zeros(0, *images.shape[2:], dtype=torch.uint8)
    return Objects(images.new_zeros(0, 4), empty.new_zeros(0, dtype=torch.int64), empty)
