from __future__ import annotations

import pytest

from vitutor_core.config import identity_fields, leaves, nearest, parse_yaml, read_recipe, resolve
from vitutor_core.errors import ConfigError
from vitutor_core.schema import RunConfig

RECIPE = """
base:
  data: {image_size: 16}
  student: {name: vit_tiny_patch16_224, kwargs: {depth: 4}}
  optim: {lr: 1e-3}
  train: {epochs: 2, batch_size: 8}
rows:
  small: {student.kwargs.depth: 2, data.fraction: 0.5}
  other: {data: {image_size: 8}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_rows_and_settings_override_in_order(recipe):
    config = resolve(RunConfig, recipe, row="small", settings=["student.kwargs.depth=3", "augment.crop_scale=[0.5, 1]"])
    assert config.student.kwargs == {"depth": 3}
    assert config.data.fraction == 0.5
    assert config.augment.crop_scale == (0.5, 1.0)
    assert config.optim.lr == 1e-3


def test_a_row_may_replace_a_whole_section(recipe):
    assert resolve(RunConfig, recipe, row="other").data.image_size == 8


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.epoch=5", "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("trian.epochs=5", "unknown key 'trian'; did you mean 'train'?"),
        ("train.epochs='5'", "train.epochs"),
        ("train.epochs=true", "train.epochs"),
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=2.5", "train.epochs"),
        ("optim.lr=.nan", "optim.lr"),
        ("optim.lr=.inf", "optim.lr"),
        ("optim.lr=-1", "optim.lr"),
        ("data.loader=resdent", "data.loader"),
        ("train", "field.name=value"),
        ("seed.x=1", "'seed' is a value, not a section"),
        ("data={image_size: 8, image_size: 9}", "not valid YAML"),
    ],
)
def test_mistakes_are_named(recipe, setting, expected):
    with pytest.raises(ConfigError) as caught:
        resolve(RunConfig, recipe, settings=[setting] if not setting.startswith("seed") else ["seed=1", setting])
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_mistakes_are_listed_together(recipe):
    with pytest.raises(ConfigError) as caught:
        resolve(RunConfig, recipe, settings=["train.epoch=5", "optim.lr=-1"])
    assert "train.epoch" in str(caught.value)
    assert "optim.lr" in str(caught.value)


def test_unknown_row_names_the_nearest(recipe):
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        resolve(RunConfig, recipe, row="smal")


def test_duplicate_keys_and_yaml_1_2(tmp_path):
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("a: 1\na: 2", where="x")
    assert parse_yaml("a: 1e-3\nb: no\nc: 010", where="x") == {"a": 1e-3, "b": "no", "c": 10}
    path = tmp_path / "bad.yaml"
    path.write_text("bases: {}")
    with pytest.raises(ConfigError, match="'base' and 'rows'"):
        read_recipe(path)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_yaml_cannot_build_objects():
    with pytest.raises(ConfigError):
        parse_yaml("!!python/object/apply:os.getcwd []", where="x")


def test_every_leaf_is_tagged_and_described(recipe):
    for path, tag, _ in leaves(resolve(RunConfig, recipe)):
        assert tag in {"identity", "runtime"}, path


def test_fingerprint_follows_identity_fields_alone(recipe):
    base = resolve(RunConfig, recipe)
    assert resolve(RunConfig, recipe, settings=["runtime.workers=7"]).fingerprint() == base.fingerprint()
    assert resolve(RunConfig, recipe, settings=["optim.lr=2e-3"]).fingerprint() != base.fingerprint()
    assert "runtime.workers" not in identity_fields(base)


def test_round_trip_and_frozen(recipe):
    config = resolve(RunConfig, recipe, row="small")
    assert RunConfig.from_mapping(config.model_dump(mode="json"), where="x") == config
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    assert config.changed(["seed=3"]).seed == 3
    with pytest.raises(ConfigError):
        config.changed(["seed=-3"])


def test_subsets_exclude_each_other(recipe):
    with pytest.raises(ConfigError, match="exclude each other"):
        resolve(RunConfig, recipe, settings=["data.fraction=0.5", "data.per_class=3"])


def test_nothing_heavy_is_imported_for_a_config_mistake():
    import subprocess
    import sys

    code = (
        "import sys, vitutor_core.schema, vitutor_core.config; "
        "print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_nearest_is_silent_without_a_near_name():
    assert nearest("zzz", ["epochs"]) == ""
    assert nearest("epoch", ["epochs"]) == "; did you mean 'epochs'?"
