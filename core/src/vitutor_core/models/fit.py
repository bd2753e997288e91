"""Make published weights fit a model: their names, a common prefix, another image or window size, another head.

What is changed is said, one line for each kind of change; whatever else does not fit is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from vitutor_core.errors import CheckpointError
from vitutor_core.models.layouts import OWN, Layout, layouts

PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
"""What wrappers put in front of all names."""
_COUNTERS = ("num_batches_tracked", "n_averaged")


class Fitted(NamedTuple):
    """Weights that fit a model.

    tensors: its whole state dict. beside: what the file holds of other networks, by our names. layout: whose names the
    file has. changed: what was changed, in words. left: what the file lacks, or has in vain.
    """

    tensors: dict[str, Tensor]
    beside: dict[str, Tensor]
    layout: str
    changed: tuple[str, ...]
    left: tuple[str, ...]


class Reading(NamedTuple):
    """The tensors of a file as one layout reads them, and the names that do not fit a model then."""

    layout: Layout
    prefix: str
    own: dict[str, Tensor]
    beside: dict[str, Tensor]
    missing: list[str]
    unknown: list[str]

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.unknown)


class MisfitError(CheckpointError):
    """Weights of another model; ``count`` tensors do not fit."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


def classifier_of(model: nn.Module) -> tuple[str, ...]:
    """Return the beginnings of the names of a model's classifiers, as timm describes it."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))


def positions_before(model: Any) -> int:
    """Return how many position embeddings of a ViT are those of tokens in front of its patches."""
    return 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))


def grid_of(model: Any) -> tuple[int, int] | None:
    """Return the rows and columns of patches of a model that tells them, as a ViT of timm does."""
    grid: tuple[int, int] | None = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return grid


def fit(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    *,
    where: str,
    known: Sequence[Layout] | None = None,
    optional: Sequence[str] = (),
) -> Fitted:
    """Bring the tensors of a file into the names, shapes and types of a model's state dict.

    Args:
        tensors: by the names of the file.
        model: what does not fit it is left as it is.
        where: the file, for messages.
        known: the layouts that are tried; by default all.
        optional: beginnings of names that may be missing, left over or of another shape, such as `classifier_of` gives.

    Raises:
        CheckpointError: names, shapes or types differ in what is not listed here; it names the first of them.

    """
    free = tuple(optional)
    best = read(tensors, model, known=known, optional=free)
    state: dict[str, Tensor] = model.state_dict()
    fitted: dict[str, Tensor] = {}
    notes = [f"prefix '{best.prefix}' removed"] if best.prefix else []
    fresh: list[str] = []
    shapes: list[str] = []
    for name, own in state.items():
        found = best.own.get(name)
        if found is None:
            if name not in best.missing:
                fresh.append(name)
            continue
        resized = _resized(name, found, model, own)
        if _same_kind(resized, own):
            fitted[name] = resized.to(own.dtype)
            notes += _changes(name, found, resized, own)
        elif name.startswith(free):
            fresh.append(name)
        else:
            shapes.append(f"{name} {_shape(found)}, not {_shape(own)}")
    if best.misfits or shapes:
        problems = {"missing": best.missing, "unknown": best.unknown, "other shape": shapes}
        text = "; ".join(f"{kind}: {', '.join(sorted(names)[:3])}" for kind, names in problems.items() if names)
        raise MisfitError(f"{where}: weights of another model ({text})", best.misfits + len(shapes))
    left_over = [name for name in best.own if name not in state and not name.endswith(_COUNTERS)]
    left = _said("left as initialised", fresh) + _said("not used, the model has none", left_over)
    whole = {name: fitted.get(name, own) for name, own in state.items()}
    return Fitted(whole, best.beside, best.layout.family, tuple(dict.fromkeys(notes)), tuple(left))


def read(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    *,
    known: Sequence[Layout] | None = None,
    optional: Sequence[str] = (),
) -> Reading:
    """Return the reading that fits best, by names alone, of all layouts with and without the common prefixes."""
    if known is None:
        # Weights of ours need no other paper, which would be imported for its layouts.
        ours = read(tensors, model, known=(OWN,), optional=optional)
        return ours if ours.misfits == 0 else read(tensors, model, known=layouts(), optional=optional)
    state, free = model.state_dict().keys(), tuple(optional)
    found: list[Reading] = []
    wrapped = list(_stripped(tensors))
    for layout in known:
        for prefix, names in wrapped:
            own, beside = layout.read(names)
            missing = [name for name in state - own.keys() if not _may_differ(name, free)]
            unknown = [name for name in own.keys() - state if not _may_differ(name, free)]
            found.append(Reading(layout, prefix, own, beside, missing, unknown))
    return min(found, key=lambda reading: reading.misfits)


def _stripped(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the tensors as they are, and without each prefix that all their names have in common, one after another."""
    prefix, names = "", tensors
    while True:
        yield prefix, names
        common = next((each for each in PREFIXES if names and all(name.startswith(each) for name in names)), None)
        if common is None:
            return
        prefix += common
        names = {name.removeprefix(common): value for name, value in names.items()}


def _may_differ(name: str, free: tuple[str, ...]) -> bool:
    return name.endswith(_COUNTERS) or name.startswith(free)


def _same_kind(found: Tensor, own: Tensor) -> bool:
    return found.shape == own.shape and found.is_floating_point() == own.is_floating_point()


def _resized(name: str, found: Tensor, model: Any, own: Tensor) -> Tensor:
    """Resample positions and relative position biases of another size; others stay as they are."""
    if found.shape == own.shape or found.ndim != own.ndim or found.shape[-1] != own.shape[-1]:
        return found
    if name == "pos_embed" and found.ndim == 3 and (grid := grid_of(model)) is not None:
        first = positions_before(model)
        cells = max(found.shape[1] - first, 0)
        if math.isqrt(cells) ** 2 == cells > 0:
            found = resample_abs_pos_embed(found, list(grid), num_prefix_tokens=first)
    if name.endswith(".relative_position_bias_table"):
        height, width = window = model.get_submodule(name.rpartition(".")[0]).window_size
        offsets = len(found) - (len(own) - (2 * height - 1) * (2 * width - 1))  # without those of a class token
        if offsets > 0 and math.isqrt(offsets) ** 2 == offsets:
            found = resize_rel_pos_bias_table_simple(found, new_window_size=window, new_bias_shape=tuple(own.shape))
    return found


def _changes(name: str, found: Tensor, resized: Tensor, own: Tensor) -> list[str]:
    notes = []
    if found.shape != resized.shape:
        kind = "positions" if name == "pos_embed" else "relative position biases"
        notes.append(f"{kind} resampled from {_shape(found)} to {_shape(resized)}")
    if found.dtype != own.dtype:
        notes.append(f"{str(found.dtype).removeprefix('torch.')} stored as {str(own.dtype).removeprefix('torch.')}")
    return notes


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single value"


def _said(what: str, names: Sequence[str]) -> list[str]:
    shown = [name for name in names if not name.endswith(_COUNTERS)]
    counters = {name.rpartition(".")[2]: "" for name in names if name.endswith(_COUNTERS)}
    if not names:
        return []
    first = ", ".join([*shown[:4], *counters])
    return [f"{first}{f' and {len(shown) - 4} more' if len(shown) > 4 else ''}: {what}"]
