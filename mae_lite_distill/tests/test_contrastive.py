"""MoCo-v3: parts, views, key encoder."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch.nn import functional as F

from mae_lite_distill.config import MoCoConfig
from mae_lite_distill.losses import contrastive_loss
from mae_lite_distill.methods.contrastive import ContrastivePretraining, init_encoder
from mae_lite_distill.methods.momentum import momentum
from mae_lite_distill.models import mlp_head
from mae_lite_distill.tests.mae_samples import INFO, MICRO_MOCO, resolve
from mae_lite_distill.views import TwoViews, gaussian_blur, shift_hue
from vitutor_core.data.types import Batch
from vitutor_core.train import optim
from vitutor_core.train.method import Clock


def build():
    torch.manual_seed(0)
    return ContrastivePretraining.build(resolve("moco", *MICRO_MOCO), INFO)


def batch(number=8):
    images = torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.zeros(number).long(), torch.arange(number))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_heads_of_the_paper():
    projector, predictor = mlp_head((192, 4096, 4096, 256)), mlp_head((256, 4096, 256))
    assert count(projector) == 18_628_608
    assert count(predictor) == 2_105_344
    assert [layer.affine for layer in projector if isinstance(layer, torch.nn.BatchNorm1d)] == [True, True, False]


def test_loss_of_orthogonal_features():
    eye, t = torch.eye(6, dtype=torch.float64), 0.2
    expected = 2 * t * math.log(1 + 5 * math.exp(-1 / t))
    assert contrastive_loss(3 * eye, 2 * eye, temperature=t).item() == pytest.approx(expected, rel=1e-12)
    # The second half of the queries, whose keys come behind those of another process.
    assert contrastive_loss(eye[3:], eye, temperature=t, first=3).item() == pytest.approx(expected, rel=1e-12)
    assert contrastive_loss(eye[3:], eye, temperature=t).item() > expected + 1
    with pytest.raises(ValueError, match="contrastive_loss"):
        contrastive_loss(eye, eye, temperature=t, first=1)


def test_momentum_rises_to_one():
    assert [momentum(fraction, 0.99) for fraction in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1.0], abs=1e-12)


def test_the_key_encoder_follows_once_an_update_and_is_saved():
    method = build().train()
    initial = method.key_student.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        method.student.blocks[0].mlp.fc1.weight.add_(1.0)
    for _ in range(2):  # two micro-batches of one update
        output = method(method.prepare(batch(), Clock(0, 10, 10)), Clock(0, 10, 10))
    torch.testing.assert_close(method.key_student.blocks[0].mlp.fc1.weight, initial + 0.01)
    output.loss.backward()
    without = {name for name, parameter in method.named_parameters() if parameter.grad is None}
    keys = {name for name, _ in method.named_parameters() if name.startswith("key_")}
    assert keys
    assert without == keys | {"student.pos_embed", "student.head.weight", "student.head.bias"}
    assert keys <= method.state_dict().keys()
    assert "key_projector.1.running_mean" in method.state_dict()


def test_the_loss_is_that_of_both_views():
    method, images = build().train(), batch()
    torch.manual_seed(3)
    clock = Clock(0, 10, 10)
    loss = method(method.prepare(images, clock), clock).loss
    torch.manual_seed(3)
    views = method._views(images.images)
    expected = 0
    for ours, other in (views, reversed(views)):
        query = F.normalize(method.predictor(method.projector(method.student.forward_features(ours)[:, 0])))
        key = F.normalize(method.key_projector(method.key_student.forward_features(other)[:, 0]))
        cosines = query @ key.T / 0.2
        expected -= 0.4 * (cosines.diagonal() - cosines.logsumexp(1)).mean()
    torch.testing.assert_close(loss, expected)


def test_everything_decays():
    method, config = build(), resolve("moco", *MICRO_MOCO)
    (group,) = optim.build_optimizer(method, config.optim, 1).param_groups
    assert group["weight_decay"] == 0.1
    assert {id(p) for p in group["params"]} == {id(p) for p in method.parameters() if p.requires_grad}


def test_initialisation():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=48, depth=1, num_heads=3)
    init_encoder(vit)
    for weight, fan in (
        (vit.blocks[0].attn.qkv.weight, 48 + 48),
        (vit.blocks[0].mlp.fc1.weight, 48 + 192),
        (vit.patch_embed.proj.weight, 48 + 48),
    ):
        assert 0.97 < weight.abs().max() / (6 / fan) ** 0.5 <= 1
    assert (vit.patch_embed.proj.bias == 0).all()
    assert not vit.pos_embed.requires_grad


def test_views_are_functions_of_the_seed():
    views, images = TwoViews(MoCoConfig(), INFO), batch(64).images
    torch.manual_seed(5)
    first, second = views(images)
    torch.manual_seed(5)
    again = views(images)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert first.shape == images.shape
    assert not torch.equal(first, second)
    assert not torch.equal(first, views(images)[0])


def test_without_any_operation_a_view_is_the_image():
    plain = MoCoConfig(crop_scale=(1.0, 1.0), flip=0.0, jitter_probability=0.0, blur=(0.0, 0.0), grey=0.0, solarise=0.0)
    pixels = torch.randint(0, 256, (4, 3, 16, 16)).float()
    mean, std = 255 * INFO.mean[0], 255 * INFO.std[0]
    square = TwoViews(plain, INFO)
    import mae_lite_distill.views as module

    before, module._ASPECT = module._ASPECT, (1.0, 1.0)
    try:
        first, second = square((pixels - mean) / std)
    finally:
        module._ASPECT = before
    torch.testing.assert_close(first * std + mean, pixels, atol=1e-3, rtol=0)
    assert torch.equal(first, second)


def test_colours_agree_with_torchvision():
    from torchvision.transforms import functional

    images = torch.randint(0, 256, (4, 3, 9, 9)).float()
    images[0] = images[0, :1]  # grey
    shifts = torch.tensor([0.3, -0.1, 0.05, 0.5])
    for image, shift, found in zip(images, shifts.tolist(), shift_hue(images, shifts), strict=True):
        expected = functional.adjust_hue(image / 255, shift) * 255
        assert (found - expected).abs().max() <= 0.51
    sigmas = torch.tensor([0.1, 0.7, 1.3, 2.0])
    for image, sigma, found in zip(images, sigmas.tolist(), gaussian_blur(images, sigmas), strict=True):
        padded = F.pad(image[None], (6,) * 4, mode="replicate")
        expected = functional.gaussian_blur(padded, [13, 13], sigma)[0, :, 6:-6, 6:-6]
        assert (found - expected).abs().max() <= 0.51
