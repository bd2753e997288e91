"""What the tests of the generation share: the networks of the golden values, and a small set of images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dearkd.generation.config import GenerationConfig
from dearkd.generation.generate import Generation

GOLDEN = Path(__file__).parent / "golden"


class ConvTeacher(nn.Module):
    """The teacher of the golden values: three convolutions with batch norms, global pooling, a linear classifier."""

    feature_info = ()

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 7, 1, bias=False), nn.BatchNorm2d(7)
        self.fc = nn.Linear(7, 5)

    def forward_features(self, images: Tensor) -> Tensor:
        features = self.bn1(self.conv1(images)).relu()
        features = self.bn2(self.conv2(features)).relu()
        return self.bn3(self.conv3(features)).relu()

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class PoolStudent(nn.Module):
    """The student of the golden values: adaptive pooling to 2x3 and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(18, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(nn.functional.adaptive_avg_pool2d(images, (2, 3)).flatten(1))


def load_case(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def with_weights(model: nn.Module, case: dict[str, Tensor], role: str, dtype: torch.dtype) -> Any:
    """Give a model the weights of a case and freeze it, in evaluation mode."""
    prefix = f"weight.{role}."
    weights = {key.removeprefix(prefix): value for key, value in case.items() if key.startswith(prefix)}
    missing, unexpected = model.to(dtype).load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval().requires_grad_(False)


def micro(teacher: Path | str, **changes: Any) -> GenerationConfig:
    """Two batches of two images of each of three classes, two phases of a few iterations."""
    values: dict[str, Any] = {
        "teacher": {"weights": str(teacher)},
        "num_images": 12,
        "classes_per_batch": 3,
        "images_per_class": 2,
        "grey": True,
        "phases": [{"iterations": 6, "lr": 0.2, "shrink": 2, "warmup": 2}, {"iterations": 4, "lr": 0.05, "warmup": 1}],
        "jitter": 2,
        "terms": {"total_variation": 1e-3, "bn": 1.0, "easiest_positive": 5.0, "triplet": 0.5},
        "runtime": {"device": "cpu", "threads": 1, "log_every": 2},
    }
    return GenerationConfig.from_mapping(values | changes, where="test")


def made(teacher: Path, folder: Path, shards: Any = ((1, 1),), **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Generate a set shard by shard and publish it."""
    for shard in shards:
        generation = Generation(micro(teacher, **changes), "test", folder / "work")
        generation.run(generation.missing(shard))
    record = generation.publish(folder / "out", {"scale": "digits", "command": "test"})
    return folder / "out", record


def contents(folder: Path) -> dict[str, str]:
    """Map the files of a set to their hashes; its record, which names the command, is left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "generation.json"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
