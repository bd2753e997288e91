"""vitutor convert: checkpoints that others published, as safetensors with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options


@click.command("convert")
@click.argument("file", type=options.PathOption(exists=True, dir_okay=False))
@options.file("--to", "The safetensors file to write.", required=True)
@click.option("--model", "name", metavar="NAME", help="Architecture, by timm's name.  [default: by names and shapes]")
@click.option("--set", "settings", multiple=True, metavar="kwargs.NAME=VALUE", help="An argument of --model.")
@click.option("--key", help="Which part of the checkpoint, e.g. model_ema.  [default: the first of the usual ones]")
@click.option("--image-size", type=click.IntRange(4, 8192), help="Side of the input.  [default: that of the file]")
@click.option("--classes", metavar="LIST", help="Classes in the order of its logits, as data.class_list.")
@click.option("--source", help="Data that it was trained on, as data.source: classes and normalisation.")
@options.file("--beside", "Keep a decoder or projector there.")
def convert(file: Path, to: Path, **how: Any) -> None:
    """Make a published checkpoint, .pth or .safetensors, a weights file that the other commands read.

    It knows how the authors of DeiT, Swin, CvT, T2T-ViT and RedNet name their tensors, and what the installed papers
    add. Every change is printed: a prefix that is removed, positions that are resampled, what is left out. Whatever
    else does not fit is refused. The classes are ImageNet's unless --classes or --source names others.
    """
    from vitutor_core.jobs.convert import convert_file

    for line in convert_file(file, to, **how):
        click.echo(line)
