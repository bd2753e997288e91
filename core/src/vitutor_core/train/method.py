"""The contract between a paper and the training loop.

A method is an ``nn.Module`` that owns the student and the projectors, and whose ``forward`` is the whole objective
of one step. So DistributedDataParallel synchronises it, ``torch.compile`` captures it, and the loop knows no paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self

from torch import Tensor, nn

from vitutor_core.data.types import Batch, DataInfo, EvalLoader
from vitutor_core.distill.teacher import FrozenTeacher

_NONE: Mapping[str, Tensor] = MappingProxyType({})


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
    """What one step gives.

    Attributes:
        loss: the scalar to minimise.
        losses: the objectives that the method's update rule differentiates one by one in place of ``loss``, with their
            graphs; the student's comes first. Empty where there is no such rule.
        parts: unweighted terms by name, for the log alone: the loop detaches them.

    """

    loss: Tensor
    losses: Mapping[str, Tensor] = _NONE
    parts: Mapping[str, Tensor] = _NONE

    def with_term(self, term: Tensor, **parts: Tensor) -> StepOutput:
        """Add a term of the student to the objective, and ``parts`` to the log."""
        losses = {name: loss + term if not index else loss for index, (name, loss) in enumerate(self.losses.items())}
        return StepOutput(self.loss + term, losses, {**self.parts, **parts})


@dataclass(frozen=True)
class Traits:
    """What kind of method it is.

    Attributes:
        classifies: False where the head of `Method.inference_model` is not trained, so that it has no accuracy.
        decays_all: True where weight decay is for every parameter, biases and norms included, without layer-wise decay.
        measures: True where `Method.report` has figures of its own over the whole evaluation set.

    """

    classifies: bool = True
    decays_all: bool = False
    measures: bool = False


@dataclass(frozen=True)
class Report:
    """What a method shows beside losses and accuracy.

    Attributes:
        metrics: figures by name.
        pictures: (3, H, W) in [0, 1], by name.
        events: after how many epochs something happens, by what happens; figures mark them.

    """

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)


class UpdateRule(Protocol):
    """An unusual way to compute gradients, such as projected gradients or sharpness-aware steps."""

    def __call__(
        self, forward: Callable[[], StepOutput], *, scale: float, no_sync: Callable[[], AbstractContextManager[Any]]
    ) -> StepOutput:
        """Run ``forward`` as often as needed and add ``scale`` times the gradient to each ``.grad``.

        A backward pass averages gradients over processes, except under ``no_sync()``, which must then be entered
        around forward and backward. The loop enters it for all but the last micro-batch of an update.
        """


class Method(nn.Module, ABC):
    """Base of all methods. Subclasses set ``self.student`` and implement `build` and `forward`.

    Frozen teachers are `vitutor_core.distill.FrozenTeacher` objects, which are not modules: they are neither trained,
    nor saved, nor wrapped. A new member of this class must be forwarded by `vitutor_core.train.wrap.MethodWrapper`.

        class Plain(Method):
            def forward(self, batch, clock):
                return StepOutput(F.cross_entropy(self.student(batch.images), batch.targets))
    """

    student: nn.Module
    traits: Traits = Traits()

    @classmethod
    def build(cls, config: Any, info: DataInfo) -> Self:
        """Build the method for the data at hand; raises `ConfigError` where config and data do not fit."""
        raise NotImplementedError

    def prepare(self, batch: Batch, clock: Clock) -> Batch:
        """Return the batch with what `forward` finds in ``batch.drawn``.

        Called once for each micro-batch, in front of all its forward passes and outside of what torch.compile captures.
        Here belongs what has no place in a graph: numbers drawn by a generator of one's own or on the host, and what
        is done once an update. Torch's generator has been seeded for the micro-batch.
        """
        return batch

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Return the whole objective of one step, for a batch that `prepare` has seen.

        It is captured as one graph: no value of a tensor is read on the host, and nothing is made there.
        """

    def inference_model(self) -> nn.Module:
        """Return the module to evaluate and export: free of teachers and projectors."""
        return self.student

    def on_epoch(self, clock: Clock) -> bool:
        """Drop or freeze the parts that are not trained in ``clock.epoch``; return True if parameters were removed.

        Called at the start of every epoch and before a checkpoint of that epoch is loaded, so it must depend on
        the clock alone and may be called repeatedly.
        """
        return False

    def update_rule(self, others: Sequence[nn.Parameter] = ()) -> UpdateRule | None:
        """Return the method's own way to compute gradients, or None for one backward pass on the loss.

        ``others`` are trained beside the method's parameters, by a term that a wrapper adds to the student's
        objective. A rule must give them gradients too.
        """
        return None

    def report(self, probe: Tensor | None = None, evaluation: EvalLoader | None = None) -> Report:
        """Return what the method has to show.

        Called after each evaluation with ``probe``, the same few evaluation images (B, C, H, W) every time; by every
        process after the last epoch with ``evaluation``, its share of the whole set, where `Traits.measures` says so;
        and with neither for the events.
        """
        return Report()

    def teachers(self) -> dict[str, dict[str, Any]]:
        """Return `FrozenTeacher.facts` by role; the SHA-256 of each teacher is part of a run's identity."""
        return {}

    def logit_teachers(self) -> Mapping[str, FrozenTeacher]:
        """Return, by role, the teachers whose logits of the batch's images `forward` reads.

        Where ``batch.taught`` has a role, forward takes the logits from there instead of asking the teacher.
        """
        return {}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that must not decay: those that the method's parts name themselves."""
        names: set[str] = set()
        for prefix, child in self.named_children():
            own: Any = getattr(child, "no_weight_decay", None)
            if callable(own):
                names |= {f"{prefix}.{name}" for name in own()}
        return names
