from __future__ import annotations

import pytest

from vitutor_core.baseline import BaselineConfig
from vitutor_core.config import fingerprinted, fingerprinted_fields, leaves, nearest, parse_yaml
from vitutor_core.errors import ConfigError
from vitutor_core.graph.needs import teacher_recipes
from vitutor_core.recipe import read_recipe, resolve
from vitutor_core.schema import RunConfig, TeacherConfig

RECIPE = """
base:
  data: {image_size: 16}
  student: {name: vit_tiny_patch16_224, kwargs: {depth: 4}}
  optim: {lr: 1e-3}
  train: {epochs: 2, batch_size: 8}
presets:
  official: {optim.lr: 2e-3, data.fraction: 0.25}
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


def test_a_preset_comes_before_the_row(recipe):
    preset = resolve(RunConfig, recipe, preset="official")
    assert (preset.optim.lr, preset.data.fraction) == (2e-3, 0.25)
    both = resolve(RunConfig, recipe, preset="official", row="small", settings=["optim.lr=3e-3"])
    assert (both.optim.lr, both.data.fraction, both.student.kwargs) == (3e-3, 0.5, {"depth": 2})
    with pytest.raises(ConfigError, match=r"no preset 'oficial'; did you mean 'official'\?; presets: official"):
        resolve(RunConfig, recipe, preset="oficial")


class TwoTeachers(RunConfig):
    teachers: dict[str, TeacherConfig] = fingerprinted({}, help="teachers by role")


def test_a_mapping_of_sections_has_leaves_of_its_own(recipe):
    settings = ["teachers.cnn={recipe: cnn}", "teachers.inn={recipe: inn}"]
    config = resolve(TwoTeachers, recipe, settings=settings)
    paths = {path: (tag, value) for path, tag, value in leaves(config) if path.startswith("teachers")}
    assert paths["teachers.inn.recipe"] == ("fingerprinted", "inn")
    assert paths["teachers.cnn.weights"] == ("runtime", None)
    assert config.changed(["teachers.cnn.weights=x"]).fingerprint() == config.fingerprint()
    assert config.changed(["teachers.cnn.recipe=x"]).fingerprint() != config.fingerprint()
    assert teacher_recipes(config) == ("cnn", "inn")
    with pytest.raises(
        ConfigError, match=r"unknown key 'teachers\.cnn\.recip'; did you mean 'teachers\.cnn\.recipe'\?"
    ):
        resolve(TwoTeachers, recipe, settings=["teachers.cnn={recip: cnn}"])


def test_a_schedule_is_not_shorter_than_the_run(recipe):
    assert resolve(RunConfig, recipe, settings=["train.schedule_epochs=2"]).train.schedule_epochs == 2
    with pytest.raises(ConfigError, match="schedule_epochs is 1, but the run has 2 epochs; set it, too"):
        resolve(RunConfig, recipe, settings=["train.schedule_epochs=1"])


def test_a_row_may_replace_a_whole_section(recipe):
    assert resolve(RunConfig, recipe, row="other").data.image_size == 8


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.epoch=5", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("epoch=5", "unknown key 'epoch'; did you mean 'train.epochs'?"),
        ("lr=1", "unknown key 'lr'; did you mean 'optim.lr'?"),
        ("train.lr=1", "unknown key 'train.lr'; did you mean 'optim.lr'?"),
        ("name=x", "unknown key 'name'; did you mean 'student.name' or 'optim.name'?"),
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
    for text, reason in {
        "a: 1\na: 2": 'line 2, column 1: found duplicate key "a" with value "2" (original value: "1")',
        "a: b: c": "line 1, column 5: mapping values are not allowed here",
        "a: \x01": "unacceptable character #x0001: special characters are not allowed at position 3",
    }.items():
        with pytest.raises(ConfigError) as caught:
            parse_yaml(text, where="my.yaml")
        assert str(caught.value) == f"my.yaml: not valid YAML: {reason}"
    assert parse_yaml("a: 1e-3\nb: no\nc: 010", where="x") == {"a": 1e-3, "b": "no", "c": 10}
    path = tmp_path / "bad.yaml"
    for text, found in {
        "bases: {}": "found bases",
        "1: {}\nbases: {}": "found 1, bases",
        "{}": "found none",
        "": "the file is empty",
        "# nothing": "the file is empty",
        "base": "found a value without keys",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"bad\.yaml: a recipe has the key 'base' .*; {found}$"):
            read_recipe(path)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_yaml_cannot_build_objects():
    with pytest.raises(ConfigError):
        parse_yaml("!!python/object/apply:os.getcwd []", where="x")


def test_every_leaf_is_tagged_and_described(recipe):
    for path, tag, _ in leaves(resolve(RunConfig, recipe)):
        assert tag in {"fingerprinted", "runtime"}, path


def test_fingerprint_follows_fingerprinted_fields_alone(recipe):
    base = resolve(RunConfig, recipe)
    assert resolve(RunConfig, recipe, settings=["runtime.workers=7"]).fingerprint() == base.fingerprint()
    assert resolve(RunConfig, recipe, settings=["optim.lr=2e-3"]).fingerprint() != base.fingerprint()
    assert "runtime.workers" not in fingerprinted_fields(base)


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
    assert nearest("zzz", ["epochs"]) == nearest("foo", ["pool"]) == ""
    assert nearest("epoch", ["epochs"]) == "; did you mean 'epochs'?"


def test_products_make_rows_of_rows_and_variants(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE
        + """
variants:
  half: {data.fraction: 0.25, optim.lr: 5e-4}
products:
  - {rows: [small], variants: [half]}
  - {rows: {wide: {student.kwargs.depth: 8}}, variants: {long: {train.epochs: 9}, longer: {train.epochs: 18}}}
groups: {big: ["wide_*"]}
"""
    )
    recipe = read_recipe(path)
    assert list(recipe.rows) == ["small", "other", "small_half", "wide_long", "wide_longer"]
    half = resolve(RunConfig, path, row="small_half")
    assert (half.student.kwargs, half.data.fraction, half.optim.lr) == ({"depth": 2}, 0.25, 5e-4)  # the variant is last
    assert resolve(RunConfig, path, row="wide_longer").train.epochs == 18
    assert (recipe.group_of("wide_long"), recipe.group_of("small_half")) == ("big", "core")
    path.write_text(RECIPE + "products:\n  - {rows: [smal], variants: {half: {}}}\n")
    with pytest.raises(ConfigError, match="names 'smal'; did you mean 'small'"):
        read_recipe(path)
    path.write_text(
        RECIPE
        + "products:\n  - {rows: {small: {}}, variants: {a: {}}}\n" * 1
        + "  - {rows: {small: {}}, variants: {a: {}}}\n"
    )
    with pytest.raises(ConfigError, match="row 'small_a' is made twice"):
        read_recipe(path)


def test_a_recipe_like_another_changes_its_base_its_rows_and_its_groups(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(RECIPE + "groups: {odd: [other]}\n")
    second.write_text(
        "like: first\nbase: {train.epochs: 5}\nrows: {'s*': {student.kwargs: {depth: 9}, seed: 3}}\n"
        "groups: {few: [small]}\n"
    )
    was, recipe = read_recipe(first), read_recipe(second)
    assert (list(recipe.rows), recipe.presets) == (list(was.rows), was.presets)
    assert (recipe.group_of("small"), recipe.group_of("other")) == ("few", "odd")
    for row in (None, "other"):
        assert resolve(RunConfig, second, row=row) == resolve(RunConfig, first, row=row, settings=["train.epochs=5"])
    small, other = (resolve(RunConfig, path, row="small", preset="official") for path in (second, first))
    assert small == other.changed(["train.epochs=5", "student.kwargs={depth: 9}", "seed=3"])
    assert read_recipe(first) == was


def test_sections_that_share_an_alias_change_apart(tmp_path):
    path = tmp_path / "shared.yaml"
    path.write_text(
        """
base:
  data: {source: digits, image_size: 16}
  student: {name: vit_tiny_patch16_224, kwargs: &small {depth: 4}}
  teacher: {model: {name: vit_tiny_patch16_224, kwargs: *small}, weights: t.safetensors}
  method: {distill: soft}
  optim: {lr: 1e-3}
  train: {epochs: 1, batch_size: 8}
rows:
  deep: {student.kwargs.depth: 8}
  both: {student.kwargs: &other {depth: 2}, teacher.model.kwargs: *other, student.kwargs.width: 3}
"""
    )
    (tmp_path / "alike.yaml").write_text("like: shared\nbase: {student.kwargs.depth: 6}\n")

    def kwargs(path, row=None, settings=()):
        config = resolve(BaselineConfig, path, row=row, settings=settings)
        return config.student.kwargs, config.teacher.model.kwargs

    assert kwargs(path, "deep") == ({"depth": 8}, {"depth": 4})
    assert kwargs(path, settings=["student.kwargs.depth=9"]) == ({"depth": 9}, {"depth": 4})
    assert kwargs(path, "both") == ({"depth": 2, "width": 3}, {"depth": 2})
    assert kwargs(tmp_path / "alike.yaml") == ({"depth": 6}, {"depth": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("like: frist\n", "like: no recipe 'frist' beside it; did you mean 'first'"),
        ("like: itself\n", "like: no recipe 'itself' beside it"),
        ("like: ../first\n", "like: no recipe '../first' beside it"),
        ("like: [first]\n", "like: no recipe .* beside it"),
        ("like: second\n", r"like: second\.yaml is itself like another; name that one"),
        ("like: latin\n", r"latin\.yaml: not UTF-8 text"),
        ("like: first\nrows: {smal: {}}\n", "has no row 'smal'; did you mean 'small'"),
        ("like: first\ngroups: {few: [smal]}\n", "groups.few: no row 'smal'; did you mean 'small'"),
        ("like: first\nproducts: []\n", "beside 'like' a recipe may have base, rows, groups"),
        ("like: first\nrows: [small]\n", "rows: names with their values are expected"),
        ("like: first\nbase: {data.image_size.x: 1}\n", "'image_size' is a value, not a section"),
    ],
)
def test_mistakes_in_a_recipe_like_another(tmp_path, text, message):
    (tmp_path / "first.yaml").write_text(RECIPE)
    (tmp_path / "second.yaml").write_text("like: first\n")
    (tmp_path / "latin.yaml").write_bytes("# \xe9\n".encode("latin-1"))
    (tmp_path / "itself.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / "itself.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groups: {few: [smal]}", "groups.few: no row 'smal'; did you mean 'small'"),
        ("analyses: {attention: [small, smal]}", "analyses.attention: no row 'smal'; did you mean 'small'"),
        ("analyses: {attention: [small, 'smal*']}", r"analyses.attention: no row 'smal\*'"),  # a folder has one name
        ("agreements: {both: {rows: [smal, small]}}", "agreements.both: no row 'smal'; did you mean 'small'"),
        ("agreements: {both: {rows: ['smal*', small]}}", r"agreements.both: no row 'smal\*'"),
        ("robustness: {rows: [smal], sets: [a]}", "robustness.rows: no row 'smal'; did you mean 'small'"),
        ("presets: {quick: {rows: {smal: {}}}}", "presets.quick.rows: no row 'smal'; did you mean 'small'"),
        ("presets: {quick: {rows: [small]}}", "presets.quick: rows: names with their values are expected"),
        ("presets: {quick: {rows: {small: 3}}}", "presets.quick: rows.small: fields with their values are expected"),
    ],
)
def test_what_names_a_row_that_there_is_not(tmp_path, text, message):
    path = tmp_path / "first.yaml"
    path.write_text(RECIPE.replace("presets:\n  official: {optim.lr: 2e-3, data.fraction: 0.25}\n", "") + text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)
