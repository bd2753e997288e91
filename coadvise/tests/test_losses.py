from __future__ import annotations

import pytest
import torch

from coadvise.losses import divergence, label_loss, total_loss


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return [torch.randn(6, 5, dtype=torch.float64) for _ in range(2)]


def test_by_hand():
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2): sum of p_t log(p_t / p_s) = log(2) / 2 - log(2) / 4."""
    teacher, student = (torch.tensor([p]).log() for p in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]))
    assert divergence(student, teacher).item() == pytest.approx(0.25 * torch.log(torch.tensor(2.0)).item())


def test_the_direction():
    """A pair that is not mirrored: (0.9, 0.1) and (0.5, 0.5)."""
    sharp, flat = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    sharp_to_flat = (0.9 * torch.tensor(0.9 / 0.5).log() + 0.1 * torch.tensor(0.1 / 0.5).log()).item()
    flat_to_sharp = (0.5 * torch.tensor(0.5 / 0.9).log() + 0.5 * torch.tensor(0.5 / 0.1).log()).item()
    assert abs(sharp_to_flat - flat_to_sharp) > 0.1
    assert divergence(flat, sharp).item() == pytest.approx(sharp_to_flat)
    assert divergence(flat, sharp, direction="student_teacher").item() == pytest.approx(flat_to_sharp)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equal_predictions_do_not_diverge(logits, temperature, direction):
    options = {"temperature": temperature, "direction": direction}
    assert divergence(logits[0], logits[0], **options).abs() < 1e-6
    offset = torch.arange(6, dtype=torch.float64)[:, None]
    assert divergence(logits[0] + offset, logits[0], **options).abs() < 1e-6
    assert divergence(logits[0], logits[1], **options) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient(logits, temperature):
    student, teacher = logits[0].requires_grad_(), logits[1]
    divergence(student, teacher, temperature=temperature).backward()
    gap = (student.detach() / temperature).softmax(1) - (teacher / temperature).softmax(1)
    torch.testing.assert_close(student.grad, temperature * gap / len(student))


def test_mean_over_the_batch(logits):
    doubled = [each.repeat(2, 1) for each in logits]
    torch.testing.assert_close(divergence(*doubled), divergence(*logits))


def test_scaling_logits_and_temperature(logits):
    scaled = divergence(3 * logits[0], 3 * logits[1], temperature=3.0)
    torch.testing.assert_close(scaled, 9 * divergence(*logits))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same classes"):
        divergence(torch.zeros(4, 5), torch.zeros(4, 1))


def test_label_term_is_a_mean_over_tokens(logits):
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    each = [-z.log_softmax(1)[torch.arange(6), targets].mean() for z in logits]
    torch.testing.assert_close(label_loss(logits, targets), (each[0] + each[1]) / 2)
    soft = torch.eye(5, dtype=torch.float64)[targets]
    torch.testing.assert_close(label_loss(logits, soft), label_loss(logits, targets))


def test_total():
    terms = {"cnn": torch.tensor(3.0), "inn": torch.tensor(5.0)}
    loss = total_loss(torch.tensor(2.0), terms, label_weight=0.5, weights={"inn": 0.1})
    assert loss.item() == pytest.approx(0.5 * 2 + 3 + 0.1 * 5)
    silent = total_loss(torch.tensor(2.0), terms, label_weight=1.0, weights={"cnn": 0.0, "inn": 0.0})
    assert silent.item() == 2.0
