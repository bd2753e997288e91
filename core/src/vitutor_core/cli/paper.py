"""The commands of a paper package: train, evaluate, export, config, reproduce.

A package makes its whole command line with `paper_group`; config and method are named, not imported, so that
``--help`` and config mistakes are answered at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.recipe import read_recipe, recipe_path, resolve
from vitutor_core.schema import RunConfig


@dataclass(frozen=True)
class Paper:
    """A paper package: its folder name, and where its config and its method are (``module:name``).

    For `vitutor compare`: ``plain_row`` is the row of the student without the method; of ``method_rows`` the last is
    the method's, and those before it are pre-training.
    """

    package: str
    config: str
    method: str
    plain_row: str | None = None
    method_rows: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return self.package.replace("_", "-")

    def resolve(
        self,
        scale: str,
        recipe: Path | None,
        row: str | None,
        settings: tuple[str, ...],
        *,
        preset: str | None = None,
    ) -> RunConfig:
        """Return the validated config of a run."""
        schema: type[RunConfig] = options.load(self.config)
        path = recipe_path(self.package, scale, recipe)
        return resolve(schema, path, preset=preset, row=row, settings=settings)


def paper_group(paper: Paper, summary: str) -> click.Group:
    """Build the command line of a paper."""

    @click.group(name=paper.command, help=summary, context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name=f"vitutor-{paper.command}")
    def group() -> None:
        pass

    for command in (_train, _reproduce, _config, _rows, _evaluate, _export):
        group.add_command(command(paper))
    return group


def _settings(settings: tuple[str, ...], seed: int | None) -> tuple[str, ...]:
    return settings if seed is None else (*settings, f"seed={seed}")


def _train(paper: Paper) -> click.Command:
    @click.command("train")
    @options.scale
    @options.recipe
    @options.preset
    @click.option("--row", help="A row of the paper's tables, as `rows` lists them.")
    @options.seed
    @options.settings
    @options.teachers
    @options.out()
    def train(
        scale: str,
        recipe: Path | None,
        preset: str | None,
        row: str | None,
        seed: int | None,
        settings: tuple[str, ...],
        teachers: Path | None,
        out: Path,
    ) -> None:
        """Train one run into OUT; the same command again resumes it."""
        config = paper.resolve(scale, recipe, row, _settings(settings, seed), preset=preset)
        from vitutor_core.cli.teacher import with_teachers
        from vitutor_core.train.progress import QUIET
        from vitutor_core.train.session import RunLabel
        from vitutor_core.train.session import train as run_session

        config = with_teachers(config, scale, teachers or out / "teachers")
        label = RunLabel(paper.package, row or "train", scale, options.command_line(paper.command))
        result = run_session(config, options.load(paper.method).build, label=label, out=out)
        if os.environ.get("RANK", "0") == "0" and os.environ.get(QUIET) != "1":
            click.echo(f"{_measured(result['metrics'])} on {result['metrics']['images']:.0f} images; {out}")

    return train


def _measured(metrics: dict[str, float]) -> str:
    """Say what was measured: the accuracy, or of a model that is no classifier yet its own figures."""
    if "top1" in metrics:
        return f"top-1 {metrics['top1']:.2f} %"
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "images")


def _reproduce(paper: Paper) -> click.Command:
    @click.command("reproduce")
    @click.argument("row")
    @options.scale
    @click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, separated by commas.")
    @options.preset
    @options.settings
    @options.teachers
    @click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("work"), show_default=True)
    @click.option("--jobs", type=click.IntRange(min=1), help="Seeds trained at once.  [default: cores + 1; 1 on a GPU]")
    @options.out()
    def reproduce(
        row: str,
        scale: str,
        seeds: str,
        preset: str | None,
        settings: tuple[str, ...],
        teachers: Path | None,
        work: Path,
        jobs: int | None,
        out: Path,
    ) -> None:
        """Train ROW of the paper's tables with several seeds and publish the results into OUT.

        Checkpoints live in WORK, in a folder named by the fingerprint, so an interrupted command resumes and a
        changed hyper-parameter starts afresh.
        """
        from vitutor_core.cli.seeds import reproduce_row

        numbers = options.seed_numbers(seeds)
        configs = [paper.resolve(scale, None, row, _settings(settings, seed), preset=preset) for seed in numbers]
        reproduce_row(
            paper,
            row,
            scale,
            configs,
            preset=preset,
            settings=settings,
            teachers=teachers,
            work=work,
            jobs=jobs,
            out=out,
        )

    return reproduce


def _config(paper: Paper) -> click.Command:
    @click.command("config")
    @options.scale
    @options.recipe
    @options.preset
    @click.option("--row", help="A row of the paper's tables.")
    @options.seed
    @options.settings
    def config(
        scale: str,
        recipe: Path | None,
        preset: str | None,
        row: str | None,
        seed: int | None,
        settings: tuple[str, ...],
    ) -> None:
        """Print the resolved config as JSON, and its fingerprint."""
        resolved = paper.resolve(scale, recipe, row, _settings(settings, seed), preset=preset)
        click.echo(resolved.model_dump_json(indent=2))
        click.echo(f"fingerprint {resolved.fingerprint()}", err=True)

    return config


def _rows(paper: Paper) -> click.Command:
    @click.command("rows")
    @options.scale
    def rows(scale: str) -> None:
        """List the rows and presets that a scale's recipe has, with what each changes."""
        recipe = read_recipe(recipe_path(paper.package, scale))
        for name, changes in recipe.rows.items():
            click.echo(f"{name:28}{_brief(changes)}")
        for name, changes in recipe.presets.items():
            click.echo(f"{'--preset ' + name:28}{_brief(changes)}")

    return rows


def _brief(changes: Mapping[str, object]) -> str:
    """Show what a row changes; of a whole section only its first value, which names it."""
    shown = {
        path: next(iter(value.values()), None) if isinstance(value, Mapping) else value
        for path, value in changes.items()
    }
    return ", ".join(f"{path}={'null' if value is None else value}" for path, value in shown.items())


def _evaluate(paper: Paper) -> click.Command:
    @click.command("evaluate")
    @click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
    @click.option("--speed", is_flag=True, help="Measure throughput as well.")
    def evaluate(run: Path, speed: bool) -> None:
        """Evaluate the finished RUN again, from its weights: accuracy, calibration, parameters, FLOPs."""
        from vitutor_core.cli.artefacts import evaluate_run

        options.load(paper.method)  # registers the paper's models with timm
        click.echo(json.dumps(evaluate_run(run, options.load(paper.config), paper.package, speed=speed), indent=2))

    return evaluate


def _export(paper: Paper) -> click.Command:
    @click.command("export")
    @click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
    @click.option("--to", "target", required=True, type=click.Path(dir_okay=False, path_type=Path))
    def export(run: Path, target: Path) -> None:
        """Write the student of RUN as safetensors for timm.create_model, with a model card beside it."""
        from vitutor_core.cli.artefacts import export_run

        options.load(paper.method)  # registers the paper's models with timm
        for line in export_run(run, target, paper.package):
            click.echo(line)

    return export
