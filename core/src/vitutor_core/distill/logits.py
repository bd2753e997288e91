"""Teachers' logits on disk: one safetensors file per epoch of one stream of batches."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vitutor_core.errors import ResourceError
from vitutor_core.files import atomic
from vitutor_core.models.weights import weights_sha256
from vitutor_core.schema import CacheConfig


class LogitStore:
    """The stored logits of one teacher over one stream of batches: a safetensors file per epoch.

    ``key`` is all that decides the logits; its hash names the folder below ``cache.folder``.
    """

    def __init__(self, config: CacheConfig, key: Mapping[str, Any], num_classes: int) -> None:
        text = json.dumps(key, sort_keys=True, indent=1)
        self._root = Path(config.folder or ".")
        self._folder = self._root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._key, self.config, self._num_classes = text, config, num_classes

    def read(self, epoch: int) -> StoredLogits | None:
        """Return the logits of an epoch, or None if they are not there or not as they were written."""
        path = self._path(epoch)
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
                metadata = file.metadata()
        except (OSError, SafetensorError):
            return None
        if metadata.get("sha256") != weights_sha256(tensors):
            path.unlink(missing_ok=True)
            return None
        return StoredLogits(tensors, self._num_classes, float(metadata["divergence"]))

    def write(self, epoch: int, tensors: dict[str, Tensor], divergence: float) -> bool:
        """Store an epoch by one rename; return False where it would make the cache larger than ``cache.max_gb``."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if _bytes_of(self._root.glob("*/*.safetensors")) + size > self.config.max_gb * 1e9:
            return False
        content = save(tensors, {"sha256": weights_sha256(tensors), "divergence": repr(divergence)})
        try:
            # Runs side by side may store the same epoch at once.
            for path, data in ((self._folder / "key.json", f"{self._key}\n".encode()), (self._path(epoch), content)):
                with atomic(path, shared=True) as partial:
                    partial.write_bytes(data)
        except ResourceError as error:
            raise ResourceError(f"{error}; or lower cache.max_gb, or set cache.folder=null") from None
        return True

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:05d}.safetensors"


def _bytes_of(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another run found it damaged
            total += path.stat().st_size
    return total


class StoredLogits:
    """Logits of one epoch as they were stored. ``divergence``: mean KL(teacher || stored) in nats."""

    def __init__(self, tensors: dict[str, Tensor], num_classes: int, divergence: float) -> None:
        self._tensors, self._num_classes, self.divergence = tensors, num_classes, divergence

    def rows(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Return the logits (stop - start, K) in fp32."""
        part = {name: tensor[start:stop].to(device, non_blocking=True) for name, tensor in self._tensors.items()}
        return decode(part, self._num_classes)


def encode(logits: Tensor, config: CacheConfig) -> dict[str, Tensor]:
    """Return logits (B, K) in the form in which they are stored: whole, or the largest and what the others share."""
    dtype = torch.float16 if config.dtype == "fp16" else torch.float32
    if config.top_k is None or config.top_k >= logits.shape[1]:
        return {"logits": logits.to(dtype)}
    values, classes = logits.float().topk(config.top_k)
    others = logits.float().scatter(1, classes, -torch.inf).logsumexp(1)
    rest = others - torch.log(torch.tensor(float(logits.shape[1] - config.top_k)))
    return {"values": values.to(dtype), "classes": classes.to(torch.int32), "rest": rest.to(dtype)}


def decode(stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
    """Return fp32 logits (B, K) from what `encode` gave; beyond the largest, all have the same share of the rest."""
    if "logits" in stored:
        return stored["logits"].float()
    rest = stored["rest"].float()[:, None].expand(-1, num_classes)
    return rest.scatter(1, stored["classes"].long(), stored["values"].float())
