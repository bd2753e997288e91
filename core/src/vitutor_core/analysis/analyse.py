"""The numbers behind the analysis figures: CKA, log amplitudes, attention distance and entropy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitutor_core.analysis.attention import attention_distance, attention_entropy
from vitutor_core.analysis.cka import MinibatchCKA
from vitutor_core.analysis.fourier import log_amplitudes
from vitutor_core.analysis.layers import Layers, read_layers

RELEASED_PIXELS_PER_PATCH = 14.0
RELEASED_EPSILON = 1e-6


@dataclass(frozen=True)
class Quirks:
    """What the released tools do differently.

    released: attention distance times 14 instead of the patch size, ln(p + 1e-6) in the entropy, and a last CKA layer
    behind a norm without weights. true_nyquist: the Fourier curve up to the highest frequency, which they leave out.
    """

    released: bool = False
    true_nyquist: bool = False


def analyse(
    models: list[tuple[str, nn.Module]], batches: Iterable[tuple[Tensor, ...]], quirks: Quirks
) -> dict[str, Any]:
    """Return the analysis of one or two models as JSON values.

    models: labels and networks. batches: for each batch the same images as each model wants them, (n, C, H, W).

    ``cka``: ``first`` and ``second`` (labels), ``rows`` and ``columns`` (their layers), ``values``; of a single model
    with itself. ``models``: by label, ``layers``, ``fourier`` (a curve per layer), and for ViTs ``distance`` (pixels)
    and ``entropy`` (nats), a list of heads per block. NaN is null.
    """
    cka, count = MinibatchCKA(), 0
    sums: list[dict[str, Tensor]] = [{} for _ in models]
    names: list[tuple[str, ...]] = []
    for batch in batches:
        layers = [
            read_layers(model, images, untrained_norm=quirks.released)
            for (_, model), images in zip(models, batch, strict=True)
        ]
        cka.add(layers[0].features, layers[-1].features)
        for own, (_, model), found in zip(sums, models, layers, strict=True):
            for name, value in _measures(model, found, quirks).items():
                own[name] = own.get(name, 0) + len(batch[0]) * value.double()
        count += len(batch[0])
        names = [found.names for found in layers]
    labels = [label for label, _ in models]
    parts = [
        {"layers": list(own_names), **{name: _json(value / count) for name, value in own.items()}}
        for own_names, own in zip(names, sums, strict=True)
    ]
    return {
        "images": count,
        "cka": {
            "first": labels[0],
            "second": labels[-1],
            "rows": list(names[0]),
            "columns": list(names[-1]),
            "values": _json(cka.result()),
        },
        "models": dict(zip(labels, parts, strict=True)),
    }


def _measures(model: Any, layers: Layers, quirks: Quirks) -> dict[str, Tensor]:
    curves = [log_amplitudes(map_, true_nyquist=quirks.true_nyquist) for map_ in layers.maps]
    longest = max(len(curve) for curve in curves)  # stages of a CNN differ
    padded = [torch.cat([curve, curve.new_full((longest - len(curve),), torch.nan)]) for curve in curves]
    measures = {"fourier": torch.stack(padded)}
    if layers.attentions:
        pixels = RELEASED_PIXELS_PER_PATCH if quirks.released else float(model.patch_embed.patch_size[0])
        epsilon = RELEASED_EPSILON if quirks.released else 0.0
        tokens = layers.grid, layers.num_prefix
        distances = [attention_distance(attention, *tokens, patch_size_px=pixels) for attention in layers.attentions]
        entropies = [attention_entropy(attention, *tokens, epsilon=epsilon) for attention in layers.attentions]
        measures |= {"distance": torch.stack(distances), "entropy": torch.stack(entropies)}
    return measures


def _json(values: Tensor) -> Any:
    """Return nested lists with null for NaN."""
    if values.ndim > 0:
        return [_json(value) for value in values]
    return None if values.isnan() else values.item()
