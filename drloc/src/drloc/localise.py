"""The dense relative localisation loss for any timm backbone (DRLoc, arXiv 2106.03746, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from drloc.config import LossConfig
from drloc.losses import ce_loss, l1_loss, reg_loss
from drloc.models.grid import as_grid, block_names, pool_grid
from drloc.models.head import OffsetClassHead, OffsetHead, init_head
from drloc.pairs import Pairs, offsets, pair_tokens, sample_pairs, scale
from vitutor_core.errors import ConfigError
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.named import input_size as built_for


class Localisation(NamedTuple):
    """``loss``: scalar, unweighted, the sum over grids. ``error``: mean absolute error of an axis in cells, detached.

    A constant guess cannot have a smaller error than 66 / 49 cells on a 7 x 7 grid.
    """

    loss: Tensor
    error: Tensor


class Output(NamedTuple):
    """One forward pass: ``logits`` (B, K) of the backbone, and what `Localisation` has."""

    logits: Tensor
    loss: Tensor
    error: Tensor


class DRLoc(nn.Module):
    """Heads that predict, from two tokens of a grid, how far apart they are; the model itself is not part of it.

    Args:
        model: a timm model. It is run once on an empty image, in evaluation mode, to learn the shapes of its grids.
        config: what is predicted and from which grids; by default the paper's loss on the final grid.
        input_size: channels, height and width of the images; null: what the model was built for.

    Raises:
        ConfigError: the model has no such grid, or one of a single cell.

    """

    def __init__(
        self, model: nn.Module, config: LossConfig | None = None, *, input_size: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__()
        self.config = config or LossConfig()
        grids = self.config.grids
        self._positions: tuple[int | str, ...] = (-1,)
        if grids != "final":
            self._positions = block_names(model) if grids == "blocks" else tuple(grids)
        with evaluation_mode(model), torch.no_grad():
            images = next(model.parameters()).new_zeros(1, *(input_size or built_for(model)))
            shapes = [tuple(grid.shape[1:]) for grid in self.grids(model, images)[1]]
        for position, (_, height, width) in zip(self._positions, shapes, strict=True):
            if min(height, width) < 2:
                raise ConfigError(f"drloc: the grid {position} is {height} x {width}: no offsets to predict")
        self._sides = [(height, width) for _, height, width in shapes]
        self.heads = nn.ModuleList(self._head(*shape) for shape in shapes)

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        pairs: Sequence[Pairs] | None = None,
    ) -> Output:
        """Run ``model`` once on images (B, C, H, W) and return its logits with the loss.

        ``generator`` draws the pairs, on the images' device; None: torch's own. ``pairs``: what `draw` gave before.
        """
        logits, grids = self.grids(model, images)
        return Output(logits, *self.localise(grids, generator, pairs=pairs))

    def draw(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> tuple[Pairs, ...]:
        """Draw the pairs of ``batch`` images of the size that the heads were made for, for each head."""
        m = self.config.pairs
        return tuple(sample_pairs(batch, side, m, device=device, generator=generator) for side in self._sides)

    def grids(self, model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run ``model`` once on images (B, C, H, W); return logits (B, K) and pooled grids (B, d, h, w)."""
        config = self.config
        outputs = read_intermediates(model, images, features=() if config.after_norm else self._positions)
        if config.after_norm:
            found = [as_grid(model, outputs.tokens)]
        else:
            # timm gives the features that it lists as (B, d, h, w) whatever the model's own layout.
            listed = {-1, *(entry["module"] for entry in model.feature_info)}
            found = [
                feature if position in listed else as_grid(model, feature)
                for position, feature in zip(self._positions, outputs.features, strict=True)
            ]
        return outputs.logits, [pool_grid(grid, max_side=config.max_side, kind=config.pool) for grid in found]

    def localise(
        self,
        grids: Sequence[Tensor],
        generator: torch.Generator | None = None,
        *,
        pairs: Sequence[Pairs] | None = None,
    ) -> Localisation:
        """Return the loss on grids (B, d, H, W), one per head, that are already at hand."""
        if pairs is None:
            m = self.config.pairs
            sides = [(len(grid), (grid.shape[2], grid.shape[3]), grid.device) for grid in grids]
            pairs = [sample_pairs(b, side, m, device=device, generator=generator) for b, side, device in sides]
        found = [self._one(head, grid, own) for head, grid, own in zip(self.heads, grids, pairs, strict=True)]
        losses, errors = zip(*found, strict=True)
        return Localisation(torch.stack(losses).sum(), torch.stack(errors).mean())

    def _one(self, head: nn.Module, grid: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        config, side = self.config, (grid.shape[2], grid.shape[3])
        found = head(pair_tokens(grid, pairs))
        cells = offsets(pairs, signed=config.signed)
        if config.variant == "l1":
            units = scale(side, unit=config.unit, signed=config.signed)
            # Under autocast the head computes in half precision, the loss in single.
            predicted, targets = found.float(), units.targets(cells)
            error = units.in_cells(predicted.detach() - targets).abs().mean()
            return l1_loss(predicted, targets, reduction=config.reduction), error
        logits = found[0].float(), found[1].float()
        # The released code averages over the axes in its l1 mode alone; the other two sum over them.
        reduction = "mean" if config.reduction == "mean_axes" else config.reduction
        # Class ids are the released code's targets in cells: signed offsets begin at 0.
        classes = scale(side, unit="cells", signed=config.signed).targets(cells).long()
        error = (_expected_class(logits) - classes).abs().mean()
        if config.variant == "ce":
            return ce_loss(logits, classes, reduction=reduction), error
        return reg_loss(logits, classes, alpha=config.reg_alpha, reduction=reduction), error

    def _head(self, dim: int, height: int, width: int) -> nn.Module:
        config = self.config
        head: nn.Module
        if config.variant == "l1":
            head = OffsetHead(dim, hidden=config.hidden)
        else:
            classes = (2 * height - 1, 2 * width - 1) if config.signed else (height, width)
            head = OffsetClassHead(dim, classes, hidden=config.hidden)
        if config.head_init == "trunc_normal":
            init_head(head)
        return head


def _expected_class(logits: tuple[Tensor, Tensor]) -> Tensor:
    means = [
        (axis.detach().softmax(dim=-1) * torch.arange(axis.shape[-1], device=axis.device)).sum(dim=-1)
        for axis in logits
    ]
    return torch.stack(means, dim=-1)
