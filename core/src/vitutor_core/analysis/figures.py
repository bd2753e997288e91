"""Figures of an analysis, with layers and heads labelled: CKA, Fourier curves, attention distance and entropy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vitutor_core.report.drawing import COLOURS, Picture, ordered_colours, save_picture

Json = dict[str, Any]


def draw_analysis(found: Json, folder: Path) -> list[Picture]:
    """Draw the result of `analyse` into ``folder``."""
    pictures = [_cka(found["cka"], folder), _fourier(found["models"], folder)]
    pictures += [_attention(label, part, folder) for label, part in found["models"].items() if "distance" in part]
    return pictures


def _cka(cka: Json, folder: Path) -> Picture:
    values = _numbers(cka["values"])

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        shown = left.imshow(values, vmin=0, vmax=1, origin="lower", cmap="viridis", aspect="auto")
        left.set(title="CKA", xlabel=cka["second"], ylabel=cka["first"])
        _tick(left.set_xticks, cka["columns"])
        _tick(left.set_yticks, cka["rows"], rotation=0)
        left.grid(visible=False)
        figure.colorbar(shown, ax=left)
        length = min(len(cka["rows"]), len(cka["columns"]))
        right.plot(range(length), [values[index][index] for index in range(length)], color=COLOURS[2], marker="o")
        right.set(title="same layer of both", ylim=(0, 1.05))
        _tick(right.set_xticks, cka["rows"][:length])

    return save_picture(
        folder / "cka",
        draw,
        title=f"Similarity of layers: {cka['first']}; {cka['second']}",
        caption="Linear centred kernel alignment of the patch tokens, by unbiased minibatch HSIC.",
        alt=f"Heatmap of the CKA of the layers of {cka['first']} with those of {cka['second']}, and its diagonal.",
    )


def _fourier(models: Json, folder: Path) -> Picture:
    def draw(figure: Any) -> None:
        *panels, last = figure.subplots(1, len(models) + 1)
        for axes, (label, part) in zip(panels, models.items(), strict=True):
            colours = ordered_colours(len(part["layers"]))
            for name, curve, colour in zip(part["layers"], part["fourier"], colours, strict=True):
                own = [value for value in curve if value is not None]
                axes.plot(range(len(own)), own, color=colour, label=name)
            axes.set(title=label, xlabel="frequency, in cycles per map")
            axes.legend(fontsize=6, frameon=False, ncols=2)
        panels[0].set_ylabel("relative log amplitude")
        for index, (label, part) in enumerate(models.items()):
            ends = [[value for value in curve if value is not None][-1] for curve in part["fourier"]]
            last.plot(range(len(ends)), ends, color=COLOURS[1 + index], marker="o", label=label)
        last.set_title("highest minus lowest")
        _tick(last.set_xticks, max((part["layers"] for part in models.values()), key=len))
        last.legend(fontsize=7, frameon=False)

    return save_picture(
        folder / "fourier",
        draw,
        title=f"High frequencies in the layers: {'; '.join(models)}",
        caption="Log amplitude of the Fourier transform of the token maps along the diagonal, relative to frequency 0.",
        alt=f"Log amplitude against frequency for each layer of {' and '.join(models)}.",
    )


def _attention(label: str, part: Json, folder: Path) -> Picture:
    def draw(figure: Any) -> None:
        for axes, name, unit in zip(figure.subplots(1, 2), ("distance", "entropy"), ("pixels", "nats"), strict=True):
            heads = list(zip(*_numbers(part[name]), strict=True))
            shown = axes.imshow(heads, origin="lower", cmap="viridis", vmin=0, aspect="auto")
            axes.set(title=f"attention {name} ({unit})", xlabel="block")
            _tick(axes.set_xticks, [str(block + 1) for block in range(len(part[name]))], rotation=0)
            _tick(axes.set_yticks, [f"head {head + 1}" for head in range(len(heads))], rotation=0)
            axes.grid(visible=False)
            figure.colorbar(shown, ax=axes)
        figure.suptitle(label)

    slug = "".join(letter if letter.isalnum() else "-" for letter in label)
    return save_picture(
        folder / f"attention-{slug}",
        draw,
        title=f"Attention of {label}",
        caption="Mean distance between a query and the keys it attends to, and mean entropy of its attention, among "
        "patches.",
        alt=f"Heatmaps of attention distance and entropy of each head and block of {label}.",
    )


def _tick(set_ticks: Any, labels: list[str], *, rotation: int = 45) -> None:
    set_ticks(list(range(len(labels))), labels, fontsize=7, rotation=rotation)


def _numbers(rows: list[list[float | None]]) -> list[list[float]]:
    return [[math.nan if value is None else value for value in row] for row in rows]
