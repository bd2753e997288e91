"""Say what a run on a user's own images was sized to, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vitutor_core.own import CPU_SIZE, FULL_SIZE, Images, Machine
from vitutor_core.progress import is_silent
from vitutor_core.schema import ModelConfig, RunConfig
from vitutor_core.sizing import images_of, machine
from vitutor_core.terminal import printable, say


def show_sizes(config: RunConfig, teachers: Mapping[str, RunConfig] = MappingProxyType({})) -> None:
    """Print a short table of a config and of its ``teachers``; nothing in processes whose parent speaks for them."""
    if is_silent():
        return
    for name, text in size_lines(config, teachers):
        say(printable(f"{name:10}{text}"), err=True)


def size_lines(config: RunConfig, teachers: Mapping[str, RunConfig]) -> list[tuple[str, str]]:
    """Return what is said of each size: its name, its value and where that comes from."""
    images, on, train = images_of(config.data), machine(config.runtime.device), config.train
    held_out = ", held out of the training images" if images.held_out else ""
    updates = (images.whole if train.epoch_length == "full" else images.train) // train.batch_size
    streamed = config.data.loader == "streamed"
    return [
        (
            "images",
            f"{images.train:,} to train on, {images.evaluation:,} to evaluate on{held_out}; {images.classes:,} classes",
        ),
        ("machine", f"{on.cores} cores, {'a GPU' if on.has_gpu else 'no GPU'}"),
        ("size", f"{config.data.image_size} px{_why(config.data.image_size, images, on)}"),
        ("student", _model(config.student)),
        *(
            ("teacher", f"{name}: {_model(of.student)}; {of.train.epochs:,} epochs on the same images, first")
            for name, of in teachers.items()
        ),
        (
            "training",
            f"{train.epochs:,} epochs of {updates:,} updates of {train.batch_size} images, {train.epochs * updates:,} "
            f"updates in all; warm-up {config.optim.warmup_epochs:g} epochs",
        ),
        ("loading", f"read by {config.runtime.workers} workers" if streamed else "kept in memory"),
    ]


def _why(size: int, images: Images, on: Machine) -> str:
    if images.side > size == CPU_SIZE and not on.has_gpu:
        return f" of your images' {images.side}: without a GPU a larger size takes hours"
    if size == FULL_SIZE <= images.side:
        return f" of your images' {images.side}"
    return f"; your images have {images.side}"


def _model(config: ModelConfig) -> str:
    shown = ", ".join(f"{name} {value}" for name, value in config.kwargs.items() if isinstance(value, int))
    weights = ", pre-trained weights" if config.pretrained else ""
    return f"{config.name}{weights}" + (f" ({shown})" if shown else "")
