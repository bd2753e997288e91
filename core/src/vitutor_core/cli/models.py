"""What is asked of trained models: predict, convert, analyze, agreement, replay. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.graph.planned import left_out
from vitutor_core.jobs.predict import predict_images
from vitutor_core.jobs.replay import replay_run
from vitutor_core.paper import Paper

_models = click.argument("models", nargs=-1, required=True, type=options.PathOption())
_source = click.option("--source", help="Data source of the images, as data.source.  [default: that of the first run]")
_seed = options.number("--seed", "Which images are drawn.", least=0, default=0)
_out = options.folder("--out", "Folder of analysis.json and the figures.", required=True)


@click.command("predict")
@click.argument("model", metavar="RUN|FILE", type=options.PathOption(exists=True))
@click.argument("images", nargs=-1, required=True)
@options.number("--top", "Classes per image.", default=5)
@options.file("--csv table", "Write there, a line for each image.")
@options.ema
@options.number("--batch", "Images at once.", most=2**20, default=256)
@options.device
@click.pass_obj
def predict(paper: Paper | None, /, model: Path, images: tuple[str, ...], **how: Any) -> None:
    """Name the classes of IMAGES: files, folders with all below them, or patterns such as 'new/*.jpg'.

    The model is a finished run, of a student or a teacher, an exported folder or a weights file; images are
    prepared as in its evaluation. Those that cannot be read are named at the end, and the exit code is 3 then.
    """
    predict_images(paper, model, images, **how)


@click.command("convert")
@click.argument("file", type=options.PathOption(exists=True, dir_okay=False))
@options.file("--to", "The safetensors file to write.", required=True)
@click.option("--model", "name", metavar="NAME", help="Architecture, by timm's name.  [default: by names and shapes]")
@click.option("--set", "settings", multiple=True, metavar="kwargs.NAME=VALUE", help="An argument of --model.")
@click.option("--key", help="Which part of the checkpoint, e.g. model_ema.  [default: the first of the usual ones]")
@options.number("--image-size", "Side of the input.  [default: that of the file]", least=4, most=8192)
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


@click.command("analyze")
@_models
@_source
@options.number("--images", "Evaluation images.", least=4, default=1152)
@options.number("--batch", "Images per CKA batch.", least=4, default=128)
@_seed
@options.device
@click.option("--released", is_flag=True, help="As released with arXiv 2205.14443: units, epsilon, last norm, images.")
@click.option("--true-nyquist", is_flag=True, help="Fourier curves up to the highest frequency.")
@options.stage_plan
@_out
def analyze(models: tuple[Path, ...], plan: Path | None, out: Path, **how: Any) -> None:
    """Compare the layers of one or two MODELS and draw their attention.

    A model is a finished run of any paper, an exported folder, a weights file, also one of `vitutor convert`, or a
    timm name with weights, such as vit_base_patch16_224.mae.

    Writes cka.svg, fourier.svg, attention-<model>.svg and analysis.json into OUT. With two models, the second is the
    reference. Images are drawn at random from the evaluation split.
    """
    if left_out(plan, "not analysed", out):
        return
    from vitutor_core.jobs.analyse import analyse_models

    for path in analyse_models(models, out, **how):
        click.echo(str(path))


@click.command("agreement")
@_models
@click.option("--beside", multiple=True, type=options.PathOption(), help="A model that is shown as well.")
@click.option("--image", "named", multiple=True, help="Show these files, folders or patterns, instead of a choice.")
@_source
@options.number("--images", "Evaluation images.", default=2000)
@_seed
@options.number("--each", "Images shown of each kind.", most=10, default=1)
@options.number("--top", "Classes shown of an image.", most=10, default=4)
@options.device
@options.stage_plan
@_out
def agreement(models: tuple[Path, ...], plan: Path | None, out: Path, **shown: Any) -> None:
    """Find the images on which MODELS agree or complement each other, and draw what they say of a few.

    A model is a finished run, of a student or a teacher, an exported folder or a weights file. Shown are images of
    which all MODELS name the class, and images of which one alone does, model by model: the first ones in a random
    order of the evaluation split. Those given by --beside do not count in this choice.

    Writes agreement.svg and analysis.json into OUT.
    """
    if left_out(plan, "not compared", out):
        return
    from vitutor_core.jobs.agreement import agreement_of

    for path in agreement_of(models, out, **shown):
        click.echo(str(path))


@click.command("replay")
@click.argument("run", type=options.PathOption(exists=True, file_okay=False))
@options.number("--step", "Which step, counted from 0.", least=0, required=True)
@click.option(
    "--epoch", "whole_epoch", is_flag=True, help="Go on to the end of its epoch, to compare the means of curves.csv."
)
@options.folder("--images", "Write the batch there: a contact sheet as the model saw it, and a list of all its images.")
@options.settings_like("runtime.device=cpu")
def replay(run: Path, step: int, whole_epoch: bool, images: Path | None, settings: tuple[str, ...]) -> None:
    """Make a step of RUN again: its losses, gradient norms and images.

    RUN may be unfinished, killed, finished or published. The nearest checkpoint before the step is taken, else the
    initialisation. Of a run whose loss became NaN, the first step that is not finite is shown. A run of several
    processes is replayed by as many. --set is for runtime fields, such as weights that lie elsewhere now. Nothing is
    written into RUN; an epoch that is made again as a whole may add a teacher's logits to cache.folder.
    """
    replay_run(run, step, whole_epoch=whole_epoch, images=images, settings=settings)
