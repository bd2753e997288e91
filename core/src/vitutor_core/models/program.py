"""A model as a program that needs none of our code: ONNX, or PyTorch's ``torch.export``; checked on real images.

Input ``images``, (B, 3, S, S), normalised as the model card says, which is stored in the file; output ``logits``,
(B, K); any B.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitutor_core.errors import CheckpointError, ConfigError, first_line
from vitutor_core.files import atomic
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.weights import ModelCard

TOLERANCE = 1e-4
"""Of logits, absolute, and relative where they are larger than 1."""
_CARD = "vitutor"


def save_onnx(path: Path, model: nn.Module, card: ModelCard, images: Tensor) -> float:
    """Write ``model`` as ONNX and run it by onnxruntime on ``images``; return the largest difference of a logit.

    Raises `ConfigError` where a package is missing, and `CheckpointError` where the logits differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx translates with it
    except ImportError as error:
        raise ConfigError(f"--onnx: {error}; install it with pip install 'vitutor-core[onnx]'") from None
    with atomic(path) as partial, _exported(model, card, images) as program:
        onnx: Any = torch.onnx.export(program, (), input_names=["images"], output_names=["logits"], verbose=False)
        onnx.model.metadata_props[_CARD] = card.model_dump_json()
        onnx.save(partial, external_data=False)
        session = onnxruntime.InferenceSession(partial.read_bytes(), providers=["CPUExecutionProvider"])
        return _difference(
            path, model, images, lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])
        )


def save_exported(path: Path, model: nn.Module, card: ModelCard, images: Tensor) -> float:
    """Write ``model`` for ``torch.export.load`` and run what is read back, as `save_onnx` does."""
    with atomic(path) as partial, _exported(model, card, images) as program:
        with partial.open("wb") as file:
            torch.export.save(program, file, extra_files={_CARD: card.model_dump_json()})
        with partial.open("rb") as file:
            again = torch.export.load(file).module()
        return _difference(path, model, images, again)


@contextmanager
def _exported(model: nn.Module, card: ModelCard, images: Tensor) -> Iterator[torch.export.ExportedProgram]:
    """Yield the program of a model in evaluation mode; the exporters' own notes are for those who write them."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), evaluation_mode(model), torch.no_grad():
            # Of batches of one, torch.export makes programs for one image.
            example = images if len(images) > 1 else images.expand(2, -1, -1, -1).clone()
            yield torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    except (RuntimeError, ValueError, TypeError) as error:  # of any operator
        reason = first_line(error)
        raise CheckpointError(f"{card.name} cannot be exported so ({reason}); export it with --to") from error
    finally:
        logging.disable(level)


def _difference(path: Path, model: nn.Module, images: Tensor, program: Callable[[Tensor], Tensor]) -> float:
    """Compare all images at once, and the first of them alone."""
    largest = 0.0
    for batch in (images, images[:1]):
        wanted, found = model(batch), program(batch)
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE):
            raise CheckpointError(f"{path}: not written, its logits differ by more than {TOLERANCE:g}")
        largest = max(largest, float((found - wanted).abs().max()))
    return largest
