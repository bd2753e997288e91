"""The config of a run: the shared sections, the agent, and the paper's own terms."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from vitutor_core.config import Config, fingerprinted
from vitutor_core.schema import LARGE, Layer, ModelConfig, RunConfig


class ObjectiveConfig(Config):
    """Terms and weights of eq. 6-9, and Algorithm 1; without an agent only the last two fields have an effect."""

    mode: Literal["joint", "shared"] = fingerprinted(
        "joint", help="Weights; joint: agent and ViT have their own; shared: the agent's CONV and MLP are the ViT's"
    )
    w_mutual: float = fingerprinted(
        1.0, help="Weight of L_mutual, cross-entropy and distillation of both (eq. 9)", ge=0, le=LARGE
    )
    w_feat: float = fingerprinted(10.0, help="Weight of L_feat (eq. 9); 0: no feature loss", ge=0, le=LARGE)
    distill: bool = fingerprinted(True, help="Distil each from the other; false: cross-entropy alone")
    temperature: float = fingerprinted(4.0, help="Temperature T of the distillation", gt=0, le=LARGE)
    layers: tuple[Layer, ...] | None = fingerprinted(None, help="Layers with a feature loss, from 0; null: all")
    adapter: Literal["1d", "2d"] = fingerprinted(
        "1d", help="Resampling of tokens; 1d: sequence interpolation; 2d: average pooling (AP-2D)"
    )
    feature_norm: Literal["layer_norm", "l2"] = fingerprinted(
        "layer_norm", help="Normalisation of a token over its channels; l2: without centring"
    )
    decay: Literal["linear", "none"] = fingerprinted("linear", help="Decay of L_feat over the epochs")
    align: bool = fingerprinted(
        True, help="Algorithm 1, in shared mode; false: one backward pass on half the sum, as released"
    )
    granularity: Literal["global", "layer", "tensor"] = fingerprinted(
        "global", help="What Align takes as one vector: all shared tensors, those of a layer, or each"
    )
    decay_all: bool = fingerprinted(False, help="Weight decay on biases, norms, positions and tokens too, as released")
    sam_rho: float | None = fingerprinted(
        None, help="Without an agent: radius of sharpness-aware minimisation; null: off", gt=0, le=LARGE
    )

    @property
    def aligned(self) -> bool:
        """Whether Algorithm 1 computes the gradients, of a run with an agent."""
        return self.mode == "shared" and self.align


class BootstrappingConfig(RunConfig):
    """Everything that a run needs. ``student`` is the ViT, or whatever model is trained without an agent."""

    agent: ModelConfig | None = fingerprinted(None, help="The agent CNN that is trained with the student; null: none")
    method: ObjectiveConfig = fingerprinted(ObjectiveConfig(), help="The paper's objective")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.agent is None:
            return self
        if self.method.sam_rho is not None:
            raise ValueError("method.sam_rho is for runs without an agent: set agent=null")
        if self.method.aligned and self.train.compile:
            raise ValueError("method.align needs two backward passes, which train.compile does not give; set it false")
        return self
