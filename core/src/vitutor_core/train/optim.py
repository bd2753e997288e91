"""Optimiser, parameter groups and learning-rate schedule, all timm's, put together for a method."""

from __future__ import annotations

import logging
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.schema import OptimConfig
from vitutor_core.train.method import Clock, Method

_FUSED = {"adam", "adamw", "sgd"}
_GROUP_STEP = "/step"  # like the state of a parameter without a name


def peak_lr(config: OptimConfig, batch_size: int) -> float:
    """Return the learning rate after warm-up, scaled with the batch if the config says so."""
    return config.lr if config.lr_reference_batch is None else config.lr * batch_size / config.lr_reference_batch


def build_optimizer(method: Method, config: OptimConfig, batch_size: int) -> torch.optim.Optimizer:
    """Build timm's optimiser over the trainable parameters of a method."""
    options: dict[str, Any] = {"betas": config.betas} if config.betas is not None else {}
    if config.name in _FUSED:
        options["fused"] = True
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            _parameter_groups(method, config),
            opt=config.name,
            lr=peak_lr(config, batch_size),
            weight_decay=0.0,  # the groups carry their own
            momentum=config.momentum,
            **options,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optim.name: {config.name}: {error}") from None
    return optimizer


def _parameter_groups(method: Method, config: OptimConfig) -> list[dict[str, Any]]:
    if method.traits.decays_all:
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        return [{"params": trained, "weight_decay": config.weight_decay}]
    groups: list[dict[str, Any]] = param_groups_weight_decay(
        method, config.weight_decay, no_weight_decay_list=method.no_weight_decay()
    )
    if config.layer_decay is None:
        return groups
    own: Any = getattr(method.student, "no_weight_decay", set)
    student = param_groups_layer_decay(
        method.student, config.weight_decay, no_weight_decay_list=own(), layer_decay=config.layer_decay
    )
    in_student = {id(parameter) for parameter in method.student.parameters()}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in in_student]
    return [*student, *groups]


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, epochs: int, updates: int) -> Scheduler:
    """Build timm's stateless schedule over ``epochs`` epochs of ``updates`` updates."""
    logging.getLogger("timm.scheduler").setLevel(logging.ERROR)  # a one-epoch cosine is no reason to warn
    per_epoch = config.schedule_unit == "epoch"
    cosine_epochs = epochs - config.warmup_epochs if config.warmup_prefix else epochs
    if cosine_epochs <= 0:
        raise ConfigError(f"optim.warmup_epochs: {config.warmup_epochs:g} of {epochs} epochs leave none for the cosine")
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        num_epochs=cosine_epochs,
        min_lr=config.min_lr,
        warmup_lr=config.warmup_lr,
        warmup_epochs=config.warmup_epochs,
        warmup_prefix=config.warmup_prefix,
        step_on_epochs=per_epoch,
        updates_per_epoch=updates,
    )
    return schedule


def set_learning_rate(schedule: Scheduler, clock: Clock) -> None:
    """Set the learning rate of the update that ``clock`` is about to make."""
    schedule.step(clock.epoch)
    schedule.step_update(clock.step)


def drop_removed_parameters(optimizer: torch.optim.Optimizer, method: nn.Module) -> None:
    """Forget parameters that the method no longer has or trains; the moments of the others are kept."""
    kept = {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in kept:
                parameter.grad = None  # the last one of a frozen parameter would stay in the gradient norm
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in kept]


def optimizer_tensors(optimizer: torch.optim.Optimizer, method: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as ``<parameter name>/<state name>`` -> tensor.

    Raises `ConfigError` for an optimiser whose state is more than tensors and numbers.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in method.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{name}/{key}"] = _to_tensor(value, optimizer)
    # LAMB and Adan count updates once per group; all groups have made the same number.
    if "step" in optimizer.param_groups[0]:
        tensors[_GROUP_STEP] = _to_tensor(optimizer.param_groups[0]["step"], optimizer)
    return tensors


def _to_tensor(value: Any, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, int | float):
        raise ConfigError(f"optim.name: the state of {type(optimizer).__name__} cannot be saved; choose another")
    # In double precision, so that a Python number comes back exact, and told apart from the optimiser's own tensors.
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _from_tensor(value: torch.Tensor) -> Any:
    is_number = value.ndim == 0 and value.dtype in {torch.bool, torch.int64, torch.float64}
    return value.item() if is_number else value.clone()


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, method: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned; hyper-parameters stay those of the config.

    Raises `CheckpointError` for unknown parameters and for moments of another shape than their parameter.
    """
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        grouped.setdefault(name, {})[key] = value
    of_groups = grouped.pop("", {})
    saved = optimizer.state_dict()
    saved["state"] = {}
    for group in saved["param_groups"]:
        group |= {key: _from_tensor(value) for key, value in of_groups.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        state = grouped.pop(names[id(parameter)], None)
        for key, value in (state or {}).items():
            if value.ndim > 0 and not _is_moment(value.shape, parameter.shape):
                raise CheckpointError(
                    f"optimiser state {names[id(parameter)]}/{key} has shape {tuple(value.shape)}, "
                    f"the parameter {tuple(parameter.shape)}"
                )
        if state is not None:
            saved["state"][index] = {key: _from_tensor(value) for key, value in state.items()}
    if grouped:
        raise CheckpointError(f"optimiser state of unknown parameters: {', '.join(sorted(grouped))}")
    optimizer.load_state_dict(saved)


def _is_moment(shape: torch.Size, parameter: torch.Size) -> bool:
    """Return whether a moment is the parameter's: of its shape, or, as in Adafactor, a mean over one dimension."""
    means = [
        (*parameter[:axis], *kept, *parameter[axis + 1 :]) for axis in range(len(parameter)) for kept in ((), (1,))
    ]
    return shape == parameter or tuple(shape) in means


def highest_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate of the group with the highest one: layer decay lowers those of the others."""
    return max(float(group["lr"]) for group in optimizer.param_groups)
