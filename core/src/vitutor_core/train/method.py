"""The contract between a paper and the training loop.

A method is an ``nn.Module`` that owns the student and the projectors, and whose ``forward`` is the whole objective
of one step. So DistributedDataParallel synchronises it, ``torch.compile`` captures it, and the loop knows no paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from vitutor_core.data.types import Batch, EvalLoader


@dataclass(frozen=True)
class Clock:
    """Where a run is. Schedules are pure functions of it, so that a resumed run cannot differ.

    ``step`` counts updates from 0; ``epoch`` counts from 0.
    """

    step: int
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / self.total_steps


class StepOutput(NamedTuple):
    """``loss`` is the scalar to minimise; ``parts`` are its unweighted terms by name, for the log."""

    loss: Tensor
    parts: dict[str, Tensor]


class UpdateRule(Protocol):
    """An unusual way to compute gradients, such as projected gradients or sharpness-aware steps."""

    def __call__(
        self, forward: Callable[[], StepOutput], *, scale: float, no_sync: Callable[[], AbstractContextManager[Any]]
    ) -> StepOutput:
        """Run ``forward`` as often as needed and add ``scale`` times the gradient to each ``.grad``.

        A backward pass averages gradients over processes, except under ``no_sync()``, which must then be entered
        around forward and backward. The loop enters it for all but the last micro-batch of an update.
        """
        ...


class Method(nn.Module, ABC):
    """Base of all methods. Subclasses set ``self.student`` and implement ``forward``.

    Frozen teachers are `vitutor_core.distill.FrozenTeacher` objects, which are no modules: they are neither trained,
    nor saved, nor wrapped.
    """

    student: nn.Module
    classifies: ClassVar[bool] = True
    """False where the head of `inference_model` is not trained: the loop then takes no accuracy of it."""
    decays_all: bool = False
    """True where weight decay is for every parameter, biases and norms included; without layer-wise decay."""

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Return the whole objective of one step."""

    def inference_model(self) -> nn.Module:
        """Return the module to evaluate and export: free of teachers and projectors."""
        return self.student

    def on_epoch(self, clock: Clock) -> bool:
        """Bring the module into the shape it has in ``clock.epoch``; return True if parameters were removed.

        Called at the start of every epoch and before a checkpoint of that epoch is loaded, so it must depend on
        the clock alone and may be called repeatedly.
        """
        return False

    def update_rule(self) -> UpdateRule | None:
        """Return the method's own way to compute gradients, or None for one backward pass."""
        return None

    def diagnostics(self, images: Tensor) -> dict[str, float]:
        """Return figures to log after each evaluation, from a fixed batch of evaluation images."""
        return {}

    def pictures(self, images: Tensor) -> dict[str, Tensor]:
        """Return pictures to keep after each evaluation, (3, H, W) in [0, 1], by name; images as for `diagnostics`."""
        return {}

    def final_metrics(self, evaluation: EvalLoader) -> dict[str, float]:
        """Return the method's own figures over the whole evaluation set; called once, after the last epoch.

        Every process calls it, with its share of the images.
        """
        return {}

    def teachers(self) -> dict[str, dict[str, Any]]:
        """Return `FrozenTeacher.facts` by role; the SHA-256 of each teacher is part of a run's identity."""
        return {}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that must not decay: those that the parts of the method name themselves."""
        names: set[str] = set()
        for prefix, child in self.named_children():
            own: Any = getattr(child, "no_weight_decay", None)
            if callable(own):
                names |= {f"{prefix}.{name}" for name in own()}
        return names
