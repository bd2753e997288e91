"""RandAugment on batches against timm's, which works on one PIL image at a time."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment as timm_ops

from vitutor_core.data.augment import pixelops
from vitutor_core.data.augment.randaugment import (
    AFFINE,
    FIXED_TABLE,
    MEASURED_TABLE,
    OPS,
    RandAugment,
    RandAugmentConfig,
    affine_matrices,
    choose,
    fixed_tables,
    parse,
)
from vitutor_core.data.sampler import SampleKeys
from vitutor_core.errors import ConfigError

FILL = (128, 100, 77)
PIL_ARGUMENTS = {"fillcolor": FILL, "resample": Image.Resampling.BILINEAR}
LEVELS = np.linspace(0, 1, 21)


def noise(count, side=16):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)).float()


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).to(torch.uint8).numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def views(count):
    return SampleKeys(0, 0, np.arange(count), np.zeros(count, dtype=np.int64))


# The configuration string


def test_parse():
    assert parse("rand") == RandAugmentConfig()
    assert parse("rand-m9-mstd0.5-inc1") == RandAugmentConfig(magnitude=9, magnitude_std=0.5, increasing=True)
    assert parse("rand-n3-p0.8-mmax12-inc0") == RandAugmentConfig(num_layers=3, probability=0.8, magnitude_max=12)
    assert parse("rand-mstd101").magnitude_std == float("inf")


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-n3-p0.8-m4", "rand-mstd101-mmax12"])
def test_parse_agrees_with_timm(text):
    ours, theirs = parse(text), timm_ops.rand_augment_transform(text, {})
    assert ours.num_layers == theirs.num_layers
    for op in theirs.ops:
        assert (op.prob, op.magnitude, op.magnitude_std) == (ours.probability, ours.magnitude, ours.magnitude_std)
        assert (op.magnitude_max or 10) == ours.magnitude_max
    renamed = {"TranslateXRel": "TranslateX", "TranslateYRel": "TranslateY"}
    names = {renamed.get(op.name, op.name.removesuffix("Increasing")) for op in theirs.ops}
    assert names == set(OPS)
    assert any(op.name.endswith("Increasing") for op in theirs.ops) is ours.increasing


@pytest.mark.parametrize(
    "text",
    ["", "m9", "auto-m9", "rand-m9.5", "rand-x3", "rand-tweights", "rand-inc2", "rand-m", "rand-n0", "rand-p1.5"],
)
def test_parse_refuses(text):
    with pytest.raises(ConfigError, match=r"augment\.rand_augment: cannot use"):
        parse(text)


# One operation


def timm_arguments(op, level, *, negative, increasing=True):
    """The argument timm derives from a magnitude, with its coin forced to one side."""
    name = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}.get(op, op)
    if increasing and f"{op}Increasing" in timm_ops.LEVEL_TO_ARG:
        name = f"{op}Increasing"
    to_argument = timm_ops.LEVEL_TO_ARG[name]
    state = random.getstate()
    random.seed(next(seed for seed in range(10) if (random.Random(seed).random() > 0.5) == negative))
    arguments = () if to_argument is None else to_argument(10 * level, {})
    random.setstate(state)
    return timm_ops.NAME_TO_OP[name], arguments


def apply_timm(image, op, level, *, negative=False, increasing=True):
    function, arguments = timm_arguments(op, level, negative=negative, increasing=increasing)
    if op == "Posterize" and arguments[0] < 1:
        # Pillow refuses to keep no bits at all; older versions gave black.
        return torch.zeros_like(image)
    return from_pil(function(to_pil(image), *arguments, **PIL_ARGUMENTS))


@pytest.mark.parametrize("op", FIXED_TABLE)
@pytest.mark.parametrize("increasing", [True, False])
def test_fixed_tables_equal_timm(op, increasing):
    images = noise(len(LEVELS))
    tables = torch.from_numpy(fixed_tables(op, LEVELS, increasing=increasing))
    results = pixelops.look_up(images, tables[:, None].expand(-1, 3, -1))
    for image, level, result in zip(images, LEVELS, results, strict=True):
        assert torch.equal(result, apply_timm(image, op, level, increasing=increasing))


@pytest.mark.parametrize("op", ["Rotate", "TranslateX"])
def test_only_listed_operations_have_a_fixed_table(op):
    with pytest.raises(ValueError, match="no fixed table"):
        fixed_tables(op, LEVELS, increasing=True)


def histogram_cases():
    """Noise, few levels, one level, one odd pixel, a narrow range, and a dominant brightest level."""
    images = noise(12, 20)
    images[1] = images[1] // 64 * 64
    images[2] = 93
    images[3] = 93
    images[3, :, 4, 4] = 94
    images[4] = 100 + images[4] // 32
    images[5] = torch.where(images[5] > 40, 255.0, images[5])
    images[6, 0] = 0
    images[7, 1] = 255
    images[8] = images[8].clamp(1, 254)
    return images


@pytest.mark.parametrize(
    ("op", "reference"), [("AutoContrast", ImageOps.autocontrast), ("Equalize", ImageOps.equalize)]
)
@pytest.mark.parametrize("side", [4, 16, 20])
def test_measured_tables_equal_pil(op, reference, side):
    images = histogram_cases()[:, :, :side, :side].contiguous()
    results = pixelops.look_up(images, MEASURED_TABLE[op](images))
    for image, result in zip(images, results, strict=True):
        assert torch.equal(result, from_pil(reference(to_pil(image))))


@pytest.mark.parametrize("op", AFFINE)
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("side", [15, 16, 32])
def test_geometry_is_within_one_level_of_timm(op, negative, side):
    levels = np.linspace(0.013, 0.987, 25)
    images = noise(len(levels), side)
    matrices = torch.from_numpy(affine_matrices(op, -levels if negative else levels))
    results = pixelops.affine(images, matrices, torch.tensor(FILL, dtype=torch.float32))
    differing = 0
    for image, level, result in zip(images, levels, results, strict=True):
        difference = (result - apply_timm(image, op, level, negative=negative)).abs()
        assert difference.max() <= 1
        differing += (difference > 0).float().mean().item()
    assert differing / len(levels) < 0.02


def test_geometry_at_level_zero_changes_nothing():
    images = noise(2)
    for op in AFFINE:
        matrices = torch.from_numpy(affine_matrices(op, np.zeros(2)))
        assert torch.equal(pixelops.affine(images, matrices, torch.tensor(FILL).float()), images)


# Choices


def test_choices_have_timms_distribution():
    count = 20_000
    config = parse("rand-m9-mstd0.5-n2-p0.3")
    for layer in choose(config, views(count), 64):
        assert np.array_equal(np.sort(layer.rows), np.arange(count))
        applied = sum(span.stop - span.start for span in layer.spans.values())
        assert applied / count == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / count))
        assert list(layer.spans) == list(OPS)
        for span in layer.spans.values():
            expected = applied / len(OPS)
            assert span.stop - span.start == pytest.approx(expected, abs=5 * np.sqrt(expected))
        # timm: gauss(9, 0.5) cut at 10, a fair coin for the sign.
        reference = np.minimum(np.random.default_rng(0).normal(9, 0.5, count), 10) / 10
        assert layer.level.mean() == pytest.approx(reference.mean(), abs=5 * 0.05 * np.sqrt(2 / count))
        assert layer.level.std() == pytest.approx(reference.std(), abs=5 * 0.05 / np.sqrt(count))
        assert layer.level.max() == 1
        assert np.array_equal(np.abs(layer.signed), layer.level)
        assert (layer.signed < 0).mean() == pytest.approx(0.5, abs=5 * np.sqrt(0.25 / count))


def test_magnitudes_without_spread_and_with_uniform_spread():
    (fixed,) = choose(parse("rand-m7-n1"), views(10), 64)
    assert set(fixed.level) == {0.7}
    (uniform,) = choose(parse("rand-m8-mstd101-n1"), views(5000), 64)
    assert uniform.level.mean() == pytest.approx(0.4, abs=5 * 0.8 / np.sqrt(12 * 5000))
    assert uniform.level.max() < 0.8


# The whole


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m6-mstd2-n3-p0.9", "rand-m9-n1-p1-inc1"])
def test_batches_equal_timms_operations_in_the_chosen_order(text):
    count = 90
    config, images = parse(text), noise(count)
    result = RandAugment(config, torch.tensor(FILL, dtype=torch.float32), 64)(images.clone(), views(count))
    plans = [[] for _ in range(count)]
    for layer in choose(config, views(count), 64):
        for op, span in layer.spans.items():
            for row, level, signed in zip(layer.rows[span], layer.level[span], layer.signed[span], strict=True):
                plans[row].append((op, level, signed < 0))
    used = Counter(op for plan in plans for op, *_ in plan)
    assert set(used) == set(OPS)
    for image, plan, augmented in zip(images, plans, result, strict=True):
        expected = image
        for op, level, negative in plan:
            expected = apply_timm(expected, op, level, negative=negative, increasing=config.increasing)
        if sum(op in AFFINE for op, *_ in plan):
            # One level of difference may grow in the operations that follow, where they are not monotonous or amplify.
            assert ((augmented - expected).abs() <= 2).float().mean() > 0.97
        else:
            assert torch.equal(augmented, expected)
    assert sum(not plan for plan in plans) > 0 or config.probability > 0.8


def test_the_input_is_not_changed():
    images = noise(20)
    before = images.clone()
    RandAugment(parse("rand-m9-p1"), torch.tensor(FILL, dtype=torch.float32), 64)(images, views(20))
    assert torch.equal(images, before)
