"""Golden values, and a small pair of ViT and agent that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bootstrapping_vit.cli import PAPER
from bootstrapping_vit.config import BootstrappingConfig
from bootstrapping_vit.method import BootstrappingViT
from vitutor_core.data.types import Batch, DataInfo

GOLDEN = Path(__file__).parent / "golden"
MICRO = (
    "student.kwargs.embed_dim=18",
    "student.kwargs.depth=3",
    "student.kwargs.proj_drop_rate=0.0",
    "student.kwargs.attn_drop_rate=0.0",
    "agent.kwargs.embed_dim=18",
    "agent.kwargs.depth=3",
    "agent.kwargs.down=[0]",
    "agent.kwargs.stem_width=8",
    "agent.kwargs.mlp_drop_rate=0.0",
    "runtime.device=cpu",
    "runtime.threads=1",
)
"""A pair of 18 channels and 9 heads without dropout, so that a step can be computed twice."""


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def golden(request: pytest.FixtureRequest) -> Callable[..., Case]:
    """Load a case in double, then in single precision."""
    return lambda name, **tolerances: Case(name, request.param, **tolerances)


class Case(dict[str, Tensor]):
    """The tensors of a golden file in one precision, and the comparison with its tolerance."""

    def __init__(self, name: str, dtype: torch.dtype, *, float64: float = 1e-9, float32: float = 1e-4) -> None:
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        super().__init__({k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()})
        self.dtype = dtype
        self.tolerance = float64 if dtype == torch.float64 else float32

    def check(self, got: Tensor, name: str, part: tuple[slice, ...] = ()) -> None:
        """Assert that ``got`` agrees with the tensor ``name``, or a part of it."""
        expected = self[name][part]
        assert got.dtype == expected.dtype, name
        got = got.detach().reshape(expected.shape)
        size = expected.abs().max().item()
        # Where the exact value is zero (a bias in front of a BatchNorm), the tolerance is absolute.
        bound = self.tolerance * (size if size > 1e-15 else 1.0)
        assert (got - expected).abs().max().item() <= bound, name

    def leaf(self, name: str) -> Tensor:
        """Return a copy that collects a gradient."""
        return self[name].clone().requires_grad_()


@pytest.fixture(scope="session")
def config() -> Callable[..., BootstrappingConfig]:
    """Configs of the small pair, from a row of the digits recipe."""

    def resolved(*settings: str, row: str | None = None) -> BootstrappingConfig:
        return PAPER.resolve("digits", None, row, (*(() if row else MICRO), *settings))

    return resolved


@pytest.fixture(scope="session")
def info() -> DataInfo:
    """The facts of a data set like the digits."""
    return DataInfo("digits", tuple("0123456789"), 16, 3, (0.5,) * 3, (0.5,) * 3, 900, 896, "test")


@pytest.fixture
def pair(config: Callable[..., BootstrappingConfig], info: DataInfo) -> Callable[..., BootstrappingViT]:
    """The small pair in training mode, moved a little away from its initialisation."""

    def build(*settings: str) -> BootstrappingViT:
        torch.manual_seed(0)
        method = BootstrappingViT.build(config(*settings), info)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return method.train()

    return build


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Eight images of noise with labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    return Batch(images, torch.randint(10, (8,), generator=generator), torch.arange(8))
