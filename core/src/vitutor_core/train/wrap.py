"""A method around another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vitutor_core.data.types import Batch, EvalLoader
from vitutor_core.distill.teacher import FrozenTeacher
from vitutor_core.train.method import Clock, Method, Report, StepOutput, Traits, UpdateRule


class MethodWrapper(Method):
    """Forwards the whole contract to ``method``; subclasses change what they are for, mostly `forward`.

    A term that a subclass adds with `StepOutput.with_term` reaches the update rule of the other method too, with the
    parameters that the subclass adds. Wrap what is built: a wrapper has no `build`.

        class Smaller(MethodWrapper):
            def forward(self, batch, clock):
                output = self.method(batch, clock)
                return output.with_term(1e-4 * norm(self.student))
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        """The other method's student."""
        return self.method.student

    @property
    def traits(self) -> Traits:  # type: ignore[override]
        """The other method's traits."""
        return self.method.traits

    def prepare(self, batch: Batch, clock: Clock) -> Batch:
        return self.method.prepare(batch, clock)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        output: StepOutput = self.method(batch, clock)
        return output

    def inference_model(self) -> nn.Module:
        return self.method.inference_model()

    def on_epoch(self, clock: Clock) -> bool:
        return self.method.on_epoch(clock)

    def update_rule(self, others: Sequence[nn.Parameter] = ()) -> UpdateRule | None:
        known = {id(parameter) for parameter in self.method.parameters()}
        added = [own for own in self.parameters() if own.requires_grad and id(own) not in known]
        return self.method.update_rule((*added, *others))

    def report(self, probe: Tensor | None = None, evaluation: EvalLoader | None = None) -> Report:
        return self.method.report(probe, evaluation)

    def teachers(self) -> dict[str, dict[str, Any]]:
        return self.method.teachers()

    def logit_teachers(self) -> Mapping[str, FrozenTeacher]:
        return self.method.logit_teachers()
