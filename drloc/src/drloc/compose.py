"""The loss added to the objective of another method, without a second forward pass of the student."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from drloc.localise import DRLoc
from drloc.method import step_generator
from drloc.models.grid import as_grid, pool_grid
from vitutor_core.data.types import Batch, EvalLoader
from vitutor_core.errors import ConfigError
from vitutor_core.train.method import Clock, Method, StepOutput, UpdateRule


class WithDRLoc(Method):
    """Another method whose loss gets ``weight`` times L_drloc of its student's final grid.

    The grid is read where the method's own forward pass makes it; if the student runs several times, the last pass
    counts. Everything else is the other method's.

    Raises `ConfigError` for other grids than the final one in front of the final norm.
    """

    def __init__(self, method: Method, drloc: DRLoc, *, weight: float) -> None:
        super().__init__()
        if drloc.config.grids != "final" or drloc.config.after_norm:
            raise ConfigError("WithDRLoc: it reads the final grid in front of the norm alone; use grids=final")
        self.method = method
        self.drloc = drloc
        self.weight = weight

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        """The other method's student."""
        return self.method.student

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        with _final_grid(self.student) as found:
            output = self.method(batch, clock)
        if not found:
            raise ConfigError(f"WithDRLoc: {type(self.method).__name__} did not run its student")
        config = self.drloc.config
        grid = pool_grid(found[-1], max_side=config.max_side, kind=config.pool)
        loss, error = self.drloc.localise([grid], step_generator(batch.images.device))
        parts = {**output.parts, "drloc_loss": loss, "drloc_cells": error}
        return StepOutput(output.loss + self.weight * loss, parts)

    def inference_model(self) -> nn.Module:
        return self.method.inference_model()

    def on_epoch(self, clock: Clock) -> bool:
        return self.method.on_epoch(clock)

    def update_rule(self) -> UpdateRule | None:
        return self.method.update_rule()

    def diagnostics(self, images: Tensor) -> dict[str, float]:
        return self.method.diagnostics(images)

    def final_metrics(self, evaluation: EvalLoader) -> dict[str, float]:
        return self.method.final_metrics(evaluation)

    def teachers(self) -> dict[str, dict[str, Any]]:
        return self.method.teachers()


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
