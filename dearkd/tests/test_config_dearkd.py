"""The method's own config fields: what is refused, in which words, and when stage II begins."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from dearkd.cli import PAPER
from dearkd.config import DearKDConfig, ObjectiveConfig
from vitutor_core.errors import ConfigError


def resolve(*settings: str, row: str | None = None, scale: str = "digits") -> DearKDConfig:
    return PAPER.resolve(scale, None, row, settings)


def test_defaults_are_the_recommended_reading():
    terms = ObjectiveConfig()
    assert (terms.alpha_loss, terms.beta_loss, terms.distill, terms.share_head) == (0.5, 1.0, "pooled", False)
    assert terms.pairs == ((4, "s2"), (8, "s3"))
    assert (terms.two_stage, terms.freeze_rpe, terms.target_norm) == (True, False, "none")
    assert (terms.aligner_act, terms.channel_map) == ("relu", "pointwise")


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        (("teacher=null",), None, "method.distill and method.pairs need a teacher"),
        (("teacher=null", "method.distill=none"), None, "method.distill and method.pairs need a teacher"),
        (("teacher=null", "method.pairs=[]"), None, "method.distill and method.pairs need a teacher"),
        (
            ("method.distill=none", "method.pairs=[]"),
            None,
            "a teacher is given, but method.distill is none and method.pairs is empty",
        ),
        (("method.distill=token",), None, "set pairs=[] and two_stage=false"),
        (("method.distill=token", "method.pairs=[]"), None, "set pairs=[] and two_stage=false"),
        (("method.distill=token", "method.two_stage=false"), None, "set pairs=[] and two_stage=false"),
        (("method.stage1_epochs=2",), "mhca_hidden_distill", "method.stage1_epochs is set, but two_stage is false"),
        (
            ("train.epochs=9", "method.stage1_epochs=10"),
            None,
            "method.stage1_epochs is 10 of 9 epochs; set it, too (null: five sixths)",
        ),
        (("method.stage1_epochs=0",), None, "method.stage1_epochs: Input should be greater than or equal to 1"),
        (("method.alpha_loss=1.5",), None, "method.alpha_loss: Input should be less than or equal to 1"),
        (("method.alpha_loss=-0.1",), None, "method.alpha_loss: Input should be greater than or equal to 0"),
        (("method.beta_loss=-1.0",), None, "method.beta_loss: Input should be greater than or equal to 0"),
        (("method.beta_loss=.nan",), None, "method.beta_loss: Input should be a finite number"),
        (("method.distill=soft",), None, "method.distill: Input should be 'none', 'pooled' or 'token'"),
        (("method.pairs=[[2]]",), None, "method.pairs.0.1: is missing"),
        (("method.pairs=[[layer2, 2]]",), None, "method.pairs.0.0: Input should be a valid integer"),
        (("method.alpha=0.5",), None, "unknown key 'method.alpha'; did you mean 'method.alpha_loss'?"),
        (("method=3",), None, "method: Input should be an object"),
        (("train=x",), None, "train: Input should be an object"),
        (("teacher={}",), None, "a teacher needs `recipe`, `row`, `model` or `weights`"),
    ],
)
def test_mistakes_are_one_line(settings, row, message):
    with pytest.raises(ConfigError) as error:
        resolve(*settings, row=row)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("epochs", "stage_one"), [(300, 250), (30, 25), (20, 17), (3, 2), (2, 2), (1, 1)])
def test_stage_two_begins_after_five_sixths(epochs, stage_one):
    config = resolve(f"train.epochs={epochs}")
    assert config.stage1_epochs == config.method.stage1_epochs == stage_one
    assert resolve(f"train.epochs={epochs}", "method.stage1_epochs=null") == config


def test_an_explicit_switch_wins():
    config = resolve("train.epochs=1000", "method.stage1_epochs=800", scale="imagenet")
    assert config.stage1_epochs == 800
    assert config.changed(["method.stage1_epochs=1000"]).stage1_epochs == 1000


def test_the_saved_config_says_when_the_switch_was():
    config = resolve("train.epochs=6")
    saved = json.loads(config.model_dump_json())
    assert saved["method"]["stage1_epochs"] == 5
    again = DearKDConfig.from_mapping(saved, where="saved")
    assert again == config
    assert (
        again.fingerprint() == config.fingerprint() != resolve("train.epochs=6", "method.stage1_epochs=4").fingerprint()
    )
    # Validated without `from_mapping` the value stays null, and means the same.
    unresolved = DearKDConfig.model_validate_json(json.dumps({**saved, "method": {}}))
    assert unresolved.method.stage1_epochs is None
    assert unresolved.stage1_epochs == 5


def test_a_single_stage_and_no_teacher():
    single = resolve("train.epochs=6", row="mhca_hidden_distill")
    assert single.method.stage1_epochs is None
    assert single.stage1_epochs == 6
    assert single.changed(["method.two_stage=true"]).method.stage1_epochs == 5
    assert resolve(row="mhca").stage1_epochs == 0


def test_weights_of_the_teacher_are_no_part_of_the_fingerprint():
    config = resolve()
    assert config.changed(["teacher.weights=elsewhere"]).fingerprint() == config.fingerprint()
    for other in (
        "method.beta_loss=0.1",
        "method.freeze_rpe=true",
        "method.pairs=[[2, layer2]]",
        "teacher.image_size=32",
    ):
        assert config.changed([other]).fingerprint() != config.fingerprint(), other


def test_a_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        resolve().method.alpha_loss = 0.9
