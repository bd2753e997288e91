"""RandAugment (Cubuk et al., arXiv:1909.13719) in timm's form, on whole batches with one choice per image.

timm's configuration string, operations and magnitudes are kept. The operations equal PIL's (see `pixelops`), except
that the geometric ones always interpolate bilinearly, also where ``data.interpolation`` is bicubic. All choices are
made on the host, so which images an operation gets is known without asking the device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitutor_core.data.augment import pixelops
from vitutor_core.data.sampler import SampleKeys
from vitutor_core.data.transfer import to_device
from vitutor_core.errors import ConfigError

AFFINE = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
BLEND = {
    "Brightness": pixelops.brightness,
    "Contrast": pixelops.contrast,
    "Color": pixelops.color,
    "Sharpness": pixelops.sharpness,
}
FIXED_TABLE = ("Invert", "Posterize", "Solarize", "SolarizeAdd")
MEASURED_TABLE = {"AutoContrast": pixelops.autocontrast_tables, "Equalize": pixelops.equalize_tables}
OPS = (*AFFINE, *BLEND, *FIXED_TABLE, *MEASURED_TABLE)
_LARGEST = 100
"""Of the numbers in the string: a layer costs time and memory, and past 10 a magnitude is past its scale."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RandAugmentConfig:
    """The parts of timm's string, with timm's defaults.

    ``num_layers`` operations per image, each applied with ``probability``, at a magnitude drawn from
    N(``magnitude``, ``magnitude_std``), or uniformly up to ``magnitude`` if that is infinite, and cut to
    [0, ``magnitude_max``]. ``increasing``: the severity of every operation grows with its magnitude.
    """

    magnitude: int = 10
    num_layers: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: int = 10
    increasing: bool = False


def parse(text: str) -> RandAugmentConfig:
    """Read a string such as ``rand-m9-mstd0.5-inc1``.

    Raises ConfigError for a part that is unknown (timm's ``t``, other sets of operations, included), is not a number,
    or is out of range.
    """
    head, *parts = text.split("-")
    values = {}
    for part in parts:
        match = re.fullmatch(r"(m|n|mmax)(\d+)|(inc)([01])|(p|mstd)(\d+\.?\d*|inf)", part)
        if match is None:
            raise _refused(text, f"'{part}' is none of mINT, nINT, pFLOAT, mstdFLOAT, mmaxINT, inc0, inc1")
        name, number = (group for group in match.groups() if group is not None)
        values[name] = float(number)
    std = values.get("mstd", 0.0)
    config = RandAugmentConfig(
        magnitude=int(values.get("m", 10)),
        num_layers=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
        magnitude_std=float("inf") if std > 100 else std,
        magnitude_max=int(values.get("mmax", 0)) or 10,
        increasing=values.get("inc") == 1,
    )
    largest = max(config.num_layers, config.magnitude, config.magnitude_max)
    if head != "rand" or config.num_layers < 1 or config.probability > 1 or largest > _LARGEST:
        limits = f"n from 1 to {_LARGEST}, m and mmax up to {_LARGEST}, p at most 1"
        raise _refused(text, f"it must start with 'rand', with {limits}")
    return config


def _refused(text: str, reason: str) -> ConfigError:
    return ConfigError(f"augment.rand_augment: cannot use '{text}': {reason}")


class Layer(NamedTuple):
    """One layer of choices, sorted by operation.

    rows: which images, (B,); those that keep as they are come last. level: magnitude / 10, (B,). signed: the same with
    a random sign, (B,). spans: where the images of each operation stand in ``rows``, in the order of `OPS`.
    """

    rows: NDArray[np.int64]
    level: Floats
    signed: Floats
    spans: dict[str, slice]


def choose(config: RandAugmentConfig, keys: SampleKeys, first_draw: int) -> Iterator[Layer]:
    """Draw the operations of a batch, with draws 0 to ``4 * num_layers - 1`` from ``first_draw`` on."""
    layers = config.num_layers
    draws = keys.uniform(first_draw, 3 * layers)
    chosen = (draws[:, :layers] * len(OPS)).astype(np.int64)
    applied = draws[:, layers : 2 * layers] < config.probability
    negative = draws[:, 2 * layers :] < 0.5
    if np.isinf(config.magnitude_std):
        magnitude = config.magnitude * keys.uniform(first_draw + 3 * layers, layers)
    elif config.magnitude_std:
        magnitude = config.magnitude + config.magnitude_std * keys.normal(first_draw + 3 * layers, layers)
    else:
        magnitude = np.full(chosen.shape, float(config.magnitude))
    ops = np.where(applied, chosen, len(OPS))
    level = magnitude.clip(0, config.magnitude_max) / 10
    signed = np.where(negative, -level, level)
    for layer in range(layers):
        rows = np.argsort(ops[:, layer], kind="stable")
        edges = np.searchsorted(ops[rows, layer], np.arange(len(OPS) + 1)).tolist()
        spans = {op: slice(i, j) for op, i, j in zip(OPS, edges[:-1], edges[1:], strict=True) if i < j}
        yield Layer(rows, level[rows, layer], signed[rows, layer], spans)


class RandAugment:
    """Augment batches; what an image shows from outside of itself has the grey levels ``fill``, (3,) float32."""

    def __init__(self, config: RandAugmentConfig, fill: Tensor, first_draw: int) -> None:
        self._config = config
        self._fill = fill
        self._first_draw = first_draw

    def __call__(self, images: Tensor, keys: SampleKeys) -> Tensor:
        """Augment (B, 3, S, S) float32 images of whole numbers."""
        # Where each image is now: in every layer the images of an operation are brought together.
        current = np.arange(len(images))
        for layer in choose(self._config, keys, self._first_draw):
            images = images.index_select(0, to_device(current[layer.rows], images.device))
            current[layer.rows] = np.arange(len(images))
            self._transform(images, layer)
            self._blend(images, layer)
            self._look_up(images, layer)
        return images.index_select(0, to_device(current, images.device))

    def _transform(self, images: Tensor, layer: Layer) -> None:
        matrices = [affine_matrices(op, layer.signed[span]) for op, span in layer.spans.items() if op in AFFINE]
        if matrices:
            on_device = to_device(np.concatenate(matrices), images.device)
            part = images[: len(on_device)]
            part.copy_(pixelops.affine(part, on_device, self._fill))

    def _blend(self, images: Tensor, layer: Layer) -> None:
        factors = np.maximum(0.1, 1 + 0.9 * layer.signed) if self._config.increasing else 1.8 * layer.level + 0.1
        on_device = to_device(factors.astype(np.float32), images.device)
        for op, span in layer.spans.items():
            if op in BLEND:
                images[span].copy_(BLEND[op](images[span], on_device[span]))

    def _look_up(self, images: Tensor, layer: Layer) -> None:
        increasing = self._config.increasing
        spans = {op: span for op, span in layer.spans.items() if op in FIXED_TABLE or op in MEASURED_TABLE}
        fixed = [
            fixed_tables(op, layer.level[s], increasing=increasing) for op, s in spans.items() if op in FIXED_TABLE
        ]
        tables = [MEASURED_TABLE[op](images[span]) for op, span in spans.items() if op in MEASURED_TABLE]
        if fixed:
            tables.insert(0, to_device(np.concatenate(fixed), images.device)[:, None].expand(-1, 3, -1))
        if tables:
            whole = list(spans.values())
            part = images[whole[0].start : whole[-1].stop]
            part.copy_(pixelops.look_up(part, torch.cat(tables)))


def affine_matrices(op: str, amount: Floats) -> NDArray[np.float32]:
    """Return the (b, 2, 3) matrices of a geometric operation for `pixelops.affine`; ``amount`` (b,) is signed.

    At level 1: rotation by 30 degrees, shear by 0.3, translation by 0.45 of the side. PIL shears and timm translates
    in pixels from the upper left corner; here the origin is the centre and half the side is the unit.
    """
    matrices = np.zeros((len(amount), 2, 3), dtype=np.float32)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1
    match op:
        case "Rotate":
            angle = np.radians(30 * amount)
            matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
            matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(angle), np.sin(angle)
        case "ShearX":
            matrices[:, 0, 1] = matrices[:, 0, 2] = 0.3 * amount
        case "ShearY":
            matrices[:, 1, 0] = matrices[:, 1, 2] = 0.3 * amount
        case "TranslateX":
            matrices[:, 0, 2] = 2 * 0.45 * amount
        case "TranslateY":
            matrices[:, 1, 2] = 2 * 0.45 * amount
    return matrices


def fixed_tables(op: str, level: Floats, *, increasing: bool) -> NDArray[np.float32]:
    """Return the (b, 256) look-up tables of an operation that does not depend on the image; ``level`` is (b,)."""
    before, level = np.arange(256), level[:, None]
    match op:
        case "Invert":
            tables = np.repeat(255 - before[None], len(level), axis=0)
        case "Posterize":
            kept = (level * 4).astype(np.int64)
            dropped = 8 - np.minimum(8, 4 - kept if increasing else kept)
            tables = before >> dropped << dropped
        case "Solarize":
            threshold = np.minimum(256, (level * 256).astype(np.int64))
            tables = np.where(before < (256 - threshold if increasing else threshold), before, 255 - before)
        case "SolarizeAdd":
            added = np.minimum(128, (level * 110).astype(np.int64))
            tables = np.where(before < 128, np.minimum(255, before + added), before)
        case _:
            raise ValueError(f"{op} has no fixed table")
    return np.asarray(tables, dtype=np.float32)
