"""The batched augmentation against slow references: PIL, torchvision, timm and plain loops."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from vitutor_core.data.augment import boxes, pixelops
from vitutor_core.data.augment.erasing import AREA, ASPECT, RandomErasing
from vitutor_core.data.augment.mixing import Mix, Normalise
from vitutor_core.data.augment.pipeline import Augment, flip, jitter_factors, pad_crop
from vitutor_core.data.augment.resample import resize_and_crop, resized_crop
from vitutor_core.data.sampler import SampleKeys
from vitutor_core.schema import AugmentConfig, DataConfig

CPU = torch.device("cpu")
MEAN = (0.5, 0.4, 0.3)


def views(count, *, epoch=0):
    return SampleKeys(0, epoch, np.arange(count), np.arange(count) % 3)


def random_images(count, side, *, seed=0):
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def smooth_images(count, side):
    """Images as photographs are, with neighbours that resemble each other."""
    small = random_images(count, 5).float()
    return torch.nn.functional.interpolate(small, side, mode="bicubic").round().clamp(0, 255).to(torch.uint8)


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).to(torch.uint8).numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# Boxes


def reference_box(draws, sides, margin, area, aspect):
    """timm's RandomResizedCropAndInterpolation.get_params, with the given random numbers; None if nothing fits."""
    rows, columns = sides
    for attempt in range(10):
        target_area = (area[0] + (area[1] - area[0]) * draws[attempt]) * rows * columns
        log_aspect = (math.log(aspect[0]), math.log(aspect[1]))
        ratio = math.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * draws[10 + attempt])
        width, height = round(math.sqrt(target_area * ratio)), round(math.sqrt(target_area / ratio))
        if 0 < width <= columns - margin and 0 < height <= rows - margin:
            return [int(draws[20] * (rows - height + 1)), int(draws[21] * (columns - width + 1)), height, width]
    return None


@pytest.mark.parametrize(
    ("sides", "area", "aspect", "whole"),
    [
        ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3), [0, 0, 32, 32]),
        ((32, 32), (0.9, 1.0), (0.3, 3.0), [0, 0, 32, 32]),
        ((32, 32), (0.9, 1.0), (1.5, 3.0), [5, 0, 21, 32]),
        ((32, 32), (0.9, 1.0), (0.3, 0.5), [0, 8, 32, 16]),
        ((60, 20), (0.08, 1.0), (3 / 4, 4 / 3), [16, 0, 27, 20]),
        ((20, 60), (0.9, 1.0), (3 / 4, 4 / 3), [0, 16, 20, 27]),
        ((24, 36), (0.8, 1.0), (3 / 4, 4 / 3), [0, 2, 24, 32]),
    ],
)
def test_crop_boxes(sides, area, aspect, whole):
    draws = views(500).uniform(0, boxes.NUM_DRAWS)
    result = boxes.crop_boxes(draws, [sides] * 500, area, aspect)
    expected = [reference_box(row, sides, 0, area, aspect) or whole for row in draws]
    assert result.tolist() == expected
    assert (result[:, :2] >= 0).all()
    assert (result[:, :2] + result[:, 2:] <= sides).all()
    if sides[0] == sides[1]:
        assert np.array_equal(boxes.crop_boxes(draws, sides[0], area, aspect), result)


# Resizing


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "size"), [(32, 32), (40, 24), (48, 16), (8, 16)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_resized_crop(interpolation, side, size, mirrored):
    crops = boxes.crop_boxes(views(24).uniform(0, boxes.NUM_DRAWS), side, (0.08, 1.0), (3 / 4, 4 / 3))
    crops[0] = 0, 0, side, side
    # Away from black and white, where PIL cuts the overshoot of bicubic weights off between the two axes.
    images = random_images(24, side) // 2 + 64
    mirror = np.arange(24) % 2 == 0 if mirrored else None
    result = resized_crop(images, crops, size, interpolation, mirror=mirror)
    assert result.is_contiguous()
    mode = InterpolationMode(interpolation)
    for i, (image, box) in enumerate(zip(images, crops.tolist(), strict=True)):
        expected = tv.resized_crop(image.float(), *box, size=[size, size], interpolation=mode, antialias=True)
        pil = from_pil(tv.resized_crop(to_pil(image), *box, size=[size, size], interpolation=mode))
        if mirrored and mirror[i]:
            expected, pil = expected.flip(-1), pil.flip(-1)
        torch.testing.assert_close(result[i], expected, rtol=0, atol=2e-3)
        # PIL works in fixed point and rounds once more between the two axes.
        difference = (pixelops.round_to_pixels(result[i].clone()) - pil).abs()
        assert difference.max() <= 1


def test_a_whole_box_of_the_right_size_changes_nothing():
    images = random_images(3, 16)
    for interpolation in ("bilinear", "bicubic"):
        result = resized_crop(images, np.array([[0, 0, 16, 16]] * 3), 16, interpolation)
        assert torch.equal(result, images.float())


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (31, 31), (24, 24), (64, 24)])
def test_resize_and_crop_is_torchvisions(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    result = resize_and_crop(image, 24, 20, "bicubic")
    expected = tv.center_crop(tv.resize(image, [24], interpolation=InterpolationMode.BICUBIC), [20])
    assert np.array_equal(np.array(result), np.array(expected))


# Crops and flips


def test_pad_crop():
    images, padding = random_images(50, 8), 3
    corners = torch.from_numpy(np.stack([np.arange(50) % 7, np.arange(50) // 7 % 7], axis=1))
    result = pad_crop(images, corners, padding)
    for image, (top, left), cropped in zip(images, corners.tolist(), result, strict=True):
        padded = torch.zeros(3, 14, 14, dtype=torch.uint8)
        padded[:, 3:11, 3:11] = image
        assert torch.equal(cropped, padded[:, top : top + 8, left : left + 8])


def test_flip():
    images, mirror = random_images(5, 4), torch.tensor([True, False, False, True, True])
    expected = torch.stack([image.flip(-1) if chosen else image for image, chosen in zip(images, mirror, strict=True)])
    assert torch.equal(flip(images, mirror), expected)


# Colours


@pytest.mark.parametrize("name", ["brightness", "contrast", "color", "sharpness"])
@pytest.mark.parametrize("images", [random_images(40, 16), smooth_images(40, 16)], ids=["noise", "smooth"])
def test_enhancements_equal_pil(name, images):
    factors = torch.linspace(0, 2.2, 40)
    result = getattr(pixelops, name)(images.float(), factors)
    for image, factor, enhanced in zip(images, factors.tolist(), result, strict=True):
        expected = getattr(ImageEnhance, name.capitalize())(to_pil(image)).enhance(factor)
        assert torch.equal(enhanced.to(torch.uint8), from_pil(expected))


def test_jitter_factors_have_torchvisions_range():
    draws = np.array([[0.0, 0.5, 1.0]])
    assert jitter_factors(draws, 0.4).tolist() == [pytest.approx([0.6, 1.0, 1.4])]
    assert jitter_factors(draws, 1.5).tolist() == [pytest.approx([0.0, 1.25, 2.5])]


def augment(side=16, interpolation="bilinear", **settings):
    data = DataConfig(image_size=side, interpolation=interpolation)
    return Augment(data, AugmentConfig(**settings), MEAN, CPU)


def test_colour_jitter_is_brightness_then_contrast_then_saturation():
    images, keys = random_images(20, 16), views(20)
    result = augment(color_jitter=0.4)(images, keys)
    factors = jitter_factors(keys.uniform(24, 3), 0.4).tolist()
    assert min(map(min, factors)) < 0.8 < 1.2 < max(map(max, factors))
    for image, row, jittered in zip(images, factors, result, strict=True):
        expected = to_pil(image)
        for enhance, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), row, strict=True
        ):
            expected = enhance(expected).enhance(factor)
        assert torch.equal(jittered.to(torch.uint8), from_pil(expected))


# The whole


SETTINGS = {
    "nothing": {},
    "pad-crop and flip": {"pad_crop": 2, "flip": 0.5},
    "resized crop": {"crop_scale": (0.08, 1.0), "flip": 0.5},
    "jitter": {"pad_crop": 2, "color_jitter": 0.4},
    "RandAugment": {"crop_scale": (0.3, 1.0), "flip": 0.5, "rand_augment": "rand-m9-mstd0.5-inc1"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_do_not_depend_on_the_batch(settings, interpolation):
    pipeline = augment(interpolation=interpolation, **settings)
    images, keys = random_images(96, 16), views(96)
    whole = pipeline(images, keys)
    assert torch.equal(whole, whole.float().round().clamp(0, 255).to(whole.dtype))
    for rows in (np.array([5]), np.array([60, 7, 33]), np.arange(95, -1, -2)):
        part = SampleKeys(keys.seed, keys.epoch, keys.indices[rows], keys.repeats[rows])
        assert torch.equal(pipeline(images[rows], part), whole[rows])


@pytest.mark.parametrize("settings", list(SETTINGS.values())[1:], ids=list(SETTINGS)[1:])
def test_pixels_depend_on_the_key(settings):
    pipeline, image = augment(**settings), random_images(1, 16).expand(64, -1, -1, -1)
    first = pipeline(image, SampleKeys(0, 0, np.arange(64), np.zeros(64, dtype=np.int64)))
    for key in (
        SampleKeys(1, 0, np.arange(64), np.zeros(64, dtype=np.int64)),
        SampleKeys(0, 1, np.arange(64), np.zeros(64, dtype=np.int64)),
        SampleKeys(0, 0, np.arange(64) + 64, np.zeros(64, dtype=np.int64)),
        SampleKeys(0, 0, np.arange(64), np.ones(64, dtype=np.int64)),
    ):
        same = (pipeline(image, key) == first).flatten(1).all(1)
        assert same.float().mean() < 0.7


def test_the_input_is_not_changed():
    images = random_images(16, 16)
    before = images.clone()
    for settings in SETTINGS.values():
        augment(**settings)(images, views(16))
    assert torch.equal(images, before)


def test_a_share_of_the_images_is_flipped():
    image = torch.arange(16, dtype=torch.uint8).expand(2000, 3, 16, 16)
    flipped = augment(flip=0.3)(image, views(2000))[:, 0, 0, 0] == 15
    assert flipped.float().mean() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 2000))


def test_pad_crop_offsets_are_uniform():
    image = torch.zeros(5000, 3, 8, 8, dtype=torch.uint8)
    image[:, :, 4, 4] = 1
    rows, columns = augment(side=8, pad_crop=2)(image, views(5000))[:, 0].nonzero().T[1:]
    for offsets in (rows, columns):
        counts = torch.bincount(offsets - 2, minlength=5)
        assert (counts - 1000).abs().max() < 5 * math.sqrt(5000 * 0.16)


def test_rand_augment_replaces_colour_jitter():
    images, keys = random_images(8, 16), views(8)
    both = augment(rand_augment="rand-m9", color_jitter=0.4)(images, keys)
    assert torch.equal(both, augment(rand_augment="rand-m9")(images, keys))


# Normalise, erase, mix


def test_normalise_is_torchvisions():
    images, std = random_images(4, 8), (0.2, 0.3, 0.25)
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), MEAN, std)
    normalise = Normalise(MEAN, std, CPU)
    torch.testing.assert_close(normalise(images), expected, rtol=0, atol=2e-6)
    assert torch.equal(normalise(images), normalise(images.float()))


def test_random_erasing():
    count, side = 1500, 16
    keys = views(count)
    erase = RandomErasing(0.25, side, 0, CPU)
    images = torch.full((count, 3, side, side), 7.0)
    result = erase(images.clone(), keys)
    changed = result != 7
    draws = keys.uniform(32, 2 + boxes.NUM_DRAWS)
    for i, row in enumerate(draws):
        expected = torch.zeros(side, side, dtype=torch.bool)
        if row[0] < 0.25:
            top, left, height, width = reference_box(row[2:], (side, side), 1, AREA, ASPECT)
            expected[top : top + height, left : left + width] = True
        assert torch.equal(changed[i], expected.expand(3, -1, -1))
    noise = result[changed]
    assert noise.mean() == pytest.approx(0, abs=0.05)
    assert noise.std() == pytest.approx(1, abs=0.05)
    erased = changed.flatten(1).any(1)
    assert erased.float().mean() == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / count))
    part = SampleKeys(0, 0, keys.indices[100:], keys.repeats[100:])
    assert torch.equal(erase(images[100:].clone(), part), result[100:])


def mix(**settings):
    return Mix(AugmentConfig(**settings), 10, 3, 1)


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "mix_switch": 0.3}]
)
def test_mixing_is_timms_with_a_keyed_seed(settings):
    from timm.data.mixup import Mixup

    from vitutor_core.data import keyed

    images, labels = random_images(8, 8).float(), torch.arange(8)
    mixer = mix(**settings, label_smoothing=0.1)
    reference = Mixup(
        mixup_alpha=settings.get("mixup", 0.0),
        cutmix_alpha=settings.get("cutmix", 0.0),
        switch_prob=settings.get("mix_switch", 0.5),
        label_smoothing=0.1,
        num_classes=10,
    )
    differing = set()
    for step in range(5):
        before = np.random.get_state()[1:3]  # noqa: NPY002, the generator that timm uses
        mixed, targets = mixer(images.clone(), labels, (2, step, 0))
        after = np.random.get_state()[1:3]  # noqa: NPY002
        assert np.array_equal(before[0], after[0])
        assert before[1] == after[1]
        np.random.seed(keyed.seed_from(3, 2, step, 1, 0))  # noqa: NPY002
        expected, expected_targets = reference(images.clone(), labels)
        assert torch.equal(mixed, expected)
        assert torch.equal(targets, expected_targets)
        differing.add(targets[0, 0].item())
    assert len(differing) > 1


def test_smoothing_alone_takes_odd_batches():
    images, labels = random_images(3, 4).float(), torch.tensor([0, 9, 4])
    same, targets = mix(label_smoothing=0.1)(images, labels, (0, 0, 0))
    assert same is images
    torch.testing.assert_close(targets, torch.nn.functional.one_hot(labels, 10) * 0.9 + 0.01)
