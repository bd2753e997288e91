"""Methods whose student is not a classifier yet: what the loop measures, keeps and publishes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from core.tests.train_samples import curves, run, tiny_config
from vitutor_core.cli.paper import _measured
from vitutor_core.errors import DataError
from vitutor_core.evaluate.neighbours import neighbour_accuracy
from vitutor_core.jobs.export import Targets, export_run
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.schema import RunConfig
from vitutor_core.train import optim
from vitutor_core.train.evaluation import evaluate_run
from vitutor_core.train.method import Report, Traits
from vitutor_core.train.supervised import Supervised


class Encoder(Supervised):
    """Learns as `Supervised` does, but says that its head is not trained."""

    traits = Traits(classifies=False, measures=True)

    def report(self, probe=None, evaluation=None):
        events = {"the end is near": 2}
        if probe is not None:
            picture = torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1).expand(3, 4, 8)
            return Report({"own_figure": float(len(probe))}, {"first": picture}, events)
        if evaluation is None:
            return Report(events=events)
        features = [(images.flatten(1), labels) for images, labels in evaluation]
        return Report(neighbour_accuracy(*(torch.cat(column) for column in zip(*features, strict=True))))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder") / "run"
    return out, run(out, "runtime.eval_every_epochs=2", "train.ema_decay=0.9", build=Encoder.build)


def test_an_encoder_has_its_own_figures_and_no_accuracy(encoder):
    out, result = encoder
    assert result["metrics"].keys() == {"own_figure", "knn_top1", "images"}
    assert result["metrics"]["images"] == 97
    assert result["events"] == {"the end is near": 2}
    assert "top1" not in curves(out)[-1]
    assert curves(out)[-1]["own_figure"] == "64.0"


def test_pictures_are_kept_after_each_evaluation_and_published(encoder, tmp_path):
    out, _ = encoder
    RunDir(out).publish(tmp_path / "published")
    for folder in (out, tmp_path / "published"):
        assert [path.name for path in sorted((folder / "pictures").iterdir())] == ["first-0002.png", "first-0003.png"]
    pixels = np.asarray(Image.open(out / "pictures" / "first-0003.png"))
    assert pixels.shape == (4, 8, 3)
    assert pixels[0, 0].tolist() == [255, 0, 128]


def test_an_encoder_is_evaluated_and_exported_without_an_accuracy(encoder, tmp_path):
    out, _ = encoder
    found, correct, _ = evaluate_run(out, RunRecord.read(out, "supervised"), RunConfig, Encoder.build)
    assert correct == {}
    assert "top1" not in found
    assert found["images"] == 896  # the whole set, of which the run was given a part
    assert found["parameters"] > 0
    export_run(out, Targets(tmp_path / "encoder.safetensors"), "supervised")
    assert "Its head is not trained" in (tmp_path / "encoder.md").read_text()
    assert json.loads((out / "metrics.json").read_text())["metrics"] == encoder[1]["metrics"]


def test_the_last_line_says_what_was_measured():
    assert _measured({"top1": 12.345, "loss": 1.0, "images": 3.0}) == "top-1 12.35 %"
    assert _measured({"knn_top1": 50.0, "loss": 0.123456, "images": 3.0}) == "knn_top1 50, loss 0.1235"


def test_weight_decay_on_everything():
    class Decaying(Supervised):
        traits = Traits(decays_all=True)

    method = Decaying(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)).requires_grad_())
    method.student[0].bias.requires_grad_(False)
    (group,) = optim.build_optimizer(method, tiny_config("optim.weight_decay=0.1").optim, 1).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in method.parameters() if p.requires_grad]
    assert len(group["params"]) == 3
    assert group["weight_decay"] == 0.1


def slow_neighbours(features, labels, neighbours):
    """One image at a time."""
    right = 0
    for i in range(len(features)):
        cosines = {
            j: float(torch.dot(features[i], features[j]) / features[i].norm() / features[j].norm())
            for j in range(len(features))
            if j != i
        }
        voters = sorted(cosines, key=cosines.__getitem__, reverse=True)[:neighbours]
        votes = [sum(int(labels[j]) == label for j in voters) for label in range(int(labels.max()) + 1)]
        right += votes.index(max(votes)) == int(labels[i])
    return 100 * right / len(features)


def test_nearest_neighbours_agree_with_the_definition():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    features = torch.randn(40, 6, generator=generator) + 2 * torch.eye(6)[labels]
    found = neighbour_accuracy(features, labels, neighbours=5)
    assert 50 < found["knn_top1"] < 100
    assert found == {"knn_top1": pytest.approx(slow_neighbours(features, labels, 5)), "images": 40.0}
    assert neighbour_accuracy(7 * features, labels, neighbours=5) == found


def test_an_image_is_not_its_own_neighbour():
    labels = torch.tensor([0, 1])
    assert neighbour_accuracy(torch.eye(2), labels)["knn_top1"] == 0.0
    with pytest.raises(DataError, match="at least two"):
        neighbour_accuracy(torch.eye(1), labels[:1])
