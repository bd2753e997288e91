"""What a trained model says of images without labels, which are decoded as in its evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vitutor_core.data.augment.mixing import Normalise
from vitutor_core.data.augment.resample import Transform, eval_transform
from vitutor_core.data.sources.images import read_image
from vitutor_core.errors import ConfigError, DataError, NonFiniteError
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.weights import ModelCard


class Prediction(NamedTuple):
    """Of one image: the classes named first with their probabilities, the highest first; or why it was not read."""

    path: Path
    classes: tuple[tuple[str, float], ...]
    problem: str | None = None


def predict(
    model: nn.Module,
    card: ModelCard,
    paths: Sequence[Path],
    *,
    top: int = 5,
    batch_size: int = 256,
    device: torch.device,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[Prediction]:
    """Yield a `Prediction` for each of the image files, in their order, in batches, read in threads one batch ahead.

    The model is moved to ``device``. Raises `ConfigError` if it is not a classifier, and `NonFiniteError` for logits
    that are NaN or infinite.
    """
    if not card.classifies:
        raise ConfigError(f"{card.name}: its head is not trained, so that it knows no classes; fine-tune it first")
    model.to(device)
    normalise = Normalise(card.mean, card.std, device)
    read = partial(_read, eval_transform(card))
    with ThreadPoolExecutor() as pool:
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        ahead: list[Future[Tensor | str]] = []
        for number, batch in enumerate(batches):
            found = [future.result() for future in ahead or [pool.submit(read, path) for path in batch]]
            following = batches[number + 1] if number + 1 < len(batches) else ()
            ahead = [pool.submit(read, path) for path in following]
            images = [image for image in found if isinstance(image, Tensor)]
            answers: Iterator[tuple[tuple[str, float], ...]] = iter(())
            if images:
                with evaluation_mode(model), torch.inference_mode():
                    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                        logits = model(normalise(torch.stack(images).to(device)))
                    answers = iter(_named(logits.float().cpu(), card.class_names, top))
            for path, image in zip(batch, found, strict=True):
                yield Prediction(path, (), image) if isinstance(image, str) else Prediction(path, next(answers))


def _read(transform: Transform, path: Path) -> Tensor | str:
    if not path.is_file():  # a pipe would be waited for
        return f"{path}: no file is there"
    try:
        return transform(read_image(path, str(path)))
    except DataError as error:
        return str(error)


def _named(logits: Tensor, class_names: Sequence[str], top: int) -> list[tuple[tuple[str, float], ...]]:
    if not logits.isfinite().all():
        raise NonFiniteError("predict: NaN or infinite logits; the weights have diverged")
    probabilities, indices = logits.softmax(dim=1).topk(min(top, len(class_names)), dim=1)
    return [
        tuple((class_names[index], probability) for index, probability in zip(*pair, strict=True))
        for pair in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
