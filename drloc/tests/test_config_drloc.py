"""The config: mistakes are one line, and what decides a result is in the fingerprint."""

from __future__ import annotations

import pytest

import drloc
from drloc.cli import PAPER
from vitutor_core.errors import ConfigError


def resolve(*settings, row=None, scale="digits", preset=None):
    return PAPER.resolve(scale, None, row, settings, preset=preset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method.pairs=0",), "method.pairs: Input should be greater than or equal to 1"),
        (("method.weight=-0.1",), "method.weight: Input should be greater than or equal to 0"),
        (("method.variant=l2",), "method.variant: Input should be 'l1', 'ce' or 'reg'"),
        (("method.unit=pixels",), "method.unit: Input should be 'k', 'k-1' or 'cells'"),
        (("method.grids=final", "method.lambda=0.5"), "unknown key 'method.lambda'"),
        (("method.max_side=1",), "method.max_side: Input should be greater than or equal to 2"),
        (("method.after_norm=true", "method.grids=blocks"), "method.after_norm is of the final grid alone"),
        (("method.warmup_epochs=0",), "method.warmup_epochs: Input should be greater than or equal to 1"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(ConfigError) as error:
        resolve(*settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_defaults_are_the_papers_definition():
    terms = resolve(scale="imagenet").method
    assert (terms.unit, terms.reduction, terms.signed, terms.variant) == ("k", "mean", False, "l1")
    assert (terms.pairs, terms.weight, terms.weight_schedule) == (64, 0.5, "constant")
    assert (terms.hidden, terms.max_side, terms.pool) == (512, 7, "2x2")


def test_presets():
    released = resolve(scale="imagenet", preset="official", row="t2t_drloc")
    terms = released.method
    assert (terms.unit, terms.reduction, terms.weight_schedule) == ("cells", "mean_axes", "ramp")
    assert (terms.pool, terms.after_norm, terms.warmup_epochs, terms.weight) == ("3x3", True, 20, 0.1)
    assert (released.train.epochs, released.train.schedule_epochs, released.train.batch_size) == (101, 300, 1024)
    rerun = resolve(scale="imagenet", preset="rerun", row="swin_drloc_cifar10")
    assert (rerun.train.epochs, rerun.train.batch_size, rerun.method.unit) == (101, 128, "cells")
    assert (rerun.optim.warmup_lr, rerun.optim.min_lr) == (1.25e-7, 1.25e-6)
    for scale in ("digits", "cifar100", "imagenet"):
        assert resolve(scale=scale, preset="paper") == resolve(scale=scale)


@pytest.mark.parametrize(
    "other",
    [
        "method.pairs=32",
        "method.variant=ce",
        "method.signed=true",
        "method.unit=cells",
        "method.reduction=sum",
        "method.grids=blocks",
        "method.grids=[blocks.0]",
        "method.pool=3x3",
        "method.weight=0.1",
        "data.class_list=imagenet100",
    ],
)
def test_what_decides_a_result_is_in_the_fingerprint(other):
    config = resolve()
    assert config.changed([other]).fingerprint() != config.fingerprint()


def test_the_package_is_light_and_says_what_it_has():
    assert set(drloc.__all__) == {"DRLoc", "LossConfig", "WithDRLoc"}
    assert drloc.LossConfig.__name__ == "LossConfig"
    with pytest.raises(AttributeError, match="no attribute 'Drloc'"):
        _ = drloc.Drloc
