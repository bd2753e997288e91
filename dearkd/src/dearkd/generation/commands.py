"""The commands ``dearkd generate`` and ``dearkd diversity``. Imports nothing heavy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from dearkd.generation.config import GenerationConfig
from vitutor_core.cli import options
from vitutor_core.cli.paper import Paper
from vitutor_core.errors import ConfigError
from vitutor_core.recipe import recipe_path, resolve


def generate_command(paper: Paper) -> click.Command:
    """Build ``generate``: invert a teacher into a set of images."""

    @click.command("generate")
    @click.argument("name")
    @options.scale
    @options.recipe
    @options.settings
    @options.teachers
    @click.option(
        "--shard", metavar="I/N", help="Only the batches of shard I of N, counted from 1; nothing is published."
    )
    @click.option("--jobs", type=click.IntRange(min=1), help="Processes side by side.  [default: cores; 1 on a GPU]")
    @click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("work"), show_default=True)
    @options.out()
    def generate(
        name: str,
        scale: str,
        recipe: Path | None,
        settings: tuple[str, ...],
        teachers: Path | None,
        shard: str | None,
        jobs: int | None,
        work: Path,
        out: Path,
    ) -> None:
        """Generate the images NAME (plain, adaptive or intra) from a trained CNN alone, and publish them into OUT.

        Finished batches lie in WORK, so an interrupted command goes on. On several machines, run shards over one WORK;
        the command without --shard then finds all batches there and publishes.
        """
        config = resolve_generation(paper, scale, recipe, name, settings)
        own = _parse_shard(shard)
        options.load(paper.method)  # registers the paper's models with timm, of which the competitor is one
        from dearkd.generation.generate import Generation, check_target
        from dearkd.generation.jobs import generate_side_by_side
        from vitutor_core.cli.seeds import default_jobs
        from vitutor_core.cli.teacher import trained_teacher

        if config.teacher.recipe is not None and config.teacher.weights is None:
            weights = trained_teacher(scale, config.teacher.recipe, teachers or work / "teachers" / scale)
            config = config.changed([f"teacher.weights={json.dumps(str(weights))}"])
        check_target(out)
        generation = Generation(config, f"generate-{name}", work / paper.package / scale)
        if own is not None:
            generation.run(generation.missing(own))
            click.echo(f"{name}: shard {shard} done, {len(generation.missing())} batches of all shards are missing")
            return
        record = generation.published(out)
        if record is None:
            missing = generation.missing()
            side_by_side = min(jobs or default_jobs(), len(missing))
            if side_by_side > 1:
                arguments = ["generate", name, "--scale", scale, "--work", str(work), "--out", str(out)]
                arguments += ["--recipe", str(recipe)] if recipe is not None else []
                arguments += [part for setting in settings for part in ("--set", setting)]
                arguments += ["--set", f"teacher.weights={json.dumps(config.teacher.weights)}"]
                generate_side_by_side(paper, generation, arguments, side_by_side)
            else:
                generation.run(missing)
            record = generation.publish(out, {"scale": scale, "command": options.command_line(paper.command)})
        click.echo(
            f"{name}: {record['num_images']:,} images in {out}, "
            f"{record['teacher_accuracy']:.1f} % of them of their class for the teacher"
        )

    return generate


def diversity_command(paper: Paper) -> click.Command:
    """Build ``diversity``: how different the images of one class are, in each set and in the real data (Table 6)."""

    @click.command("diversity")
    @options.scale
    @click.option(
        "--images",
        required=True,
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of the sets that `generate` published, one folder per name.",
    )
    @click.option(
        "--features",
        required=True,
        type=click.Path(exists=True, path_type=Path),
        help="Run folder whose model gives the feature space; take one that was trained on real images.",
    )
    @click.option(
        "--lpips", metavar="FILE|download", help="LPIPS too: AlexNet's weights as safetensors, or torchvision's."
    )
    @options.settings
    @options.out()
    def diversity(
        scale: str, images: Path, features: Path, lpips: str | None, settings: tuple[str, ...], out: Path
    ) -> None:
        """Measure the diversity of real and generated images and write OUT/images_NAME for the table.

        --set changes the scale's generation recipe, e.g. --set diversity_pairs=10.
        """
        config = resolve_generation(paper, scale, None, None, settings)
        data = paper.resolve(scale, None, None, ()).data
        options.load(paper.method)  # registers the paper's models with timm
        from dearkd.generation.measure import measure_sets

        command = options.command_line(paper.command)
        for name, metrics in measure_sets(
            config, data, images, features=features, lpips=lpips, out=out, scale=scale, command=command
        ):
            shown = ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items())
            click.echo(f"{name:12}{shown}")

    return diversity


def resolve_generation(
    paper: Paper, scale: str, recipe: Path | None, name: str | None, settings: tuple[str, ...]
) -> GenerationConfig:
    """Return the validated config of a set of images."""
    path = recipe_path(paper.package, f"generation/{scale}", recipe)
    return resolve(GenerationConfig, path, row=name, settings=settings)


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise ConfigError(f"--shard {text}: write it as I/N, from 1/N to N/N")
    return int(found[1]), int(found[2])
