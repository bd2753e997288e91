"""What the tests of the loaders share."""

import multiprocessing

import numpy as np
import torch
from PIL import Image

from vitutor_core.data.build import build_data
from vitutor_core.data.types import Source, Split
from vitutor_core.schema import RunConfig

CPU = torch.device("cpu")
LOADERS = [("resident", 0), ("streamed", 0), ("streamed", 2)]


def config(*, loader="resident", workers=0, batch_size=32, accumulate=1, timeout=60, seed=0, data=None, **augment):
    return RunConfig.from_mapping(
        {
            "seed": seed,
            "data": {"image_size": 16, "per_class": 20, "loader": loader, **(data or {})},
            "augment": augment,
            "student": {"name": "unused"},
            "optim": {"lr": 1.0},
            "train": {"epochs": 1, "batch_size": batch_size, "accumulate": accumulate},
            "runtime": {"workers": workers, "worker_timeout_s": timeout, "eval_batch_size": 100},
        },
        where="test",
    )


def builder():
    """Yield a function that builds data; close them at the end, when no worker may be left."""
    opened = []

    def make(settings, **kwargs):
        opened.append(build_data(settings, device=CPU, **kwargs))
        return opened[-1]

    yield make
    for data in opened:
        data.train.close()
    assert multiprocessing.active_children() == []


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for batches, others in zip(first, second, strict=True):
        for batch, other in zip(batches, others, strict=True):
            for tensor, expected in zip(batch[:3], other[:3], strict=True):
                assert tensor.dtype == expected.dtype
                assert torch.equal(tensor, expected)


def fake_source(sizes, *, read=None):
    """A source of one grey level per image."""

    def read_image(index):
        return Image.new("RGB", sizes[index], (index, index, index))

    labels = np.arange(len(sizes)) % 2
    split = Split(labels=labels, read=read or read_image, where=lambda index: f"image {index}", content_hash="0")
    return Source("fake", ("a", "b"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), split, split)
