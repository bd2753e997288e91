from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conformance import forked
from vitutor_core.errors import ConfigError, DataError, NonFiniteError
from vitutor_core.evaluate.accuracy import evaluate, measure
from vitutor_core.evaluate.complexity import complexity, throughput

CLASSES = 7


def made_up_logits(count: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (count,), generator=generator)
    logits = 2 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), targets] += 1.5
    return logits, targets


def batches(logits: Tensor, targets: Tensor, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """A loader whose images are the logits themselves; the model is the identity."""
    return list(zip(logits.split(size), targets.split(size), strict=True))


def evaluate_logits(logits: Tensor, targets: Tensor, *, precision: str = "fp32", size: int = 16) -> dict[str, float]:
    loader = batches(logits, targets, size)
    return evaluate(nn.Identity(), loader, num_classes=logits.shape[1], device="cpu", precision=precision)


def test_agrees_with_torchmetrics() -> None:
    # Not at the top: the spawned processes of the slow test import this module too.
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

    logits, targets = made_up_logits(203)
    metrics = evaluate_logits(logits, targets)
    assert metrics["images"] == 203
    for name, k in (("top1", 1), ("top5", 5)):
        oracle = MulticlassAccuracy(CLASSES, top_k=k, average="micro")
        assert metrics[name] == pytest.approx(100 * oracle(logits, targets).item(), abs=1e-5)
    assert metrics["top1"] < metrics["top5"] < 100
    calibration = MulticlassCalibrationError(CLASSES, n_bins=15, norm="l1")
    assert metrics["ece"] == pytest.approx(100 * calibration(logits.softmax(1), targets).item(), abs=1e-4)
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)


def test_calibration_error_by_hand() -> None:
    """Three answers with confidence 0.9, two of them right, and one with 0.6, right: (|2.7 - 2| + |0.6 - 1|) / 4."""
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.6])
    logits = torch.stack([confidence, 1 - confidence], dim=1).log()
    metrics = evaluate_logits(logits, torch.tensor([0, 0, 1, 0]))
    assert metrics["ece"] == pytest.approx(100 * (0.7 + 0.4) / 4, abs=1e-4)
    assert metrics["top1"] == 75.0
    assert metrics["top5"] == 100.0  # k = 2: all classes


def correct_of(logits: Tensor, targets: Tensor, *, size: int = 16) -> dict[str, str]:
    options = {"num_classes": logits.shape[1], "device": "cpu"}
    return measure(nn.Identity(), Negative(), batches(logits, targets, size), **options).correct


class Negative(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return -images


def test_images_that_were_right_by_hand() -> None:
    """Of ten images the first, the sixth and the last: 1000 0100 01, filled up to whole bytes."""
    targets = torch.zeros(10, dtype=torch.int64)
    answers = torch.tensor([0, 1, 1, 1, 1, 0, 1, 1, 1, 0])
    logits = nn.functional.one_hot(answers, 2).float()
    assert correct_of(logits, targets, size=4) == {"top1": "8440", "ema_top1": "7b80"}


def test_full_confidence_is_counted() -> None:
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    metrics = evaluate_logits(logits, torch.tensor([0, 1]))
    assert metrics["ece"] == pytest.approx(50.0)
    assert metrics["loss"] == pytest.approx(500.0)


def test_batches_do_not_matter() -> None:
    logits, targets = made_up_logits(100)
    assert evaluate_logits(logits, targets, size=7) == evaluate_logits(logits, targets, size=100)


def test_a_model_that_says_nothing_is_at_chance() -> None:
    targets = torch.arange(10).repeat(5)
    assert evaluate_logits(torch.zeros(50, 10), targets)["top1"] == 10.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    logits, targets = made_up_logits(20)
    logits[3, targets[3]] = value
    with pytest.raises(NonFiniteError, match="1 of 20 images"):
        evaluate_logits(logits, targets)


def test_wrong_number_of_classes() -> None:
    logits, targets = made_up_logits(4)
    with pytest.raises(ConfigError, match="num_classes=10"):
        evaluate(nn.Identity(), batches(logits, targets), num_classes=10, device="cpu")


def test_no_images() -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate(nn.Identity(), [], num_classes=CLASSES, device="cpu")


class Recorder(nn.Module):
    """Notes its mode and the dtype of a product in it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Dropout(0.5)
        self.layer = nn.Linear(CLASSES, CLASSES)
        self.seen: list[tuple[bool, bool, torch.dtype]] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images)
        self.seen.append((self.frozen.training or self.training, torch.is_inference_mode_enabled(), logits.dtype))
        return logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mode_and_precision(precision: str) -> None:
    model = Recorder().train()
    model.frozen.eval()
    logits, targets = made_up_logits(8)
    metrics = evaluate(model, batches(logits, targets), num_classes=CLASSES, device="cpu", precision=precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert model.seen == [(False, True, dtype)]
    assert (model.training, model.layer.training, model.frozen.training) == (True, True, False)
    assert math.isfinite(metrics["loss"])


def test_mode_comes_back_after_an_error() -> None:
    model = Recorder().train()
    with pytest.raises(ConfigError):
        evaluate(model, batches(*made_up_logits(8)), num_classes=CLASSES + 1, device="cpu")
    assert all(module.training for module in model.modules())


def evaluate_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    logits, targets = made_up_logits(61)
    metrics = evaluate_logits(logits[rank::2], targets[rank::2])
    save_file({"values": torch.tensor(list(metrics.values()), dtype=torch.float64)}, f"{folder}/{rank}.safetensors")
    Path(folder, f"{rank}.json").write_text(json.dumps(correct_of(logits[rank::2], targets[rank::2], size=7)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_count_every_image_once(tmp_path: Path) -> None:
    """Exactly equal, because float64 holds the sum of so few float32 values without rounding."""
    forked.together(evaluate_share, str(tmp_path))
    metrics = evaluate_logits(*made_up_logits(61))
    assert metrics["images"] == 61
    for rank in (0, 1):
        assert load_file(tmp_path / f"{rank}.safetensors")["values"].tolist() == list(metrics.values())
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == correct_of(*made_up_logits(61))


def test_complexity_of_deit_tiny() -> None:
    import timm

    model = timm.create_model("deit_tiny_patch16_224").train()
    assert complexity(model, 224) == {"parameters": 5_717_416, "flops": 2_507_366_400}
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


def test_complexity_by_hand() -> None:
    """A 3x3 convolution of 2 to 5 channels on 8x8 outputs; the ReLU counts nothing."""
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU())
    assert complexity(model, 8, channels=2) == {"parameters": 95, "flops": 2 * 64 * 5 * 2 * 9}


def test_throughput_counts_images() -> None:
    class Counter(nn.Module):
        images = 0

        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            self.images += len(images)
            return images.mean()

    model = Counter().train()
    rate = throughput(model, 4, device="cpu", batch_size=3, seconds=0.05)
    assert model.images % 3 == 0
    # Of all batches that ran, the last, longest series took at least 0.05 s, so the rate is bounded by their sum.
    assert 0 < rate <= model.images / 0.05
    assert model.training
