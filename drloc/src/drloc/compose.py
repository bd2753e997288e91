"""The loss added to the objective of another method, without a second forward pass of the student."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from drloc.localise import DRLoc
from drloc.method import PAIRS, with_pairs
from drloc.models.grid import as_grid, pool_grid
from vitutor_core.data.types import Batch
from vitutor_core.errors import ConfigError
from vitutor_core.train.method import Clock, Method, StepOutput
from vitutor_core.train.wrap import MethodWrapper


class WithDRLoc(MethodWrapper):
    """Another method whose loss gets ``weight`` times L_drloc of its student's final grid.

    The grid is read where the method's own forward pass makes it; if the student runs several times, the last pass
    counts. Everything else is the other method's; its update rule sees the loss as a term of its student's.

    Raises `ConfigError` for other grids than the final one in front of the final norm.
    """

    def __init__(self, method: Method, drloc: DRLoc, *, weight: float) -> None:
        super().__init__(method)
        if drloc.config.grids != "final" or drloc.config.after_norm:
            raise ConfigError("WithDRLoc: it reads the final grid in front of the norm alone; use grids=final")
        self.drloc = drloc
        self.weight = weight

    def prepare(self, batch: Batch, clock: Clock) -> Batch:
        return with_pairs(super().prepare(batch, clock), self.drloc)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        with _final_grid(self.student) as found:
            output = super().forward(batch, clock)
        if not found:
            raise ConfigError(f"WithDRLoc: {type(self.method).__name__} did not run its student")
        config = self.drloc.config
        grid = pool_grid(found[-1], max_side=config.max_side, kind=config.pool)
        loss, error = self.drloc.localise([grid], pairs=batch.drawn[PAIRS])
        return output.with_term(self.weight * loss, drloc_loss=loss, drloc_cells=error)


@contextmanager
def _final_grid(model: Any) -> Iterator[list[Tensor]]:
    """Collect the output of the module that makes the final grid, as (B, d, H, W), in every pass inside the block."""
    found: list[Tensor] = []
    module: nn.Module = model.get_submodule(model.feature_info[-1]["module"])

    def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        # A copy, because the next module may work in place.
        found.append(as_grid(model, output.clone()))

    handle = module.register_forward_hook(record)
    try:
        yield found
    finally:
        handle.remove()
