"""The first forward passes of a run, made before it: what cannot work is said in one line, and early."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distributed import world
from vitutor_core.errors import ConfigError, VitutorError, first_line
from vitutor_core.schema import RunConfig
from vitutor_core.train.memory import is_out_of_memory
from vitutor_core.train.method import Clock, Method

SMALL = 10**6
"""Parameters up to which a few images take less time than the meta device does."""


def check_first_step(method: Method, config: RunConfig, info: DataInfo) -> None:
    """Run student, teachers and method forward once on images of the run's size; raises `ConfigError` if one fails.

    It runs a copy, on the meta device, where nothing is computed. A small method, and what cannot run there, is run on
    a few black images. The method stays as it is, and so do the generators of random numbers.
    """
    micro_batch = max(config.train.batch_size // (config.train.accumulate * world()[1]), 1)
    is_small = sum(parameter.numel() for parameter in method.parameters()) <= SMALL
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if is_small or not _runs_on_meta(method, config, info, micro_batch):
            _run(copy.deepcopy(method), config, info, torch.device("cpu"), min(micro_batch, 4))


def _runs_on_meta(method: Method, config: RunConfig, info: DataInfo, count: int) -> bool:
    try:
        _run(copy.deepcopy(method).to("meta"), config, info, torch.device("meta"), count)
    except Exception:  # whatever it is, the CPU shows whether it is an error
        return False
    return True


def _run(method: Method, config: RunConfig, info: DataInfo, device: torch.device, count: int) -> None:
    images = torch.zeros(count, info.channels, info.image_size, info.image_size, device=device)
    name, size = config.student.name, f"data.image_size={info.image_size}"
    method.eval()
    remedy = "choose a larger data.image_size, or a model that is less deep or has smaller patches"
    with _one_line(f"student.name: {name} does not work with {size}", remedy):
        method.inference_model()(images)
    for role, teacher in method.logit_teachers().items():
        where = f"teacher {role}: {teacher.facts['name']} does not work with images of {teacher.input['image_size']} px"
        with _one_line(where, "set its image_size, or choose another teacher"):
            teacher(images)
    if world()[1] > 1:
        return  # the method may wait for the other processes
    clock = Clock(0, 1, config.train.epochs)
    method.on_epoch(clock)
    method.train()
    targets = torch.zeros(count, dtype=torch.int64, device=device)
    augment = config.augment
    if augment.mixup or augment.cutmix or augment.label_smoothing:
        targets = torch.full((count, info.num_classes), 1 / info.num_classes, device=device)
    others = "".join(f", {role} {facts['name']}" for role, facts in method.teachers().items())
    where = f"method: the first step with student {name}{others}, {size} and train.batch_size={config.train.batch_size}"
    with _one_line(f"{where} fails", "change one of these, or the method's own fields"):
        method(method.prepare(Batch(images, targets, torch.arange(count, device=device)), clock), clock)


@contextmanager
def _one_line(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except VitutorError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            return  # the run itself will say so, with what to do about it
        reason = first_line(error)
        raise ConfigError(f"{what} ({reason}); {remedy}") from error
