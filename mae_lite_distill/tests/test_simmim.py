"""SimMIM: loss, masks, what the encoder sees."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mae_lite_distill.losses import masked_l1_loss, patchify
from mae_lite_distill.methods.simmim import SimMIM
from mae_lite_distill.tests.mae_samples import INFO, resolve
from vitutor_core.data.types import Batch
from vitutor_core.errors import ConfigError
from vitutor_core.train.method import Clock


def build(*settings):
    torch.manual_seed(0)
    return SimMIM.build(resolve("simmim", *settings), INFO)


def images(number=6):
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_loss_by_hand():
    predictions = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [5.0, -1.0]], [[0.0, 0.0], [3.0, 3.0], [0.0, 0.0]]])
    patches = torch.tensor([[[0.0, 4.0], [9.0, 9.0], [5.0, 1.0]], [[9.0, 9.0], [4.0, 1.0], [9.0, 9.0]]])
    masked = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    # (1 + 2), (0 + 2) and (1 + 2) over three patches of two values
    assert masked_l1_loss(predictions, patches, masked).item() == pytest.approx(8 / 6)
    with pytest.raises(ValueError, match="masked_l1_loss"):
        masked_l1_loss(predictions, patches, masked[:1])


def test_the_loss_over_pixels_is_that_of_the_released_code():
    """There a sum over the masked pixels of the images, divided by their number and by the channels."""
    x, y, masked = images(), torch.randn(6, 3, 16, 16), (torch.rand(6, 16) < 0.6).float()
    pixels = masked.view(6, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = (F.l1_loss(x, y, reduction="none") * pixels).sum() / pixels.sum() / 3
    torch.testing.assert_close(masked_l1_loss(patchify(x, 4), patchify(y, 4), masked), expected)


@pytest.mark.parametrize(("side", "count"), [(4, 10), (8, 3)])  # 0.6 of 16 and of 4 squares, rounded up
def test_squares_are_masked(side, count):
    masked = build(f"simmim.mask_patch={side}")._mask(images(64)).view(64, 4, 4)
    per_side = side // 4
    squares = masked[:, ::per_side, ::per_side]
    assert (squares.sum((1, 2)) == count).all()
    assert torch.equal(squares.repeat_interleave(per_side, 1).repeat_interleave(per_side, 2), masked)
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    # Every square is masked now and then.
    assert (masked.mean(0) - count / squares[0].numel()).abs().max() < 0.3


def test_the_encoder_does_not_see_what_is_masked():
    method, x = build().eval(), images(2)
    masked = torch.zeros(2, 16)
    masked[:, [1, 6]] = 1
    before = method.reconstruct(x, masked)
    assert before.shape == (2, 16, 48)
    hidden = x.clone()
    hidden[:, :, :4, 4:8] = 7  # patch 1
    torch.testing.assert_close(method.reconstruct(hidden, masked), before)
    assert not torch.equal(method.reconstruct(hidden, torch.zeros(2, 16)), before)
    # Without masks it is the encoder as it is published.
    plain = method.predict(method.student.forward_features(x)[:, 1:])
    torch.testing.assert_close(method.reconstruct(x, torch.zeros(2, 16)), plain)


def test_everything_but_the_head_is_trained():
    method = build().train()
    output = method(Batch(images(), torch.zeros(6).long(), torch.arange(6)), Clock(0, 10, 10))
    output.loss.backward()
    without = {name for name, parameter in method.named_parameters() if parameter.grad is None}
    assert without == {"student.head.weight", "student.head.bias"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("simmim.mask_patch=6", "simmim.mask_patch: 6; set a multiple of the patch size, 4, that divides 16"),
        ("simmim.mask_patch=12", "simmim.mask_patch: 12; set a multiple"),
        ("simmim.mask_ratio=0.99", "simmim.mask_ratio: leaves none of 16 squares"),
    ],
)
def test_masks_that_do_not_fit(setting, message):
    with pytest.raises(ConfigError, match=message):
        build(setting)
