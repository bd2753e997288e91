"""DearKD with twelve families of teachers and of students: a real step, or one line that names the field to change."""

from __future__ import annotations

import pytest
import timm
import torch

import vitutor_core.models  # noqa: F401
from dearkd import Distiller, ObjectiveConfig
from vitutor_core.errors import ConfigError

SMALL = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 2}
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}

TEACHERS = {
    "resnet10t": {},
    "regnety_002": {},
    "convnext_atto": {},
    "test_efficientnet": {},
    "mobilenetv4_conv_small_050": {},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "swin_tiny_patch4_window7_224": SWIN,
    "maxvit_rmlp_pico_rw_256": {"img_size": 64},
    "test_vit": {"img_size": 64},
    "vit_small_patch16_dinov3": SMALL,
    "rednet_tiny": {},
    "resnet8_tiny": {},
}
STUDENTS = {
    "vit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "vit_medium_patch16_reg4_gap_256": SMALL,
    "vit_small_patch16_dinov3": SMALL,
    "eva02_tiny_patch14_224": SMALL | {"patch_size": 16},
    "beitv2_base_patch16_224": SMALL,
    "cait_xxs24_224": {"img_size": 64, "depth": 3},
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 3},
    "dearkd_tiny_patch16_224": {"img_size": 64, "depth": 3, "mhca_blocks": 2},
}
NO_STUDENTS = {
    "resnet10t": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": SWIN,
    "mixer_s32_224": {"img_size": 64},
}


def step(student, teacher, terms=None):
    """Make one step at 64 pixels and return the distiller."""
    torch.manual_seed(0)
    distiller = Distiller(student, teacher, terms)
    output = distiller(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.parts["hidden_loss"] > 0
    trained = [parameter for parameter in distiller.method.aligners.parameters() if parameter.grad is not None]
    assert all(parameter.grad.isfinite().all() for parameter in trained)
    assert trained
    return distiller


def made(name, kwargs, **more):
    return timm.create_model(name, **{"num_classes": 5, **kwargs, **more})


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers(name):
    distiller = step(made("vit_tiny_patch16_224", SMALL), made(name, TEACHERS[name]))
    assert 1 <= len(distiller.method._pairs) <= 2


@pytest.mark.parametrize("name", STUDENTS)
def test_students(name):
    distiller = step(made(name, STUDENTS[name]), made("resnet10t", {}))
    assert distiller.method._pairs == ((1, "layer2"), (2, "layer3"))


@pytest.mark.parametrize("name", NO_STUDENTS)
def test_students_without_patch_tokens_are_told_what_works(name):
    with pytest.raises(ConfigError, match=rf"^method\.distill=pooled: {name} has no patch tokens; set student\.name="):
        step(made(name, NO_STUDENTS[name]), made("resnet10t", {}))


def test_a_teacher_without_a_head_teaches_by_its_maps():
    teacher = made("vit_small_patch16_dinov3", SMALL, num_classes=0)
    with pytest.raises(ConfigError, match=r"teacher: it has no classes to teach; set method\.distill=none"):
        step(made("vit_tiny_patch16_224", SMALL), teacher)
    terms = ObjectiveConfig(distill="none", pairs="auto", aligner_act="auto")
    step(made("vit_tiny_patch16_224", SMALL), teacher, terms)
