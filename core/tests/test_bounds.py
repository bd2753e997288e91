"""Every number field of every config has a lower and an upper bound, and says so in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
import pytest

from dearkd.generation.config import GenerationConfig
from vitutor_core.cli.options import seed_numbers
from vitutor_core.config import Config
from vitutor_core.data.augment.randaugment import parse
from vitutor_core.errors import ConfigError
from vitutor_core.graph.params import Params
from vitutor_core.paper import installed_papers, load
from vitutor_core.schema import KwargValue, RunConfig

SCHEMAS = (Params, GenerationConfig, RunConfig, *(load(paper.config) for paper in installed_papers().values()))


def sections(schema: Any) -> Iterator[type[Config]]:
    """Yield a config's own class and those of its sections, whatever they are in."""
    if isinstance(schema, type) and issubclass(schema, Config):
        yield schema
        for field in schema.model_fields.values():
            yield from sections(field.annotation)
    else:
        for argument in get_args(schema):
            yield from sections(argument)


def unbounded(annotation: Any, bounds: tuple[object, ...] = ()) -> bool:
    """Return whether a number of this type may be as large or as small as it likes."""
    if annotation in (int, float):
        lower = any(isinstance(bound, annotated_types.Ge | annotated_types.Gt) for bound in bounds)
        return not (lower and any(isinstance(bound, annotated_types.Le | annotated_types.Lt) for bound in bounds))
    if get_origin(annotation) is Annotated:
        inner, *given = get_args(annotation)
        found = [bound for field in given for bound in getattr(field, "metadata", [field])]
        return unbounded(inner, (*bounds, *found))
    if get_origin(annotation) is Literal:
        return False
    inherits = get_origin(annotation) not in (tuple, dict)
    return any(unbounded(argument, bounds if inherits else ()) for argument in get_args(annotation))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_every_number_is_bounded(schema: type[Config]) -> None:
    fields = [
        f"{section.__name__}.{name}"
        for section in set(sections(schema))
        for name, field in section.model_fields.items()
        if field.annotation != dict[str, KwargValue] and unbounded(field.annotation, tuple(field.metadata))
    ]
    assert fields == []


def config() -> RunConfig:
    values = {
        "data": {"image_size": 8},
        "student": {"name": "a"},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 2},
    }
    return RunConfig.from_mapping(values, where="test")


@pytest.mark.parametrize("number", ["99999999999999999999", "18446744073709551616", "-1", "1e309", "-1e308"])
@pytest.mark.parametrize(
    "field",
    [
        "seed",
        "data.subset_seed",
        "data.holdout_seed",
        "data.image_size",
        "data.per_class",
        "augment.pad_crop",
        "augment.repeats",
        "augment.color_jitter",
        "optim.betas.0",
        "train.epochs",
        "train.batch_size",
        "runtime.threads",
        "runtime.workers",
        "runtime.eval_batch_size",
    ],
)
def test_numbers_out_of_bounds_are_one_line(field: str, number: str) -> None:
    name = field.removesuffix(".0")
    setting = f"optim.betas=[{number}, 0.9]" if name == "optim.betas" else f"{field}={number}"
    with pytest.raises(ConfigError, match=name) as error:
        config().changed([setting])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["rand-m9-n999999999", "rand-n101", "rand-n0", "rand-m999999", "rand-m9-mmax1000"])
def test_randaugment_is_bounded(text: str) -> None:
    with pytest.raises(ConfigError, match=r"augment\.rand_augment: .* n from 1 to 100, m and mmax up to 100"):
        parse(text)
    assert parse("rand-m100-n100").num_layers == 100


@pytest.mark.parametrize("seeds", ["0,99999999999999999999", "-1", "0,0", "9007199254740993"])
def test_seeds_are_bounded(seeds: str) -> None:
    with pytest.raises(ConfigError, match="name each seed once, from 0 to 9007199254740992"):
        seed_numbers(seeds)
    assert seed_numbers("9007199254740992") == (2**53,)
