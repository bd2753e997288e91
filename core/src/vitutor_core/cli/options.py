"""Options and small helpers that several commands share. Imports nothing heavy.

The commands of a paper find it as the object of click's context.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from vitutor_core.config import setting
from vitutor_core.errors import ConfigError, VitutorError
from vitutor_core.graph.params import check_seeds
from vitutor_core.jobs.train import Asked
from vitutor_core.paper import installed_paper
from vitutor_core.recipe import OWN, default_scale, read_recipe, recipe_path
from vitutor_core.terminal import command_line


class PathOption(click.Path):
    """A path that is not empty, as that of an unset shell variable is: it would be the current folder."""

    def __init__(self, **checks: Any) -> None:
        super().__init__(path_type=Path, **checks)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("is empty; name a path (is a shell variable not set?)", param, ctx)
        return super().convert(value, param, ctx)


SCALES = ("digits", "scenes", "small", "cifar100", "imagenet")
"""Of the papers' tables; at the scale `OWN` the user's own images take the place of theirs."""


def folder(name: str, text: str, *, exists: bool = False, **how: Any) -> Callable[[Any], Any]:
    """Return an option that names a folder; the parameter's name may follow the option's."""
    return click.option(*name.split(), type=PathOption(exists=exists, file_okay=False), help=text, **how)


def file(name: str, text: str, *, exists: bool = False, **how: Any) -> Callable[[Any], Any]:
    """Return an option that names a file, likewise."""
    return click.option(*name.split(), type=PathOption(exists=exists, dir_okay=False), help=text, **how)


def names(name: str, text: str) -> Callable[[Any], Any]:
    """Return an option that takes names, separated by commas, as a list."""
    return click.option(name, help=text, callback=lambda _ctx, _param, value: value and value.split(","))


def number(name: str, text: str, *, least: int = 1, most: int | None = None, **how: Any) -> Callable[[Any], Any]:
    """Return an option that takes a whole number."""
    return click.option(name, type=click.IntRange(least, most), show_default="default" in how, help=text, **how)


def seed_numbers(text: str) -> tuple[int, ...]:
    """Read the seeds of --seeds; raises `ConfigError`."""
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text}: write whole numbers separated by commas") from None
    try:
        return check_seeds(seeds)
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: {error}") from None


def _complete(part: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return what completes names of a ``part`` of the recipe that is chosen so far, each with what it changes."""

    def names(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
        if ctx.obj is None:
            return []  # click knows no argument PAPER while an option waits for its value
        try:
            chosen = recipe_path(ctx.obj.package, ctx.params.get("scale") or "digits", ctx.params.get("recipe"))
            found = getattr(read_recipe(chosen), part)
        except VitutorError:
            return []  # the command itself says what is wrong with the recipe
        return [CompletionItem(name, help=brief(changes)) for name, changes in found.items() if name.startswith(typed)]

    return names


def brief(changes: Mapping[str, object]) -> str:
    """Show what a row changes, as --set takes it; of a whole section only its first value, which may name it."""
    return ", ".join(setting(*_first(path, value)) for path, value in changes.items()) or "the base as it is"


def _first(path: str, value: object) -> tuple[str, object]:
    if not isinstance(value, Mapping) or not value:
        return path, value
    name, first = next(iter(value.items()))
    return f"{path}.{name}", first


scale = click.option(
    "--scale",
    type=click.Choice(SCALES),
    default="digits",
    show_default=True,
    help="Which recipe: data and model size.",
)
any_scale = click.option(
    "--scale",
    type=click.Choice((*SCALES, OWN)),
    # What is given has been read before what is not.
    callback=lambda ctx, _param, value: value or default_scale(ctx.params.get("recipe")),
    help="Which recipe: data and model size; own: your images (--source), sized to them.  [default: digits]",
)
source = click.option("--source", metavar="SOURCE", help="Short for --set data.source=SOURCE, e.g. folder:my_images.")
recipe = file("--recipe", "A recipe file of your own, instead of --scale's; --scale is then own, unless given.")


def settings_like(example: str) -> Callable[[Any], Any]:
    """Return the --set option of a command whose config has the field of ``example``."""
    text = f"Override a field, e.g. {example}; repeatable."
    return click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help=text)


settings = settings_like("train.epochs=5")
seed = number("--seed", "Short for --set seed=N.", least=0)
seeds = click.option(
    "--seeds",
    default="0,1,2",
    show_default=True,
    help="Seeds, separated by commas.",
    callback=lambda _ctx, _param, text: seed_numbers(text),
)
row = click.option("--row", help="A row of the paper's tables, as `rows` lists them.", shell_complete=_complete("rows"))
row_argument = click.argument("row", shell_complete=_complete("rows"))
preset = click.option(
    "--preset",
    help="A preset, such as the paper's or the released code's reading.",
    shell_complete=_complete("presets"),
)
ema = click.option("--ema", is_flag=True, help="Take the average of the weights, of a run with train.ema_decay.")
device = click.option("--device", default="auto", show_default=True, help="Device: auto, cpu, cuda or cuda:N.")
_TEACHERS = "Folder with one run per teacher recipe; a missing one is trained there."
teachers = folder("--teachers", f"{_TEACHERS}  [default: OUT/teachers]")
own_teachers = folder("--teachers", _TEACHERS, default=Path("teachers"), show_default=True)
plan = folder(
    "--plan",
    "Plan of `vitutor plan`, which says what is run and with which seeds, instead of the other options.",
    exists=True,
)
stage_plan = file("--plan", "The stage's file of a plan.", exists=True)
results = folder(
    "--results",
    "Folder of results: data/, teachers/, runs/, evaluation/.",
    default=Path("results"),
    show_default=True,
)
work = folder("--work", "Folder of unfinished runs.", default=Path("work"), show_default=True)
out = folder("--out", "Folder of the run; the same command again resumes it.", required=True)


def jobs(text: str) -> Callable[[Any], Any]:
    """Return the --jobs option, of what is done side by side."""
    return number("--jobs", f"{text}.  [default: one per GPU, or cores + 1]")


def with_shorts(settings: tuple[str, ...], *, source: str | None = None, seed: int | None = None) -> tuple[str, ...]:
    """Return the settings of --set with those of --source, over which they win, and of --seed."""
    first = () if source is None else (setting("data.source", source),)
    return (*first, *settings, *(() if seed is None else (f"seed={seed}",)))


def asked(command: Any) -> Any:
    """Give a command the run that its options ask for, as ``asked``: of the group's paper, or of an argument PAPER."""

    def called(**given: Any) -> Any:
        of = installed_paper(given.pop("paper")) if "paper" in given else click.get_current_context().obj
        own = with_shorts(given.pop("settings"), source=given.pop("source"), seed=given.pop("seed"))
        place = {name: given.pop(name) for name in ("scale", "recipe", "preset", "row")}
        return command(asked=Asked(of, settings=own, command=command_line(of.command), **place), **given)

    called = functools.update_wrapper(called, command)
    for option in (settings, seed, row, preset, recipe, source, any_scale):
        called = option(called)
    return called
