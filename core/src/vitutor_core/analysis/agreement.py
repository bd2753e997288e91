"""On which images several classifiers agree, and what each of them says of a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vitutor_core.data.augment.mixing import Normalise
from vitutor_core.data.augment.resample import eval_transform
from vitutor_core.data.sources.images import read_image
from vitutor_core.data.types import Split
from vitutor_core.errors import ConfigError, NonFiniteError
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.weights import ModelCard

_BATCH = 64


class Classifier(NamedTuple):
    """A trained model, what its figures call it, and its card."""

    label: str
    model: nn.Module
    card: ModelCard


class Kind(NamedTuple):
    """Images that are alike in which models are right: what they are called, and their positions."""

    name: str
    images: Tensor


class Choice(NamedTuple):
    """Which images are shown: the first ``each`` of every kind, with ``top`` classes each."""

    each: int = 1
    top: int = 4


def compare_on(
    classifiers: Sequence[Classifier],
    split: Split,
    images: Sequence[int],
    *,
    judged: int,
    choice: Choice,
    device: torch.device,
) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """Compare models on labelled images, and choose a few on which the first ``judged`` agree or complement each other.

    Labels are positions in the class names of the first model. Returns the findings as JSON values, `agreement` and
    ``shown``, and the pictures of those shown, (S, S, 3); there may be none. Raises `ConfigError` where the models
    cannot be compared.
    """
    check_comparable(classifiers)
    labels, names = [one.label for one in classifiers], classifiers[0].card.class_names
    said = probabilities(classifiers, split.read, images, device)
    targets = torch.from_numpy(split.labels[np.asarray(images)])
    shown, pictures = [], []
    for kind in of_kinds(labels[:judged], said[:judged], targets):
        for position in kind.images[: choice.each].tolist():
            index, target = images[position], int(targets[position])
            shown.append(
                {
                    "image": split.where(index),
                    "class": names[target],
                    "kind": kind.name,
                    "share": 100 * len(kind.images) / len(images),
                    "probabilities": of_image(labels, said[:, position], names, target=target, top=choice.top),
                }
            )
            pictures.append(_picture(classifiers[0], split.read(index)))
    found = {"all": agreement(labels, said, targets)}
    if judged < len(labels):
        found["judged"] = agreement(labels[:judged], said[:judged], targets)
    return {"models": labels, **found, "shown": shown}, pictures


def compare_named(
    classifiers: Sequence[Classifier], paths: Sequence[Path], *, top: int, device: torch.device
) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """Return what models say of image files, as `compare_on` does of a split; nothing is known of their classes."""
    check_comparable(classifiers)
    labels, names = [one.label for one in classifiers], classifiers[0].card.class_names
    read = [partial(read_image, path, str(path)) for path in paths]
    said = probabilities(classifiers, lambda index: read[index](), range(len(paths)), device)
    shown = [
        {
            "image": str(path),
            "class": None,
            "kind": path.name,
            "share": None,
            "probabilities": of_image(labels, said[:, index], names, target=None, top=top),
        }
        for index, path in enumerate(paths)
    ]
    return {"models": labels, "shown": shown}, [_picture(classifiers[0], image()) for image in read]


def _picture(classifier: Classifier, image: Image.Image) -> NDArray[np.uint8]:
    """Return an image as the model sees it, (S, S, 3)."""
    pixels: NDArray[np.uint8] = eval_transform(classifier.card)(image).permute(1, 2, 0).numpy()
    return pixels


def check_comparable(classifiers: Sequence[Classifier]) -> None:
    """Raise `ConfigError` unless all models are classifiers and know the same classes, in any order."""
    first = classifiers[0]
    for label, _, card in classifiers:
        if not card.classifies:
            raise ConfigError(f"{label}: its head is not trained, so that it knows no classes; fine-tune it first")
        other = sorted(set(card.class_names) ^ set(first.card.class_names))
        if other:
            who = f"only one of {label} and {first.label} knows the class '{other[0]}'"
            raise ConfigError(f"{who}; compare models of one class list")


@torch.inference_mode()
def probabilities(
    classifiers: Sequence[Classifier], read: Callable[[int], Image.Image], images: Sequence[int], device: torch.device
) -> Tensor:
    """Return what each model says of the images ``read(i)``, prepared as in its own evaluation.

    Returns (models, images, classes), float32, on the CPU; classes in the order of the first model's card. Raises
    `NonFiniteError` for logits that are NaN or infinite.
    """
    names = classifiers[0].card.class_names
    orders = [[card.class_names.index(name) for name in names] for _, _, card in classifiers]
    found: list[list[Tensor]] = [[] for _ in classifiers]
    for batch in _batches(read, images):
        for own, order, (label, model, card) in zip(found, orders, classifiers, strict=True):
            pixels = torch.stack([eval_transform(card)(image) for image in batch]).to(device)
            with evaluation_mode(model):
                logits = model(Normalise(card.mean, card.std, device)(pixels)).float().cpu()
            if not logits.isfinite().all():
                raise NonFiniteError(f"{label}: NaN or infinite logits; the weights have diverged")
            own.append(logits.softmax(1)[:, order])
    return torch.stack([torch.cat(own) for own in found])


def _batches(read: Callable[[int], Image.Image], images: Sequence[int]) -> Iterator[list[Image.Image]]:
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), _BATCH):
            yield list(pool.map(read, images[start : start + _BATCH]))


def agreement(labels: Sequence[str], said: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return how far models agree, in percent of the images, as JSON values.

    ``top1`` by model; ``same``: the share of images of which two models name the same class, a row and a column for
    each; ``all_right``, ``none_right``, and by model ``only_right``: no other is.

    Args:
        labels: of the models.
        said: (models, images, classes), `probabilities`.
        targets: (images,) int64, the classes of the images.

    """
    named = said.argmax(-1)
    right = named == targets
    same = (named[:, None] == named[None]).double().mean(-1)
    kinds = of_kinds(labels, said, targets)
    count = len(targets)
    return {
        "images": count,
        "top1": {label: 100 * own.double().mean().item() for label, own in zip(labels, right, strict=True)},
        "same": (100 * same).tolist(),
        "all_right": 100 * len(kinds[0].images) / count,
        "none_right": 100 * (~right.any(0)).double().mean().item(),
        "only_right": {label: 100 * len(kind.images) / count for label, kind in zip(labels, kinds[1:], strict=True)},
    }


def of_kinds(labels: Sequence[str], said: Tensor, targets: Tensor) -> list[Kind]:
    """Return the images of which all models name the class, then, model by model, those where it alone does."""
    right = said.argmax(-1) == targets
    number = right.sum(0)
    kinds = [Kind("all right", (number == len(labels)).nonzero().flatten())]
    for label, own in zip(labels, right, strict=True):
        kinds.append(Kind(f"only {label}", (own & (number == 1)).nonzero().flatten()))
    return kinds


def of_image(
    labels: Sequence[str], said: Tensor, class_names: Sequence[str], *, target: int | None, top: int
) -> dict[str, dict[str, float]]:
    """Return the probabilities of the same few classes by each model: the image's own, then those named with the most.

    ``said`` is (models, classes); ``target`` the image's class, None where it is not known.
    """
    strongest = said.amax(0)
    if target is not None:
        strongest[target] = torch.inf
    classes = strongest.topk(min(top, len(class_names))).indices.tolist()
    return {
        label: {class_names[index]: own[index].item() for index in classes}
        for label, own in zip(labels, said, strict=True)
    }
