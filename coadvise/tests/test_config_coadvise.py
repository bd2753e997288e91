from __future__ import annotations

import pytest

from coadvise.config import CoadviseConfig
from vitutor_core.config import apply_settings
from vitutor_core.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method.weights={rnn: 1.0}",), "method.weights names rnn, but the teachers are cnn, inn"),
        (("method.temperatures={rnn: 1.0}",), "method.temperatures names rnn"),
        (("method.temperatures={cnn: 0.0}",), r"method\.temperatures\.cnn: Input should be greater than 0"),
        (("method.weights={cnn: -1.0}",), r"method\.weights\.cnn: Input should be greater than or equal to 0"),
        (("method.order=[cnn]",), "each teacher once: cnn, inn"),
        (("method.label_tokens=all",), "without teachers"),
        (("method.corruption_severities=[0]",), "1 to 5"),
        (("teachers={cnn: {}}", "method.order=null"), "a teacher needs"),
        (("method.direction=forward",), "direction"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(config, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config(*settings)
    assert "\n" not in str(caught.value)


def test_what_depends_on_the_teachers_is_written_into_the_config(config):
    found = config()
    assert found.method.order == ("cnn", "inn")
    assert found.student.kwargs["teacher_tokens"] == 2
    assert type(found).from_mapping(found.model_dump(mode="json"), where="x") == found


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        (("teachers={}",), 0),
        (("teachers={cnn: {recipe: cnn}}",), 1),
        (("teachers={}", "student.kwargs.stems=[conv, inv]"), 2),
        (("teachers={}", "student.kwargs.stems=[conv]"), 1),
        (("teachers={}", "student.name=cit_small_aligned_patch16_224"), 2),
        (("student.name=vit_tiny_patch16_224",), None),
    ],
)
def test_number_of_tokens(settings, tokens, values):
    apply_settings(values, settings, CoadviseConfig)
    assert CoadviseConfig.from_mapping(values, where="test").student.kwargs.get("teacher_tokens") == tokens


def test_the_order_of_the_tokens_is_part_of_the_identity(config):
    assert config().fingerprint() != config("method.order=[inn, cnn]").fingerprint()
    assert config().fingerprint() == config("teachers.cnn.weights=elsewhere").fingerprint()
