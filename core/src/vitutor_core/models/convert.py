"""Published weights as a model of ours with its card: the architecture from names and shapes, or as it is given."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from torch import Tensor, nn

from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models.border import check_border
from vitutor_core.models.fit import Fitted, MisfitError, classifier_of, fit, grid_of, positions_before, read
from vitutor_core.models.layouts import FAMILIES, OWN, Layout, layouts
from vitutor_core.models.named import named_model
from vitutor_core.models.weights import CONVERTED, ModelCard, skeleton, timm_model

_IMAGENET = 1000
_LIKELY = 3
"""Layouts whose architectures are built to see whether one fits."""


class Classes(NamedTuple):
    """What the images were that a model has learnt: class names in the order of its logits, and the normalisation."""

    names: Sequence[str]
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class Converted(NamedTuple):
    """A model with the weights of a file, and its card.

    beside: what else was in the file, by our names. notes: what was found and changed, a line each.
    """

    model: nn.Module
    card: ModelCard
    beside: dict[str, Tensor]
    notes: tuple[str, ...]


class _Plan(NamedTuple):
    """An architecture that has the tensors of a file, and the layout in which it has them."""

    layout: Layout
    name: str
    kwargs: dict[str, Any]
    image_size: int


def convert(
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    classes: Classes | None = None,
) -> Converted:
    """Rebuild a model from the state dict of a published checkpoint.

    Args:
        tensors: by the names of the file.
        where: the file, for messages.
        name: of timm; by default the first published architecture whose names and shapes are those of the file.
        kwargs: arguments of that architecture.
        image_size: side of the input; by default that of the file. Positions are resampled for another one.
        classes: of the head; by default the 1,000 of ImageNet.

    Raises:
        CheckpointError: the tensors are those of no such model.
        ConfigError: the head has other classes than ``classes``, or there is no such architecture.

    """
    plan = _planned(tensors, where) if name is None else _named(tensors, where, name, dict(kwargs or {}))
    found = named_model(plan.name)
    settings = dict(plan.kwargs)
    side = image_size or plan.image_size
    if found.takes_image_size:
        settings["img_size"] = side
    known = _classes(settings["num_classes"], classes, where)
    model = timm_model(plan.name, settings)
    check_border(model, plan.name, side)
    fitted = fit(tensors, model, where=where, known=(plan.layout,))
    cfg = found.cfg.to_dict() if found.cfg is not None else {}
    family = _family(plan)
    card = ModelCard(
        name=plan.name,
        kwargs={key: value for key, value in settings.items() if key != "num_classes" or value == 0},
        class_names=tuple(known.names),
        image_size=side,
        mean=tuple(known.mean or (cfg["mean"] if family is OWN else IMAGENET_DEFAULT_MEAN)),
        std=tuple(known.std or (cfg["std"] if family is OWN else IMAGENET_DEFAULT_STD)),
        crop_ratio=cfg["crop_pct"] if family is OWN or cfg["crop_pct"] == 1 else family.crop,
        interpolation=cfg["interpolation"],
        method=CONVERTED,
    )
    model.load_state_dict(fitted.tensors)
    notes = (_described(plan, family, card, model), *fitted.changed, *fitted.left, *_beside(fitted))
    return Converted(model, card, fitted.beside, notes)


def _named(tensors: Mapping[str, Tensor], where: str, name: str, kwargs: dict[str, Any]) -> _Plan:
    """Find the layout in which the tensors are those of a model that is named."""
    model = skeleton(name, kwargs)
    layout = read(tensors, model, optional=classifier_of(model)).layout
    return _fitting(tensors, where, layout, name, kwargs, model)


def _planned(tensors: Mapping[str, Tensor], where: str) -> _Plan:
    """Find the published architecture that has these tensors; raises `CheckpointError` with what fits best."""
    closest: tuple[str, MisfitError] | None = None
    for layout, name, kwargs in _candidates(tensors):
        try:
            return _fitting(tensors, where, layout, name, kwargs, skeleton(name, kwargs))
        except MisfitError as error:
            if closest is None or error.count < closest[1].count:
                closest = name, error
    if closest is None:
        raise CheckpointError(f"{where}: no architecture is known; name it with --model")
    raise CheckpointError(f"{closest[1]}; {closest[0]} is the closest of those known: name the right one with --model")


def _candidates(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Layout, str, dict[str, Any]]]:
    """Yield the published architectures of the few layouts whose names, numbers aside, are most like the file's."""

    def unlike(layout: Layout) -> int:
        model = _example(layout.models[0][0], tuple(layout.models[0][1].items()))
        own = read(tensors, model, known=(layout,)).own
        return len(_kinds(own) ^ _kinds(model.state_dict()))

    for layout in sorted((layout for layout in layouts() if layout.models), key=unlike)[:_LIKELY]:
        for name, kwargs in layout.models:
            yield layout, name, dict(kwargs)


@cache
def _example(name: str, kwargs: tuple[tuple[str, Any], ...]) -> nn.Module:
    return skeleton(name, dict(kwargs))


def _kinds(names: Iterable[str]) -> set[str]:
    return {re.sub(r"\d+", "#", name) for name in names}


def _fitting(
    tensors: Mapping[str, Tensor], where: str, layout: Layout, name: str, kwargs: dict[str, Any], model: Any
) -> _Plan:
    """Adapt an architecture to the number of classes and the image size of the tensors; raises `MisfitError`."""
    free = classifier_of(model)
    own = read(tensors, model, known=(layout,), optional=free).own
    head = own.get(f"{free[0]}weight") if free else None
    settings = {**kwargs, "num_classes": 0 if head is None else len(head)}
    side = kwargs.get("img_size") or named_model(name).cfg.input_size[-1]  # type: ignore[union-attr]  # a name of timm
    positions = own.get("pos_embed")
    patches = grid_of(model)
    if positions is not None and positions.ndim == 3 and hasattr(model, "pos_embed") and patches is not None:
        first = positions_before(model)
        grid = math.isqrt(max(positions.shape[1] - first, 0))
        if grid**2 == positions.shape[1] - first > 0:
            side = grid * (side // patches[0])
            settings["img_size"] = side
    fit(tensors, skeleton(name, settings), where=where, known=(layout,))
    return _Plan(layout, name, settings, side)


def _classes(number: int, given: Classes | None, where: str) -> Classes:
    if number == 0:
        return Classes((), *((given.mean, given.std) if given is not None else ()))
    if given is None and number != _IMAGENET:
        raise ConfigError(f"{where}: its head has {number} classes; name them with --source or --classes")
    if given is None:
        return Classes(ImageNetInfo("imagenet-1k").label_names())
    if len(given.names) != number:
        raise ConfigError(f"{where}: its head has {number} classes, and {len(given.names)} are named")
    return given


def _family(plan: _Plan) -> Layout:
    """Return the layout of the family that publishes this architecture, whose authors say how images are prepared.

    Of timm's own names, which many have trained, core's families alone: not those of whichever papers are installed.
    """
    if plan.layout is not OWN:
        return plan.layout
    return next((layout for layout in FAMILIES if plan.name in dict(layout.models)), OWN)


def _described(plan: _Plan, family: Layout, card: ModelCard, model: Any) -> str:
    heads = {module.num_heads for module in model.modules() if isinstance(getattr(module, "num_heads", None), int)}
    said = f", {'/'.join(map(str, sorted(heads)))} heads, which its shapes do not tell" if heads else ""
    mean = " ".join(f"{value:.3f}" for value in card.mean)
    classes = f"{len(card.class_names) or 'no'} classes"
    return f"{family.family}: {plan.name}, {classes}, {plan.image_size} px, pixels of mean {mean}{said}"


def _beside(fitted: Fitted) -> list[str]:
    kinds = sorted({name.partition(".")[0] for name in fitted.beside})
    return (
        [f"not of the model: {', '.join(kinds)}; --beside FILE keeps {'them' if kinds[1:] else 'it'}"] if kinds else []
    )
