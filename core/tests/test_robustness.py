from __future__ import annotations

import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from conformance.records import made_up_card, write_record
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.evaluate import robustness
from vitutor_core.evaluate import shifts as cli
from vitutor_core.evaluate.robustness import CORRUPTIONS, Corrupted, SubsetLogits, corrupt, corruption_errors
from vitutor_core.evaluate.shifts import evaluate_robustness
from vitutor_core.models.weights import load_model, save_model

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


class Recorded(nn.Module):
    """Answers with the logits it was given, image by image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(images)]


def loader(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return [((images.float() / 255 - mean) / std, labels)]


def test_a_subset_of_classes_changes_the_answer():
    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0], [0.0, 5.0, 9.0, 4.0]])
    model = SubsetLogits(Recorded(logits), ["n1", "n2", "n3", "n4"], ["n2", "n4"])
    assert model(torch.zeros(2, 3, 4, 4)).tolist() == [[1.0, 3.0], [5.0, 4.0]]
    assert logits.argmax(1).tolist() == [0, 2]
    assert model(torch.zeros(2, 3, 4, 4)).argmax(1).tolist() == [1, 0]
    with pytest.raises(ConfigError, match="does not know n9"):
        SubsetLogits(Recorded(logits), ["n1", "n2"], ["n1", "n9"])


def test_fifteen_corruptions_that_the_package_knows():
    corrupt_tta = pytest.importorskip("corrupt_tta")
    assert len(set(CORRUPTIONS)) == 15
    assert set(CORRUPTIONS) <= corrupt_tta.corruption_dict.keys()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_repeatable_and_leaves_the_generators_alone(name):
    pytest.importorskip("corrupt_tta")
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (corrupt(IMAGE, name, 3, seed=seed) for seed in (0, 0, 1))
    assert (first.dtype, first.shape) == (np.uint8, IMAGE.shape)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, IMAGE)
    drawn = {"noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"}
    assert np.array_equal(first, other) != any(name.endswith(kind) for kind in drawn)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_corrupted_images_come_normalised_with_their_labels():
    pytest.importorskip("corrupt_tta")
    images = torch.from_numpy(np.stack([IMAGE, 255 - IMAGE])).permute(0, 3, 1, 2)
    ((found, labels),) = Corrupted(loader(images, torch.tensor([1, 0])), "contrast", 2, mean=MEAN, std=STD)
    assert labels.tolist() == [1, 0]
    expected = np.stack([corrupt(image, "contrast", 2, seed=0) for image in (IMAGE, 255 - IMAGE)])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    pixels = (found * std + mean) * 255
    torch.testing.assert_close(pixels, torch.from_numpy(expected).permute(0, 3, 1, 2).float(), atol=1e-3, rtol=0)


def test_the_mean_corruption_error_is_a_plain_mean(monkeypatch):
    errors = {("fog", 1): 10.0, ("fog", 5): 50.0, ("snow", 1): 20.0, ("snow", 5): 40.0}

    def evaluate(_model, corrupted, **_options):
        return {"top1": 100 - errors[corrupted._corruption, corrupted._severity]}

    monkeypatch.setattr(robustness, "evaluate", evaluate)
    found = corruption_errors(
        nn.Identity(),
        [],
        num_classes=2,
        mean=MEAN,
        std=STD,
        device="cpu",
        severities=(1, 5),
        corruptions=("fog", "snow"),
    )
    assert found == {"error_fog": 30.0, "error_snow": 30.0, "mce": 30.0}


def test_errors_of_a_model():
    pytest.importorskip("corrupt_tta")
    images = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].repeat(4, 1, 1, 1)
    model = Recorded(torch.eye(4))
    found = corruption_errors(
        model,
        loader(images, torch.tensor([0, 1, 2, 0])),
        num_classes=4,
        mean=MEAN,
        std=STD,
        device="cpu",
        severities=(1,),
        corruptions=("contrast",),
    )
    assert found == {"error_contrast": 25.0, "mce": 25.0}


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "corrupt_tta", None)
    with pytest.raises(ConfigError, match=r"vitutor-core\[robustness\]"):
        corrupt(IMAGE, "fog", 1, seed=0)


@pytest.fixture
def run(tmp_path):
    """A finished run of an untrained CNN on digits, as `vitutor teacher` leaves it."""
    torch.manual_seed(0)
    card = made_up_card(class_names=tuple("0123456789"), mean=MEAN, std=STD)
    save_model(tmp_path / "student.safetensors", timm.create_model("resnet8_tiny"), card)
    config = {"config": {"data": {"source": "digits", "image_size": 16}}}
    write_record(tmp_path, **config)
    return tmp_path


def test_a_run_on_a_folder_of_some_classes(run, tmp_path):
    for name, count in {"7": 2, "3": 3}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.roll(IMAGE, number)).save(tmp_path / "images" / name / f"{number}.png")
    found = evaluate_robustness(run, tmp_path / "images", "cpu")
    assert found["images"] == 5
    model, _ = load_model(run / "student.safetensors")
    images = torch.stack([torch.from_numpy(np.roll(IMAGE, number)).permute(2, 0, 1) for number in (0, 1, 2, 0, 1)])
    ((normalised, _),) = loader(images, torch.zeros(5))
    logits = model.eval()(normalised)
    right = (logits[:, 3] > logits[:, 7]) == torch.tensor([True, True, True, False, False])
    assert found["top1"] == pytest.approx(100 * right.float().mean().item())
    (tmp_path / "images" / "other").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "images" / "other" / "0.png")
    with pytest.raises(ConfigError, match="does not know other"):
        evaluate_robustness(run, tmp_path / "images", "cpu")


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_a_run_on_its_own_images_corrupted(run, monkeypatch, kind):
    path = run / "metrics.json"
    path.write_text(path.read_text().replace('"image_size"', f'"loader": "{kind}", "image_size"'))
    seen = {}

    def measure(model, images, **options):
        seen.update(options, images=sum(len(labels) for _, labels in images))
        return {"mce": 1.0}

    monkeypatch.setattr(cli, "corruption_errors", measure)
    assert evaluate_robustness(run, None, "cpu") == {"mce": 1.0}
    assert (seen["images"], seen["num_classes"], seen["mean"]) == (896, 10, MEAN)


def test_an_unfinished_run_is_named(run):
    (run / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match="not a finished run"):
        evaluate_robustness(run, None, "cpu")
