"""The commands ``dearkd generate`` and ``dearkd diversity``. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dearkd.generation.config import GenerationConfig
from vitutor_core.cli import options
from vitutor_core.config import setting
from vitutor_core.errors import ConfigError, goes_on
from vitutor_core.graph.planned import left_out, read_planned
from vitutor_core.paper import Paper, load
from vitutor_core.provenance import here
from vitutor_core.recipe import read_recipe, recipe_path, resolve
from vitutor_core.terminal import command_line


@click.command("generate")
@click.argument("name")
@options.scale
@options.file("--recipe", "A recipe file of your own, instead of --scale's.")
@options.settings_like("flip=0.5")
@options.plan
@options.results
@click.option("--shard", metavar="I/N", help="Only the batches of shard I of N, counted from 1; nothing is published.")
@options.jobs("Processes side by side")
@options.work
@click.option("--out", type=options.PathOption(file_okay=False), help="Folder.  [default: RESULTS/generated/NAME]")
@click.pass_obj
@goes_on()
def generate(
    paper: Paper,
    name: str,
    scale: str,
    recipe: Path | None,
    settings: tuple[str, ...],
    plan: Path | None,
    results: Path,
    shard: str | None,
    jobs: int | None,
    work: Path,
    out: Path | None,
) -> None:
    """Generate the images NAME (plain, adaptive or intra) from a trained CNN alone, and publish them into OUT.

    Finished batches lie in WORK, so an interrupted command goes on. On several machines, run shards over one WORK;
    the command without --shard then finds all batches there and publishes.
    """
    out = out or results / "generated" / name
    stage = None if plan is None else plan / "stages" / f"dearkd_generate-{name}.json"
    if left_out(stage, f"{name}: not generated", out):
        return
    processes = 1 if plan is None else read_planned(plan / "runtime.json")["processes"]
    config = resolve_generation(scale, recipe, name, settings)
    own = _parse_shard(shard)
    load(paper.method)  # registers the paper's models with timm, of which the competitor is one
    from dearkd.generation.generate import Generation, check_target
    from dearkd.generation.jobs import generate_side_by_side
    from vitutor_core.jobs.launch import default_jobs
    from vitutor_core.jobs.teacher import trained_teacher

    if config.teacher.recipe is not None and config.teacher.weights is None:
        weights = trained_teacher(scale, config.teacher.recipe, results / "teachers")
        config = config.changed([setting("teacher.weights", str(weights))])
    check_target(out)
    folder, title = work / paper.package / scale, f"generate-{name}"
    generation = Generation(config, title, folder)
    details = {"scale": scale, "command": command_line(paper.command), **here("dearkd")}
    if own is not None:
        generation.run(generation.missing(own))
        click.echo(f"{name}: shard {shard} done, {len(generation.missing())} batches of all shards are missing")
        return
    record = generation.published(out)
    if record is None:
        missing = generation.missing()
        side_by_side = min(jobs or max(processes, default_jobs(config.runtime.device)), len(missing))
        if side_by_side > 1:
            generate_side_by_side(generation, title, folder, side_by_side)
        else:
            generation.run(missing)
        record = generation.publish(out, details)
    click.echo(
        f"{name}: {record['num_images']:,} images in {out}, "
        f"{record['teacher_accuracy']:.1f} % of them of their class for the teacher"
    )


@click.command("diversity")
@options.scale
@options.plan
@options.results
@click.option(
    "--features",
    type=options.PathOption(exists=True),
    help="Run whose model gives the feature space, trained on real images.  [default: row vit, seed 0]",
)
@click.option(
    "--lpips",
    metavar="FILE|download|auto",
    help="LPIPS too: AlexNet's weights as safetensors, or torchvision's; auto: torchvision's if they can be had.",
)
@options.settings_like("diversity_pairs=10")
@click.pass_obj
def diversity(
    paper: Paper,
    scale: str,
    plan: Path | None,
    results: Path,
    features: Path | None,
    lpips: str | None,
    settings: tuple[str, ...],
) -> None:
    """Measure how different the images below RESULTS/generated and the real ones are, for the paper's table.

    --set changes the scale's generation recipe.
    """
    stage = None if plan is None else plan / "stages" / "dearkd_diversity-images.json"
    sets = ("real", *read_recipe(recipe_path("dearkd", f"generation/{scale}")).rows)
    evaluation = results / "evaluation" / "dearkd"
    if left_out(stage, "images: not measured", *(evaluation / f"images_{name}" for name in sets)):
        return
    config = resolve_generation(scale, None, None, settings)
    data = paper.resolve(scale, None, None, ()).data
    load(paper.method)  # registers the paper's models with timm
    from dearkd.generation.measure import measure_sets

    for name, metrics in measure_sets(
        config,
        data,
        results / "generated",
        features=features or results / "runs" / "dearkd" / "vit" / "seed-0",
        lpips=lpips,
        out=evaluation,
        scale=scale,
        command=command_line(paper.command),
    ):
        shown = ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items())
        click.echo(f"{name:12}{shown}")


def resolve_generation(
    scale: str, recipe: Path | None, name: str | None, settings: tuple[str, ...]
) -> GenerationConfig:
    """Return the validated config of a set of images."""
    return resolve(GenerationConfig, recipe_path("dearkd", f"generation/{scale}", recipe), row=name, settings=settings)


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise ConfigError(f"--shard {text}: write it as I/N, from 1/N to N/N")
    return int(found[1]), int(found[2])
