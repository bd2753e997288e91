"""Both loaders: what they yield is a function of (seed, epoch, step) alone."""

import random
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from core.tests.loader_samples import CPU, LOADERS, assert_same, builder, config, fake_source
from vitutor_core.data import build, keyed
from vitutor_core.data.augment.boxes import crop_boxes
from vitutor_core.data.build import build_data
from vitutor_core.data.loaders import resident, streamed
from vitutor_core.data.sampler import KeyedSampler, join
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.errors import ConfigError, ResourceError

EVERYTHING = {
    "crop_scale": [0.3, 1.0],
    "flip": 0.5,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "repeats": 2,
}


@pytest.fixture
def built():
    yield from builder()


# The sampler


@pytest.mark.parametrize("num_views", [None, 50, 170, 400])
def test_order_follows_the_definition(num_views):
    order = KeyedSampler(50, seed=3, batch_size=12, num_views=num_views, accumulate=2, repeats=3, rank=1, world_size=2)
    assert (order.steps_per_epoch, order.micro_batch_size) == ((num_views or 50) // 12, 3)
    entries = [
        (sample, number * 3 + repeat)
        for number in range(3)
        for sample in keyed.permutation(50, 3, 7, number)
        for repeat in range(3)
    ]
    steps = list(order.steps(7))
    assert [step for step, _ in steps] == list(range(order.steps_per_epoch))
    for step, micro_batches in steps:
        mine = entries[step * 12 : step * 12 + 12][1::2]
        whole = join(micro_batches)
        assert list(zip(whole.indices, whole.repeats, strict=True)) == mine
        assert [len(views.indices) for views in micro_batches] == [3, 3]
        assert (whole.seed, whole.epoch) == (3, 7)


def test_no_view_comes_twice():
    order = KeyedSampler(20, seed=0, batch_size=10, num_views=130, repeats=2)
    whole = join([views for _, (views,) in order.steps(0)])
    assert len(set(zip(whole.indices, whole.repeats, strict=True))) == 130


def test_an_epoch_without_repeats_sees_every_sample_once():
    order = KeyedSampler(48, seed=0, batch_size=12)
    seen = np.concatenate([views.indices for _, (views,) in order.steps(0)])
    assert np.array_equal(np.sort(seen), np.arange(48))


# What a loader yields


@pytest.mark.parametrize(("loader", "workers"), LOADERS)
def test_batches(built, loader, workers):
    settings = config(loader=loader, workers=workers, pad_crop=2, seed=5)
    data = built(settings)
    assert data.train.steps_per_epoch == 200 // 32
    labels = digits_source().train.labels
    assert (data.info.num_train, data.info.num_classes, data.info.image_size, data.info.channels) == (200, 10, 16, 3)
    subset = build.subset_indices(labels, settings.data)
    assert data.info.fingerprint == build.fingerprint(digits_source(), subset)
    steps = list(data.train.epoch(0))
    assert len(steps) == data.train.steps_per_epoch
    for (batch,) in steps:
        assert batch.images.shape == (32, 3, 16, 16)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous()
        assert torch.equal(batch.targets, torch.from_numpy(labels[subset])[batch.indices])


@pytest.mark.parametrize(("loader", "workers"), LOADERS)
@pytest.mark.parametrize("start", [1, 5])
def test_an_epoch_can_be_entered_anywhere(built, loader, workers, start):
    data = built(config(loader=loader, workers=workers, accumulate=2, **EVERYTHING))
    whole = list(data.train.epoch(3))
    assert_same(list(data.train.epoch(3, start_step=start)), whole[start:])


def test_workers_change_nothing(built):
    assert_same(*(list(built(config(loader="streamed", workers=n, **EVERYTHING)).train.epoch(1)) for n in (0, 2)))


@pytest.mark.parametrize("loader", ["resident", "streamed"])
def test_epochs_and_seeds_differ(built, loader):
    data = built(config(loader=loader, pad_crop=2))
    other = built(config(loader=loader, pad_crop=2, seed=1))
    first, second, third = (
        next(iter(x))[0].images for x in (data.train.epoch(0), data.train.epoch(1), other.train.epoch(0))
    )
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("loader", ["resident", "streamed"])
def test_two_processes_share_the_batch_of_one(built, loader):
    settings = {key: value for key, value in EVERYTHING.items() if key not in ("mixup", "cutmix")}
    single = list(built(config(loader=loader, **settings)).train.epoch(0))
    ranks = [list(built(config(loader=loader, **settings), rank=r, world_size=2).train.epoch(0)) for r in (0, 1)]
    for (whole,), (first,), (second,) in zip(single, *ranks, strict=True):
        for tensor, even, odd in zip(whole[:3], first[:3], second[:3], strict=True):
            assert torch.equal(tensor[0::2], even)
            assert torch.equal(tensor[1::2], odd)


@pytest.mark.parametrize("loader", ["resident", "streamed"])
def test_micro_batches_make_up_the_batch(built, loader):
    settings = {"crop_scale": [0.3, 1.0], "rand_augment": "rand-m9-inc1", "random_erasing": 0.5}
    whole = built(config(loader=loader, **settings)).train.epoch(2)
    parts = built(config(loader=loader, accumulate=4, **settings)).train.epoch(2)
    for (batch,), micro_batches in zip(whole, parts, strict=True):
        assert len(micro_batches) == 4
        for tensor, pieces in zip(batch[:3], list(zip(*micro_batches, strict=True))[:3], strict=True):
            assert torch.equal(tensor, torch.cat(pieces))


def test_augmenting_several_updates_at_once_changes_nothing(built, monkeypatch):
    together = list(built(config(**EVERYTHING)).train.epoch(0))
    monkeypatch.setattr(resident, "_PIXELS_AT_ONCE", 1)
    assert_same(list(built(config(**EVERYTHING)).train.epoch(0)), together)


def test_batches_own_their_memory(built):
    """Mixing is in place, so a batch may share no pixel with another or with the data set."""
    data = built(config())
    before = [batch.images.clone() for (batch,) in data.train.epoch(0)]
    for (batch,), expected in zip(data.train.epoch(0), before, strict=True):
        assert torch.equal(batch.images, expected)
        batch.images.zero_()
        batch.targets.zero_()
    for (batch,), expected in zip(data.train.epoch(0), before, strict=True):
        assert torch.equal(batch.images, expected)


def test_without_augmentation_both_loaders_yield_the_same_bits(built):
    data = {"interpolation": "bicubic", "crop_ratio": 0.8}
    one, other = (built(config(loader=loader, data=data)) for loader in ("resident", "streamed"))
    assert_same(list(one.train.epoch(0)), list(other.train.epoch(0)))
    assert_same([tuple(one.evaluation)], [tuple(other.evaluation)])
    assert one.info == other.info


@pytest.mark.parametrize("workers", [0, 2])
def test_both_loaders_augment_alike(built, workers):
    """Where both crop images of the same size, PIL's resampling is all that differs, by one grey level at most."""
    settings = {"crop_scale": [0.3, 1.0], "flip": 0.5, "random_erasing": 0.25, "repeats": 2, "label_smoothing": 0.1}
    one, other = (built(config(loader=loader, workers=workers, **settings)) for loader in ("resident", "streamed"))
    level = 1 / 255 / min(digits_source().std)
    different = 0
    for (first,), (second,) in zip(one.train.epoch(1), other.train.epoch(1), strict=True):
        torch.testing.assert_close(first.images, second.images, rtol=0, atol=1.001 * level)
        assert torch.equal(first.targets, second.targets)
        different += (first.images != second.images).sum().item()
    assert different < 0.15 * 192 * 3 * 16 * 16


@pytest.mark.parametrize("colours", [{"rand_augment": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.4}])
def test_both_loaders_yield_the_same_bits_where_nothing_is_resampled(built, colours):
    settings = {"pad_crop": 2, "flip": 0.5, "random_erasing": 0.25, "mixup": 0.8, "repeats": 2, **colours}
    loaders = [("resident", 0), ("streamed", 0), ("streamed", 2)]
    batches = [list(built(config(loader=loader, workers=n, **settings)).train.epoch(1)) for loader, n in loaders]
    assert_same(batches[0], batches[1])
    assert_same(batches[0], batches[2])


def test_where_the_augmentation_runs_changes_nothing(built, monkeypatch):
    settings = config(loader="streamed", workers=2, accumulate=2, **EVERYTHING)
    in_workers = list(built(settings).train.epoch(1))
    made = streamed.streamed_train
    monkeypatch.setattr(build, "streamed_train", lambda *a, **k: made(*a, **(k | {"in_workers": False})))
    assert_same(list(built(settings).train.epoch(1)), in_workers)


def test_streamed_images_are_crops_of_the_whole_image(built, monkeypatch):
    """Also of images of unequal sizes, some of which are decoded one at a time."""
    random = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in random.integers(10, 60, (40, 2))]
    images = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    source = fake_source(sizes, read=images.__getitem__)
    monkeypatch.setattr(build, "open_source", lambda _config: source)
    monkeypatch.setattr(streamed, "_PIXELS_AT_ONCE", 2000)
    settings = config(loader="streamed", batch_size=10, data={"per_class": None}, crop_scale=[0.1, 1.0])
    order = KeyedSampler(40, seed=0, batch_size=10)
    for (batch,), (_, (keys,)) in zip(built(settings).train.epoch(2), order.steps(2), strict=True):
        for image, index, draws in zip(batch.images, keys.indices, keys.uniform(1, 22), strict=True):
            width, height = sizes[index]
            top, left, rows, columns = crop_boxes(draws[None], [[height, width]], (0.1, 1.0), (3 / 4, 4 / 3))[0]
            box = left, top, left + columns, top + rows
            expected = images[index].crop(box).resize((16, 16), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
            torch.testing.assert_close(image, (pixels / 255 - 0.5) / 0.5, rtol=0, atol=2e-6)


def test_repeated_views_decode_an_image_once(built, monkeypatch):
    read = []
    source = fake_source([(16, 16)] * 40, read=lambda index: read.append(index) or Image.new("RGB", (16, 16)))
    monkeypatch.setattr(build, "open_source", lambda _config: source)
    data = built(config(loader="streamed", batch_size=10, repeats=5, data={"per_class": None}, crop_scale=[0.3, 1.0]))
    assert len(list(data.train.epoch(0))) == 4
    assert len(read) == 8


def test_repeats_are_different_views_of_the_same_samples(built):
    (batch,) = next(iter(built(config(crop_scale=[0.3, 1.0], repeats=4)).train.epoch(0)))
    assert torch.equal(batch.indices, batch.indices[::4].repeat_interleave(4))
    assert all(not torch.equal(batch.images[i], batch.images[i + 1]) for i in range(31))


def test_streamed_bears_the_highest_magnitude(built):
    # At magnitude 10, RandAugment posterises to 0 bits.
    data = built(config(loader="streamed", rand_augment="rand-m10-n3-p1-inc1"))
    assert sum(len(batch.images) for (batch,) in data.train.epoch(0)) == 192


@pytest.mark.parametrize(("loader", "workers"), LOADERS)
def test_global_generators_are_left_alone(built, loader, workers):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    data = built(config(loader=loader, workers=workers, **EVERYTHING))
    before = states()
    list(data.train.epoch(0))
    list(data.evaluation)
    assert states() == before


# Evaluation


@pytest.mark.parametrize(("loader", "workers"), LOADERS)
def test_evaluation_sees_every_image_once(built, loader, workers):
    settings = config(loader=loader, workers=workers)
    source = digits_source()
    count = len(source.evaluation.labels)
    ranks = [built(settings, rank=r, world_size=2).evaluation for r in (0, 1)]
    labels = torch.empty(count, dtype=torch.int64)
    images = torch.empty(count, 3, 16, 16)
    for rank, loader_of_rank in enumerate(ranks):
        batches = list(loader_of_rank)
        assert [len(batch) for batch, _ in batches[:-1]] == [100] * (len(batches) - 1)
        images[rank::2] = torch.cat([batch for batch, _ in batches])
        labels[rank::2] = torch.cat([targets for _, targets in batches])
    assert torch.equal(labels, torch.from_numpy(source.evaluation.labels))
    again = torch.cat([batch for batch, _ in built(settings).evaluation])
    assert torch.equal(again, images)
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.mean, source.std))
    for position in (0, 1, count - 1):
        image = source.evaluation.read(position).resize((16, 16), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        torch.testing.assert_close(images[position], (pixels / 255 - mean) / std, rtol=0, atol=2e-6)


def test_evaluation_can_be_repeated_and_left(built):
    evaluation = built(config(loader="streamed", workers=2)).evaluation
    next(iter(evaluation))
    assert_same([tuple(evaluation)], [tuple(evaluation)])


# The stored images


@pytest.mark.parametrize(
    ("sizes", "cropped", "side"),
    [
        ([(20, 20)] * 6, True, 20),
        ([(20, 20)] * 5 + [(21, 20)], True, 18),
        ([(20, 30)] * 6, True, 18),
        ([(20, 20)] * 6, False, 16),
        ([(20, 30), (40, 16)], False, 16),
    ],
)
def test_the_size_of_resident_images(sizes, cropped, side):
    images = resident.load_train(
        fake_source(sizes).train, np.arange(len(sizes)), config().data, cropped=cropped, device=CPU
    )
    assert images.shape == (len(sizes), 3, side, side)
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == list(range(len(sizes)))


@pytest.mark.parametrize(("rank", "lines"), [("0", ["16/20", "20/20"]), ("1", [])])
def test_decoding_tells_how_far_it_is(monkeypatch, capsys, rank, lines):
    monkeypatch.setattr("vitutor_core.progress._LOG_EVERY_S", 0.0)
    monkeypatch.setenv("RANK", rank)
    source = fake_source([(16, 16)] * 20)
    resident.load_train(source.train, np.arange(20), config().data, cropped=False, device=CPU)
    said = [line.partition(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [f"decoding 20 images: {done}" for done in lines]


def test_an_interrupt_while_progress_is_drawn_stops_the_decoding(monkeypatch):
    source, decoded = fake_source([(16, 16)] * 4), []

    class Slow:
        def read(self, index):
            time.sleep(1e-3)
            decoded.append(index)
            return source.train.read(index % 4)

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(resident.RunProgress, "update", interrupt)
    indices = np.arange(4096)
    with pytest.raises(KeyboardInterrupt):
        resident.decode(Slow(), indices, 16, partial(lambda image: image), gigabytes=0, device=CPU)
    assert len(decoded) < len(indices)


def test_images_that_do_not_fit(monkeypatch):
    def full(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(resident.np, "empty", full)
    with pytest.raises(ResourceError, match=r"data\.loader: 2 images of 16 x 16 pixels .* use data\.loader=streamed"):
        resident.load_train(fake_source([(16, 16)] * 2).train, np.arange(2), config().data, cropped=False, device=CPU)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "world_size", "message"),
    [
        ({"batch_size": 201}, 1, r"train\.batch_size: 201 is larger than an epoch of 200 images"),
        ({"batch_size": 32, "accumulate": 3}, 1, r"32 does not divide evenly into 1 processes x train\.accumulate = 3"),
        ({"batch_size": 33}, 2, r"33 does not divide evenly into 2 processes"),
        ({"batch_size": 30, "accumulate": 2, "mixup": 0.8}, 1, "15 images, but Mixup"),
        ({"batch_size": 30, "cutmix": 1.0}, 2, "15 images, but Mixup"),
        ({"pad_crop": 2, "crop_scale": [0.1, 1.0]}, 1, "exclude each other"),
        ({"crop_scale": [0.5, 0.1]}, 1, r"augment\.crop_scale"),
        ({"crop_scale": [0.0, 1.0]}, 1, r"augment\.crop_scale"),
        ({"crop_scale": [0.5, 1.1]}, 1, r"augment\.crop_scale"),
        ({"crop_scale": [0.5, 1.0], "crop_aspect": [0.0, 1.0]}, 1, r"augment\.crop_aspect"),
        ({"rand_augment": "rand-q3"}, 1, r"augment\.rand_augment"),
        ({"rand_augment": "rand-q3", "loader": "streamed"}, 1, r"augment\.rand_augment"),
    ],
)
def test_refused_settings(settings, world_size, message):
    with pytest.raises(ConfigError, match=message):
        build_data(config(**settings), device=CPU, world_size=world_size)


def test_odd_batches_are_fine_without_mixing(built):
    data = built(config(batch_size=15, label_smoothing=0.1))
    (batch,) = next(iter(data.train.epoch(0)))
    assert batch.targets.shape == (15, 10)
