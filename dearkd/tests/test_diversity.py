"""Diversity: pairs, feature distances, LPIPS, and what the table reads."""

from __future__ import annotations

import json
import math
import sys

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from dearkd.cli import PAPER
from dearkd.generation import diversity
from dearkd.generation.diversity import feature_distance, lpips_distance, mean_distance, same_class_pairs
from dearkd.generation.generate import Generation
from dearkd.tests.generation_samples import micro
from vitutor_core.cli.paper import paper_group
from vitutor_core.data.sources.images import array_split
from vitutor_core.errors import CheckpointError, ConfigError, DataError, ResourceError
from vitutor_core.report.results import load_results

CPU = torch.device("cpu")
cli = paper_group(PAPER)


def test_pairs_are_different_images_of_one_class():
    labels = np.repeat([0, 1, 2, 5], [2, 30, 1, 7])
    pairs = same_class_pairs(labels, 50, seed=0)
    assert pairs.shape == (150, 2)  # the class with one image has no pair
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert np.array_equal(pairs, same_class_pairs(labels, 50, seed=0))
    assert not np.array_equal(pairs, same_class_pairs(labels, 50, seed=1))
    # Every ordered pair of the class of seven comes up, about equally often.
    many = same_class_pairs(labels, 4200, seed=0)
    counts = np.unique(many[labels[many[:, 0]] == 5], axis=0, return_counts=True)[1]
    assert len(counts) == 42
    assert abs(counts - 100).max() < 5 * math.sqrt(100)
    with pytest.raises(DataError, match="no class has two images to compare"):
        same_class_pairs(np.arange(5), 4, seed=0)


class Brightness(nn.Module):
    """Two features of an image: its mean, and one minus it."""

    feature_info = ()

    def forward_features(self, images):
        return images.mean((1, 2, 3))[:, None]

    def forward_head(self, tokens, pre_logits=False):
        return torch.cat([tokens, 1 - tokens], dim=1)


def test_feature_distance_by_hand():
    pixels = torch.stack([torch.full((3, 2, 2), value) for value in (0.0, 1.0, 0.5)])
    distance = feature_distance(Brightness(), (0.0,) * 3, (1.0,) * 3)
    assert distance(pixels[:1], pixels[1:2]).item() == pytest.approx(math.sqrt(2))
    assert distance(pixels[:1], pixels[2:]).item() == pytest.approx(math.sqrt((1 - 0.5**0.5) ** 2 + 0.5))
    # Normalisation moves both brightnesses: (1 - 0.5) / 0.5 = 1 and (0.5 - 0.5) / 0.5 = 0.
    moved = feature_distance(Brightness(), (0.5,) * 3, (0.5,) * 3)
    assert moved(pixels[1:2], pixels[2:]).item() == pytest.approx(math.sqrt(2))


def test_mean_distance_reads_every_pair(monkeypatch):
    monkeypatch.setattr(diversity, "_BATCH", 2)
    images = np.stack([np.full((4, 4, 3), shade, dtype=np.uint8) for shade in (0, 51, 255)])
    split = array_split(images, np.zeros(3, dtype=np.int64), "test")
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    seen = []

    def distance(first, second):
        seen.append(first.shape)
        return (first - second).abs().mean((1, 2, 3))

    found = mean_distance(split, pairs, lambda image: image.resize((8, 8)), distance, CPU)
    assert found == pytest.approx((0.2 + 0.8 + 1.0) / 3)
    assert seen == [(2, 3, 8, 8), (1, 3, 8, 8)]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.safetensors"
    weights = alexnet(weights=None).state_dict()
    save_file({name: value for name, value in weights.items() if name.startswith("features.")}, path)
    return path


def test_lpips_is_that_of_the_package(alexnet, monkeypatch):
    first, second = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    got = lpips_distance(str(alexnet), CPU)(first, second)

    def same(weights=None, **_kwargs):
        from safetensors.torch import load_file
        from torchvision.models.alexnet import AlexNet

        model = AlexNet()
        model.load_state_dict(load_file(alexnet), strict=False)
        return model

    # The package takes its backbone from torchvision; here it gets the weights of the file.
    monkeypatch.setattr("torchvision.models.alexnet", same)
    reference = lpips.LPIPS(net="alex", pretrained=True, pnet_rand=True, verbose=False).eval()
    with torch.no_grad():
        expected = reference(2 * first - 1, 2 * second - 1).flatten()
    torch.testing.assert_close(got, expected)
    assert got.min() > 0


def test_lpips_of_small_images_enlarges_them(alexnet):
    small = torch.rand(2, 3, 16, 16)
    distance = lpips_distance(str(alexnet), CPU)
    assert distance(small, small).abs().max() == 0
    enlarged = nn.functional.interpolate(small, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(distance(small, small.flip(0)), distance(enlarged, enlarged.flip(0)))


def test_lpips_that_is_not_there(alexnet, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"nothing: no safetensors file with AlexNet's weights"):
        lpips_distance(str(tmp_path / "nothing"), CPU)
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not torchvision's AlexNet"):
        lpips_distance(str(tmp_path / "other.safetensors"), CPU)

    def offline(*_args, **_kwargs):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ResourceError, match=r"cannot fetch AlexNet's weights \(no route\); give them as a safetensors"):
        lpips_distance("download", CPU)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ConfigError, match=r"pip install 'vitutor-dearkd\[lpips\]'") as caught:
        lpips_distance(str(alexnet), CPU)
    assert "\n" not in str(caught.value)


def test_the_command_writes_what_the_table_reads(dearkd_teachers, alexnet, tmp_path, capsys):
    changes = {
        "classes_per_batch": 10,
        "num_images": 20,
        "phases": [{"iterations": 2, "lr": 0.1}],
    }
    for name, seed in (("plain", 0), ("intra", 1)):
        generation = Generation(micro(dearkd_teachers / "cnn", seed=seed, **changes), name, tmp_path / "work")
        generation.run(generation.missing())
        generation.publish(tmp_path / "generated" / name, {"scale": "digits", "command": "test"})
    arguments = ["diversity", "--results", str(tmp_path), "--features", str(dearkd_teachers / "cnn")]
    arguments += ["--lpips", str(alexnet), "--set", "diversity_pairs=3"]
    cli.main(arguments, standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["real", "intra", "plain"]
    rows = load_results(tmp_path / "evaluation", "dearkd")
    assert set(rows) == {"images_real", "images_plain", "images_intra"}
    plain, real = rows["images_plain"][0].result, rows["images_real"][0].result
    assert (plain.updates, plain.train_images, real.train_images) == (0, 20, 901)
    assert plain.metrics.keys() == {"feature_distance", "lpips", "teacher_top1"}
    assert real.metrics.keys() == {"feature_distance", "lpips"}
    assert all(0 < run.result.metrics["feature_distance"] < 2 for runs in rows.values() for run in runs)
    assert plain.teachers.keys() == {"features", "teacher"}
    record = json.loads((tmp_path / "generated" / "plain" / "generation.json").read_text())
    assert plain.fingerprint == record["fingerprint"]
    # Equal images are no diversity.
    for image in (tmp_path / "generated" / "plain" / "train").rglob("*.png"):
        Image.new("RGB", (16, 16)).save(image)
    cli.main(arguments, standalone_mode=False)
    assert load_results(tmp_path / "evaluation", "dearkd")["images_plain"][0].result.metrics["feature_distance"] == 0
