"""Bootstrapping ViTs (Zhang et al., CVPR 2022, arXiv 2112.03552), section 3: a ViT learns together with its agent CNN.

    L_V = w_mutual (CE_V + KD_V) + w_feat decay L_feat,   L_A = w_mutual (CE_A + KD_A)

Joint: one backward pass on L_V + L_A, whose graphs share nothing. Shared: Algorithm 1, or one pass on their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bootstrapping_vit.align import AlignedUpdate
from bootstrapping_vit.config import BootstrappingConfig, ObjectiveConfig
from bootstrapping_vit.losses import agent_loss, feature_decay, feature_loss, mutual_term, vit_loss
from bootstrapping_vit.models.pair import share_weights, shared_tensors
from vitutor_core.data.types import Batch, DataInfo, EvalLoader
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.accuracy import evaluate
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.weights import create_student
from vitutor_core.train.method import Clock, Method, Report, StepOutput, Traits, UpdateRule
from vitutor_core.train.sam import SharpnessAware


class BootstrappingViT(Method):
    """The ViT and its agent; without an agent plain supervised training, the baselines of the tables."""

    def __init__(self, student: nn.Module, terms: ObjectiveConfig, *, agent: Any = None, epochs: int = 1) -> None:
        super().__init__()
        self.student: Any = student
        self.agent = agent
        self._terms = terms
        self._epochs = epochs
        self._aligned = agent is not None and terms.aligned
        self.traits = Traits(decays_all=terms.decay_all, measures=agent is not None)
        self._layers = _layers(student, terms) if agent is not None else ()

    @classmethod
    def build(cls, config: BootstrappingConfig, info: DataInfo) -> Self:
        """Build ViT and agent for the data at hand; raises `ConfigError` where they do not fit together."""
        student = create_student(config.student, info)
        epochs = config.train.schedule_epochs or config.train.epochs
        if config.agent is None:
            return cls(student, config.method, epochs=epochs)
        return cls.paired(student, create_student(config.agent, info), config.method, info, epochs=epochs)

    @classmethod
    def paired(cls, student: Any, agent: Any, terms: ObjectiveConfig, info: DataInfo, *, epochs: int) -> Self:
        """Put a ViT and an agent together; raises `ConfigError` where they do not fit."""
        if terms.mode == "shared":
            try:
                share_weights(agent, student)
            except (ValueError, AttributeError) as error:
                raise ConfigError(f"method.mode=shared: {error}") from None
        method = cls(student, terms, agent=agent, epochs=epochs)
        method._check_features(info)
        return method

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        if self.agent is None:
            return StepOutput(F.cross_entropy(self.student(batch.images), batch.targets))
        terms = self._terms
        vit = read_intermediates(self.student, batch.images, features=self._layers)
        agent = read_intermediates(self.agent, batch.images, features=self._layers)
        of_vit, of_agent = (
            mutual_term(own.logits, other.logits, batch.targets, temperature=terms.temperature)
            for own, other in ((vit, agent), (agent, vit))
        )
        features = [
            feature_loss(ours, theirs, adapter=terms.adapter, norm=terms.feature_norm)
            for ours, theirs in zip(vit.features, agent.features, strict=True)
        ]
        decay = feature_decay(clock.epoch, self._epochs, terms.decay)
        options: dict[str, Any] = {"w_mutual": terms.w_mutual, "distill": terms.distill}
        losses = {
            "vit_loss": vit_loss(of_vit, features, w_feat=terms.w_feat, decay=decay, **options),
            "agent_loss": agent_loss(of_agent, **options),
        }
        parts = {
            **losses,
            "vit_label_loss": of_vit.label,
            "vit_distill_loss": of_vit.distill,
            "agent_label_loss": of_agent.label,
            "agent_distill_loss": of_agent.distill,
        }
        if features:
            parts["feature_loss"] = torch.stack(features).sum()
        loss = losses["vit_loss"] + losses["agent_loss"]
        if terms.mode == "shared":
            loss = loss / 2
        return StepOutput(loss, losses, parts)

    def update_rule(self, others: Sequence[nn.Parameter] = ()) -> UpdateRule | None:
        if self._terms.sam_rho is not None:
            return SharpnessAware([*self.student.parameters(), *others], rho=self._terms.sam_rho)
        if self._aligned:
            shared, granularity = shared_tensors(self.student), self._terms.granularity
            return AlignedUpdate(self.student, self.agent, shared, granularity, others)
        return None

    def report(self, probe: Tensor | None = None, evaluation: EvalLoader | None = None) -> Report:
        """Return the agent's accuracy in percent, ``agent_top1`` (Table 1's rows "Agent" of "Ours")."""
        if self.agent is None or evaluation is None:
            return Report()
        device = next(self.agent.parameters()).device
        found = evaluate(self.agent, evaluation, num_classes=self.agent.num_classes, device=device)
        return Report({"agent_top1": found["top1"]})

    def _check_features(self, info: DataInfo) -> None:
        images = torch.zeros(1, info.channels, info.image_size, info.image_size)
        with evaluation_mode(self), torch.no_grad():
            maps = [
                read_intermediates(model, images, features=self._layers).features
                for model in (self.student, self.agent)
            ]
        try:
            for ours, theirs in zip(*maps, strict=True):
                feature_loss(ours, theirs, adapter=self._terms.adapter)
        except ValueError as error:
            raise ConfigError(f"agent: {error}; change agent.kwargs, or set method.w_feat=0") from None


def _layers(student: Any, terms: ObjectiveConfig) -> tuple[int, ...]:
    """Return the layers with a feature loss."""
    if terms.w_feat == 0:
        return ()
    depth = len(getattr(student, "blocks", ()))
    if depth == 0:
        name = getattr(student, "pretrained_cfg", {}).get("architecture", type(student).__name__)
        raise ConfigError(f"method.w_feat: {name} has no blocks to supervise; use a vision transformer")
    layers = tuple(range(depth)) if terms.layers is None else terms.layers
    if any(not 0 <= layer < depth for layer in layers):
        raise ConfigError(f"method.layers: {list(layers)} of a student with layers 0 to {depth - 1}")
    return layers
