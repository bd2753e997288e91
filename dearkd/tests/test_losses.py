from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dearkd.losses import hidden_loss, logit_loss, total_loss


@pytest.fixture
def maps():
    torch.manual_seed(0)
    shapes = [(2, 3, 4, 5), (2, 6, 2, 2)]
    student = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return student, [torch.rand(shape, dtype=torch.float64) for shape in shapes]


def test_hidden_loss_is_the_mean_over_pairs_of_the_element_mean(maps):
    student, teacher = maps
    first, second = (
        sum((x - y) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True))
        for a, b in zip(student, teacher, strict=True)
    )
    loss = hidden_loss(student, teacher)
    assert loss.item() == pytest.approx((first / 120 + second / 48).item() / 2, rel=1e-12)
    loss.backward()
    for a, b, size in zip(student, teacher, (120, 48), strict=True):
        torch.testing.assert_close(a.grad, (a - b).detach() / size, rtol=0, atol=1e-12)


def test_hidden_loss_of_equal_maps_is_zero(maps):
    _, teacher = maps
    assert hidden_loss(teacher, teacher).item() == 0


def test_hidden_loss_finite_differences(maps):
    student, teacher = maps
    for norm in ("none", "channel_std"):
        assert torch.autograd.gradcheck(lambda a, b, norm=norm: hidden_loss([a, b], teacher, target_norm=norm), student)


def test_channel_std_makes_the_target_independent_of_its_scale(maps):
    student, teacher = maps
    scale = torch.tensor([1.0, 30.0, 900.0], dtype=torch.float64)[:, None, None]
    scaled = [1e2 * scale * teacher[0]]
    assert hidden_loss(student[:1], scaled, target_norm="channel_std").item() == pytest.approx(
        hidden_loss(student[:1], [1e2 * teacher[0]], target_norm="channel_std").item(), rel=1e-6
    )
    target = 1e2 * teacher[0] / (1e2 * teacher[0]).std(dim=(0, 2, 3), correction=0)[:, None, None]
    assert (target >= 0).all()
    expected = F.mse_loss(student[0], target).item()
    assert hidden_loss(student[:1], scaled, target_norm="channel_std").item() == pytest.approx(expected, rel=1e-6)


def test_channel_std_keeps_dead_channels_finite():
    assert hidden_loss([torch.ones(1, 2, 3, 3)], [torch.zeros(1, 2, 3, 3)], target_norm="channel_std").item() == 1


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(2, 3, 4, 4)], [(2, 3, 4, 5)]),
        ([(2, 1, 4, 4)], [(2, 3, 4, 4)]),
        ([(2, 3, 4, 4)], [(2, 3, 4, 4), (2, 3, 4, 4)]),
        ([], []),
    ],
)
def test_hidden_loss_refuses_other_shapes(student, teacher):
    with pytest.raises(ValueError, match="hidden_loss: student maps of shapes"):
        hidden_loss([torch.zeros(shape) for shape in student], [torch.zeros(shape) for shape in teacher])


def test_hidden_loss_is_float32_under_autocast(maps):
    student, teacher = ([map_.detach().bfloat16() for map_ in maps_] for maps_ in maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = hidden_loss(student, teacher)
    assert loss.dtype == torch.float32
    expected = hidden_loss([map_.float() for map_ in student], [map_.float() for map_ in teacher])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_logit_loss_takes_the_teachers_top_class_as_label():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    labels = [max(range(4), key=lambda k, row=row: row[k]) for row in teacher.tolist()]
    expected = -sum(student.log_softmax(1)[i, label] for i, label in enumerate(labels)) / 6
    torch.testing.assert_close(logit_loss(student, teacher), expected, rtol=0, atol=1e-6)
    for temperature in (0.1, 10.0):
        assert torch.equal(logit_loss(student, teacher / temperature), logit_loss(student, teacher))
    assert torch.equal(logit_loss(student, teacher + 3), logit_loss(student, teacher))
    probe = teacher.clone().requires_grad_()
    logit_loss(student, probe).backward()
    assert probe.grad is None


def test_logit_loss_refuses_another_number_of_classes():
    with pytest.raises(ValueError, match=r"\(2, 4\) against \(2, 5\)"):
        logit_loss(torch.zeros(2, 4), torch.zeros(2, 5))


def test_total_loss_is_eq_6():
    label, logit, hidden = (torch.tensor(value, dtype=torch.float64) for value in (2.0, 3.0, 5.0))
    assert total_loss(label, logit, hidden, alpha_loss=0.3, beta_loss=0.1).item() == pytest.approx(
        0.3 * 2 + 0.7 * 3 + 0.1 * 5
    )
    assert total_loss(label, logit, None, alpha_loss=0.3, beta_loss=0.1).item() == pytest.approx(0.3 * 2 + 0.7 * 3)
    assert total_loss(label, None, hidden, alpha_loss=0.3, beta_loss=0.1).item() == pytest.approx(2 + 0.1 * 5)
    assert torch.equal(total_loss(label, None, None, alpha_loss=0.3, beta_loss=0.1), label)


def test_weights_of_the_label_term_alone_leave_the_projectors_without_gradient():
    torch.manual_seed(0)
    head, head_dist, aligner = nn.Linear(4, 3), nn.Linear(4, 3), nn.Conv2d(4, 2, 1)
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    label = F.cross_entropy(head(x), y)
    logit = logit_loss(head_dist(x), torch.randn(5, 3))
    hidden = hidden_loss([aligner(x[..., None, None])], [torch.rand(5, 2, 1, 1)])
    loss = total_loss(label, logit, hidden, alpha_loss=1.0, beta_loss=0.0)
    assert torch.equal(loss, label)
    loss.backward()
    assert (head.weight.grad != 0).any()
    for module in (head_dist, aligner):
        assert (module.weight.grad == 0).all()
