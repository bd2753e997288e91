"""The config of a DRLoc run: the shared sections, the loss, and its weight."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from vitutor_core.config import Config, fingerprinted
from vitutor_core.schema import EPOCHS, LARGE, RunConfig


class LossConfig(Config):
    """What is predicted, from which grids, and how it is averaged. The defaults are the paper's definition.

    docs/fidelity/drloc.md says where the released code differs.
    """

    pairs: int = fingerprinted(64, help="Number m of pairs of tokens per image and grid", ge=1, le=2**16)
    variant: Literal["l1", "ce", "reg"] = fingerprinted(
        "l1",
        help="Loss; l1: regress the offset; ce: classify it; reg: mean and variance of a distribution over offsets",
    )
    signed: bool = fingerprinted(False, help="Signed offsets, first minus second, instead of distances")
    unit: Literal["k", "k-1", "cells"] = fingerprinted(
        "k", help="Unit of the targets of l1; k: the paper's; cells: the released code's; k-1: its unused option"
    )
    reduction: Literal["mean", "sum", "mean_axes"] = fingerprinted(
        "mean",
        help="Over images mean or sum, over pairs mean, over axes sum; mean_axes: l1 takes their mean, too",
    )
    reg_alpha: float = fingerprinted(0.002, help="Weight of log sigma in reg", ge=0, le=LARGE)
    grids: Literal["final", "blocks"] | tuple[str, ...] = fingerprinted(
        "final", help="The final grid; the grid of every block, each with a head of its own; or modules by name"
    )
    after_norm: bool = fingerprinted(False, help="Take the final grid behind the backbone's final norm")
    max_side: int | None = fingerprinted(
        7, help="Pool grids with a longer side until they fit; null: never", ge=2, le=1024
    )
    pool: Literal["2x2", "3x3"] = fingerprinted(
        "2x2", help="Average pooling of stride 2: the paper's, the released code's"
    )
    hidden: int = fingerprinted(512, help="Width of the head's hidden layers", ge=1, le=2**16)
    head_init: Literal["trunc_normal", "default"] = fingerprinted(
        "trunc_normal", help="Initial weights of the head: of standard deviation 0.02, or torch's"
    )


class ObjectiveConfig(LossConfig):
    """The loss, and its weight beside cross-entropy."""

    weight: float = fingerprinted(
        0.5, help="Weight lambda; 0: plain training without a head, the baseline", ge=0, le=LARGE
    )
    weight_schedule: Literal["constant", "ramp"] = fingerprinted(
        "constant",
        help="Course of lambda; constant: the paper's; ramp: up over warmup_epochs, then down to 0, as in the "
        "released code",
    )
    warmup_epochs: int = fingerprinted(20, help="Epochs until the ramp reaches lambda", ge=1, le=EPOCHS)


class DRLocConfig(RunConfig):
    """Everything that a DRLoc run needs."""

    method: ObjectiveConfig = fingerprinted(ObjectiveConfig(), help="The paper's objective")

    @model_validator(mode="after")
    def _grids_and_norm(self) -> Self:
        if self.method.after_norm and self.method.grids != "final":
            raise ValueError("method.after_norm is of the final grid alone: set method.grids=final")
        return self
