"""A distilled pre-training step against the same step with attention materialised in every block.

python -m benchmarks.mae_lite_distill [--out FILE] [--device cuda]

Ours computes logits in the distilled block alone and stops the teacher there; attention is fused. The other step is
what hooks on every block do: all blocks of student and teacher materialise their attention, and the teacher runs to its
end. That both have the same loss is checked. Student and teacher are the paper's, ViT-Tiny with 12 heads and ViT-Base,
on 224 px; on a CPU the batch is small.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.record import report
from mae_lite_distill.config import MAEConfig
from mae_lite_distill.methods import masked
from mae_lite_distill.methods.masked import MaskedPretraining, init_encoder
from mae_lite_distill.models import Decoder, Masking, encode, head_map, random_masking
from vitutor_core.bench.timing import interleave, ratio
from vitutor_core.data.types import DataInfo
from vitutor_core.distill import FrozenTeacher

INFO = DataInfo("none", ("x",) * 1000, 224, 3, (0.5,) * 3, (0.5,) * 3, 1, 1, "")


def build() -> MaskedPretraining:
    """Return the method with untrained weights, which cost the same."""
    import timm

    torch.manual_seed(0)
    student = timm.create_model("vit_tiny_patch16_224", num_heads=12)
    teacher = timm.create_model("vit_base_patch16_224", num_classes=0)
    for vit in (student, teacher):
        init_encoder(vit)
    frozen = FrozenTeacher(teacher, name="base", mean=INFO.mean, std=INFO.std, image_size=224, info=INFO)
    maps = torch.nn.ParameterList([head_map(12, 12, init="random")])
    config = MAEConfig(distill_layers=(12,))
    return MaskedPretraining(student, Decoder(192, (14, 14), 768), config, INFO, teacher=frozen, maps=maps)


def step(method: MaskedPretraining, images: torch.Tensor, masking: Masking) -> torch.Tensor:
    """Make forward and backward pass, and return the loss."""
    method.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        loss = method.objective(images, masking).loss
    loss.backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return loss


def whole_teacher(vit: Any, images: torch.Tensor, masking: Masking, blocks: list[int]) -> dict[int, torch.Tensor]:
    """Return the same logits, after all of the teacher has run."""
    return encode(vit, images, masking, logits=blocks).logits


def materialised(method: MaskedPretraining, images: torch.Tensor, masking: Masking) -> torch.Tensor:
    """Make the same step with every block of both on the unfused path."""
    with ExitStack() as stack:
        for vit in (method.student, method._teacher.model):
            for block in vit.blocks:
                stack.callback(setattr, block.attn, "fused_attn", block.attn.fused_attn)
                block.attn.fused_attn = False
        stack.callback(setattr, masked, "encode_logits", masked.encode_logits)
        masked.encode_logits = whole_teacher
        return step(method, images, masking)


def main() -> None:
    """Measure and report."""
    device = torch.device("cpu")
    if "--device" in sys.argv:
        place = sys.argv.index("--device")
        device = torch.device(sys.argv[place + 1])
        del sys.argv[place : place + 2]
    torch.set_num_threads(1)
    method = build().to(device).train()
    method._teacher.to(device)
    batch, rounds = (512, 50) if device.type == "cuda" else (8, 12)
    images = torch.randn(batch, 3, 224, 224, device=device)
    masking = random_masking(batch, 196, 0.75, device)
    losses = step(method, images, masking), materialised(method, images, masking)
    torch.testing.assert_close(*losses, rtol=1e-2 if device.type == "cuda" else 1e-4, atol=0)
    ours, theirs = interleave(
        lambda: step(method, images, masking), lambda: materialised(method, images, masking), rounds=rounds
    )
    figures = ratio(theirs, ours)
    report(
        "distilled pre-training step",
        {
            "device": str(device),
            "batch": batch,
            "materialised_ms": figures["first_ms"],
            "ours_ms": figures["second_ms"],
            "speed_up": figures["ratio"],
        },
    )


if __name__ == "__main__":
    main()
