"""Bootstrapping ViTs in a training loop of one's own."""

from __future__ import annotations

from typing import Any

import timm

from bootstrapping_vit import models as _models  # noqa: F401  # registers the agents with timm
from bootstrapping_vit.config import ObjectiveConfig
from bootstrapping_vit.method import BootstrappingViT
from vitutor_core.errors import ConfigError
from vitutor_core.train.objective import Objective, describe


class Joint(Objective):
    """A ViT and the agent CNN that learns with it: the objectives of both (eq. 9) in one backward pass.

    Args:
        student: a vision transformer of timm.
        agent: its agent; by default one of the ViT's depth, width and heads, with its patch embedding as stem.
        terms: the paper's objective, without Algorithm 1, which takes two backward passes.
        epochs: over which the feature loss decays; pass ``epoch`` to each step.

    Raises:
        ConfigError: the two do not fit, or ``terms`` asks for Algorithm 1.

    """

    def __init__(
        self, student: Any, agent: Any = None, terms: ObjectiveConfig | None = None, *, epochs: int = 1
    ) -> None:
        terms = terms or ObjectiveConfig()
        if terms.aligned:
            raise ConfigError("Joint: Algorithm 1 is no single backward pass; set align=False, or use the command")
        info = describe(student)
        if agent is None:
            agent = timm.create_model(
                "bootstrapping_agent_s",
                num_classes=student.num_classes,
                in_chans=info.channels,
                patch_size=student.patch_embed.patch_size[0],
                embed_dim=student.embed_dim,
                depth=len(student.blocks),
                num_heads=student.blocks[0].attn.num_heads,
                stem="base",
                down=(),
            )
        super().__init__(BootstrappingViT.paired(student, agent, terms, info, epochs=epochs), epochs=epochs)
