"""Digits on photographs: places, labels, colours and crops are read back from images of shapes and flat colours."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from core.tests.source_samples import opened
from vitutor_core.data.sources import scenes
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.data.sources.images import array_split
from vitutor_core.data.sources.scenes import Look, crop, load_photographs, paste, scene_digits_source
from vitutor_core.data.types import Source, Split

LOOK = Look(side=32, widths=(16, 24), turn=0, shade=0.5, copies=(20, 20))
DARK, BRIGHT = (np.full((1, 100, 120, 3), shade, dtype=np.uint8) for shade in (40, 200))


def pixels(split: Split) -> NDArray[np.float64]:
    return np.stack([np.asarray(split.read(index)) for index in range(len(split.labels))]).astype(np.float64)


def shapes(*images: NDArray[np.uint8]) -> Source:
    """A source of one image for each class, the same in both splits."""
    split = array_split(np.stack(images), np.arange(len(images)), "shapes")
    return Source("shapes", tuple(map(str, range(len(images)))), (0.5,) * 3, (0.5,) * 3, split, split)


def columns(count: int) -> NDArray[np.uint8]:
    """White columns at the left of 8."""
    image = np.zeros((8, 8), dtype=np.uint8)
    image[:, :count] = 255
    return image


@pytest.fixture(scope="module")
def pasted() -> Source:
    return paste(shapes(*(columns(2 + label) for label in range(6))), DARK, BRIGHT, LOOK)


def test_labels_widths_and_places_are_those_of_the_digits_in_the_images(pasted):
    for split, shade in ((pasted.train, 20), (pasted.evaluation, 100)):
        inked = np.abs(pixels(split) - shade).max(-1) > 60
        tops, heights = inked.any(2).argmax(1), inked.any(2).sum(1)
        lefts, widths = inked.any(1).argmax(1), inked.any(1).sum(1)
        # A shape fills the height of its digit, and its label is how much of the width it fills.
        np.testing.assert_array_equal(np.rint(8 * widths / heights) - 2, split.labels)
        assert (heights.min(), heights.max()) == (16, 24)
        for places in (tops, lefts):
            assert places.min() == 0
            rooms = 32 - heights
            assert (places <= rooms).all()
            assert (places / rooms > 0.9).any()
        assert len(split.labels) == 20 * 6
        assert set(np.bincount(split.labels)) == {20}


def test_a_digit_is_turned_both_ways_up_to_the_limit():
    bar = np.zeros((8, 8), dtype=np.uint8)
    bar[:, 3:5] = 255
    images = pixels(paste(shapes(bar), DARK, BRIGHT, LOOK._replace(turn=25, copies=(200, 1))).train)
    ink = np.abs(images - 20).sum(-1)
    y, x = np.mgrid[:32, :32]
    weights = ink / ink.sum((1, 2), keepdims=True)
    x, y = (axis - (weights * axis).sum((1, 2), keepdims=True) for axis in (x, y))
    angles = 0.5 * np.arctan2(2 * (weights * x * y).sum((1, 2)), (weights * (y**2 - x**2)).sum((1, 2)))
    assert np.abs(np.degrees(angles)).max() < 26
    assert np.degrees(angles).min() < -22
    assert np.degrees(angles).max() > 22


def test_a_turned_digit_that_is_larger_than_its_image_may_lie_over_either_edge():
    images = pixels(paste(shapes(columns(8)), DARK, BRIGHT, Look(16, (16, 16), 45, 0.5, (200, 1))).train)
    inked = (np.abs(images - 20).max(-1) > 60).mean(0)
    np.testing.assert_allclose(inked, inked[::-1, ::-1], atol=0.25)
    assert inked[8, 8] == 1


def test_colours_are_bright_and_of_any_hue_and_saturation(pasted):
    for split, shade in ((pasted.train, 20), (pasted.evaluation, 100)):
        images = pixels(split).reshape(len(split.labels), -1, 3)
        inked = np.abs(images - shade).sum(-1).argmax(1)
        colours = images[np.arange(len(images)), inked]
        assert (colours.max(1) == 255).all()
        assert colours.min() < 10  # saturated
        assert colours.min(1).max() > 245  # white
        assert set(colours.argmax(1)) == {0, 1, 2}


def test_a_crop_is_one_to_three_times_the_side_anywhere_in_the_photograph():
    across, down = np.meshgrid(np.arange(240), np.arange(200))
    photograph = np.stack([across, down, across * 0], axis=-1).astype(np.uint8)[None]
    draws = np.random.default_rng(0).random((400, 4))
    crops = np.stack([np.asarray(crop(photograph, draw, 16), dtype=np.float64) for draw in draws])
    lengths = (crops[:, 8, -1, 0] - crops[:, 8, 0, 0]) * 16 / 15
    assert 15 < lengths.min() < 18
    assert 46 < lengths.max() < 49
    for channel, end in ((0, 240), (1, 200)):
        assert crops[..., channel].min() < 2
        assert end - 4 < crops[..., channel].max() < end


def test_each_split_has_photographs_of_its_own():
    nothing = shapes(columns(0))
    flat = paste(nothing, DARK, BRIGHT, LOOK)
    assert (pixels(flat.train) == 20).all()
    assert (pixels(flat.evaluation) == 100).all()


def test_the_splits_share_no_digit_and_no_pixel_of_a_photograph():
    with mock.patch.object(scenes, "paste") as seen:
        scene_digits_source.__wrapped__()
    ((digits, left, right, _),) = (call.args for call in seen.call_args_list)
    assert digits.train.content_hash == digits_source().train.content_hash
    halves = (digits.train, digits.evaluation)
    images = [{split.read(index).tobytes() for index in range(len(split.labels))} for split in halves]
    assert not images[0] & images[1]
    assert np.array_equal(np.concatenate([left, right], axis=2), load_photographs())


def test_scenes_are_the_same_every_time_and_each_by_itself():
    source, digits = opened("scene_digits"), digits_source()
    again = scene_digits_source.__wrapped__()
    assert again.train.content_hash == source.train.content_hash
    assert again.evaluation.content_hash == source.evaluation.content_hash
    np.testing.assert_array_equal(source.evaluation.labels, digits.evaluation.labels)
    np.testing.assert_array_equal(source.train.labels, np.tile(digits.train.labels, len(source.train.labels) // 901))
    photographs = load_photographs()[:, :, :320]
    fewer = paste(digits, photographs, photographs, Look()._replace(copies=(1, 1)))
    assert all(fewer.train.read(index) == source.train.read(index) for index in range(901))


def test_statistics_are_those_of_the_training_half():
    source = opened("scene_digits")
    found = pixels(source.train) / 255
    np.testing.assert_allclose(source.mean, found.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(source.std, found.std((0, 1, 2)), atol=5e-5)
    assert isinstance(source.train.read(0), Image.Image)
