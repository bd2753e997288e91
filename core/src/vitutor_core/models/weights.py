"""Weights files that explain themselves: safetensors whose metadata hold a model card.

Plain timm loads them (``timm.create_model(name, checkpoint_path=...)``); we also read name, classes and
normalisation from the card, so a teacher needs nothing but its file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import timm
import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from vitutor_core.config import Config, fingerprinted
from vitutor_core.data.types import DataInfo
from vitutor_core.errors import CheckpointError, ConfigError, named
from vitutor_core.files import atomic
from vitutor_core.hub import WEIGHTS, fetch
from vitutor_core.models.border import check_border
from vitutor_core.models.fit import Fitted, classifier_of, fit
from vitutor_core.models.layouts import layouts
from vitutor_core.models.named import NamedModel, check_registered, named_model
from vitutor_core.runs import weights_file
from vitutor_core.schema import CropRatio, ImageSize, Interpolation, KwargValue, ModelConfig, Share

CONVERTED = "converted"
"""The method of a card whose weights others have trained."""
_KEY = "vitutor"
_NOT_OURS = frozenset(
    {"checkpoint_path", "cache_dir", "exportable", "model_name", "no_jit", "scriptable"}
    | {f"pretrained{end}" for end in ("", "_cfg", "_cfg_overlay", "_filter_fn", "_model_args", "_strict", "_tag")}
)
"""What timm.create_model takes beside a model's own arguments: it reads files, fetches them or changes other models."""
_Deviation = Annotated[float, Field(ge=1e-6, le=1000)]


class ModelCard(Config):
    """How to rebuild a model and feed it. ``mean`` and ``std`` are of pixels in [0, 1]."""

    name: str = fingerprinted(help="Name in timm", min_length=1, max_length=200)
    kwargs: dict[str, KwargValue] = fingerprinted(help="Arguments of timm.create_model", max_length=100)
    class_names: tuple[str, ...] = fingerprinted(
        help="Classes, in the order of the logits; none of an encoder without a head", max_length=10**6
    )
    image_size: ImageSize = fingerprinted(help="Side of the input, in pixels")
    mean: tuple[Share, ...] = fingerprinted(help="Normalisation: mean per channel", min_length=3, max_length=3)
    std: tuple[_Deviation, ...] = fingerprinted(
        help="Normalisation: standard deviation per channel", min_length=3, max_length=3
    )
    crop_ratio: CropRatio = fingerprinted(
        help="Images are resized to image_size / crop_ratio, then the centre is cut out"
    )
    interpolation: Interpolation = fingerprinted(help="Resampling of that resize")
    method: str = fingerprinted(help="What trained it", max_length=200)
    metrics: dict[str, float] = fingerprinted({}, help="Its evaluation", max_length=100)

    @property
    def classifies(self) -> bool:
        """Whether its head was trained."""
        return "top1" in self.metrics or (self.method == CONVERTED and bool(self.class_names))

    @model_validator(mode="after")
    def _fits_its_model(self) -> Self:
        if not self.class_names and self.kwargs.get("num_classes") != 0:
            raise ValueError("class_names is empty, and kwargs.num_classes is not 0")
        for name, valid in (("in_chans", (3,)), ("num_classes", (0, len(self.class_names)))):
            if name in self.kwargs and self.kwargs[name] not in valid:
                raise ValueError(f"kwargs.{name} is {self.kwargs[name]!r}, not {valid[-1]}")
        for name, value in self.kwargs.items():
            parts = value if isinstance(value, tuple) else (value,)
            if len(parts) > 1000 or any(isinstance(part, int | float) and abs(part) > 10**6 for part in parts):
                raise ValueError(f"kwargs.{name} has a number beyond a million, or more than a thousand values")
        return self


def create_model(config: ModelConfig, *, num_classes: int, image_size: int, channels: int) -> nn.Module:
    """Build a timm model for the data at hand, and load the weights that it starts from, if any.

    Raises `ConfigError` for an unknown name or argument, and `CheckpointError` for weights of another model.
    """
    found = named_model(config.name)
    kwargs: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels, **found.kwargs, **config.kwargs}
    if found.takes_image_size:
        kwargs.setdefault("img_size", image_size)
    if config.pretrained and config.kwargs:
        trained = skeleton(found.architecture, found.kwargs)
        check_heads(skeleton(found.architecture, kwargs), trained, where=f"the weights of {config.name}")
    if not config.pretrained:
        model = timm_model(found.architecture, kwargs)
    else:
        model = _create_pretrained(config.name, found, kwargs)
    check_border(model, config.name, image_size)
    start = start_of(config)
    if start is not None:
        model.load_state_dict(fit_start(model, start).tensors)
    return model


def create_student(config: ModelConfig, info: DataInfo) -> nn.Module:
    """`create_model` for the classes, the image size and the channels of the data at hand."""
    return create_model(config, num_classes=info.num_classes, image_size=info.image_size, channels=info.channels)


def start_of(config: ModelConfig) -> str | None:
    """Return where the weights are that a model starts from; raises `ConfigError` where only their row is named."""
    if config.weights is None and config.start_row is not None:
        raise ConfigError(f"student.start_row: say where '{config.start_row}' was trained: --set student.weights=RUN")
    return config.weights


def starting_weights(where: str) -> dict[str, Tensor]:
    """Read the weights to start from: a run folder or a safetensors file; raises `CheckpointError`."""
    path = weights_file(Path(where))
    read_card(path)  # says what is wrong with the file
    return load_file(path)


def check_trained_heads(model: nn.Module, where: str) -> None:
    """Raise `ConfigError` if a run or a file with a card has the weights of a model with other numbers of heads."""
    card = read_card(weights_file(Path(where)))
    if card is not None:
        _register(card)
        trained = skeleton(card.name, {"num_classes": len(card.class_names), **card.kwargs})
        check_heads(model, trained, where=str(Path(where).absolute()))


def check_heads(model: nn.Module, trained: nn.Module, *, where: str) -> None:
    """Raise `ConfigError` where attention has another number of heads than it was trained with: shapes do not tell."""
    ours, theirs = _heads(model), _heads(trained)
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            raise ConfigError(
                f"{where}: trained with {theirs[name]} heads in {name}, and the model has {ours[name]}; let num_heads "
                "of its kwargs be the same, or start from other weights"
            )


def _heads(model: nn.Module) -> dict[str, int]:
    found = ((name, getattr(module, "num_heads", None)) for name, module in model.named_modules())
    return {name: heads for name, heads in found if isinstance(heads, int)}


def skeleton(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build a model to look at: without weights where it can be, and without a draw of random numbers."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _Unfilled():
                return timm_model(name, kwargs)
        except (ConfigError, NotImplementedError):  # it computes with what it builds
            return timm_model(name, kwargs)


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills tensors without content: torch takes most of the time of a skeleton for it."""

    _FILLS = frozenset(
        {nn.init.constant_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_}
        | {Tensor.add_, Tensor.clamp_, Tensor.erfinv_, Tensor.fill_, Tensor.mul_}  # timm's truncated normal
        | {Tensor.normal_, Tensor.uniform_, Tensor.zero_}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._FILLS:
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **(kwargs or {}))


def fit_start(model: nn.Module, where: str, *, optional: tuple[str, ...] = ()) -> Fitted:
    """Bring the weights to start from into the form of a model, and say what was changed; see `fit`.

    A head that is missing or for other classes keeps its fresh weights; for a run of ours this is not reported.
    """
    tensors = starting_weights(where)
    check_trained_heads(model, where)
    path = str(Path(where).absolute())
    fitted = fit(tensors, model, where=path, optional=(*classifier_of(model), *optional))
    is_ours = read_card(weights_file(Path(where))) is not None
    say_changes(path, (*fitted.changed, *(() if is_ours else fitted.left)))
    return fitted


def say_changes(path: str, changes: Iterable[str]) -> None:
    """Say what was changed in the weights of a file, a line each."""
    for change in changes:
        warnings.warn(f"{path}: {change}", stacklevel=3)


def save_model(path: Path, model: nn.Module, card: ModelCard) -> None:
    """Write a model's state dict with its card; raises `ResourceError` if it cannot be written."""
    # One key: safetensors writes several in random order, and equal models would be unequal files.
    save_tensors(path, model.state_dict(), {_KEY: card.model_dump_json()})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors; raises `ResourceError` if they cannot be written."""
    with atomic(path) as partial:
        write_tensors(partial, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors into what `atomic` yields; raises OSError."""
    # safetensors refuses tensors that share storage, which tied weights do
    own = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    try:
        save_file(own, path, metadata=metadata)
    except SafetensorError as error:  # it gives the number of the system's error as text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from None


def read_card(path: Path) -> ModelCard | None:
    """Return the card of a weights file, or None if it has none; raises `CheckpointError` for no weights file."""
    if not path.is_file():
        raise CheckpointError(f"{path.absolute()}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        return ModelCard.model_validate_json(text) if text is not None else None
    except (SafetensorError, OSError):
        raise CheckpointError(
            f"{path.absolute()}: not a safetensors file; pickled checkpoints are not loaded, `vitutor convert` reads "
            "them"
        ) from None
    except ValidationError as error:
        what = error.errors()[0]
        reason = f"{what['msg']}: {'.'.join(map(str, what['loc']))}".rstrip(": ")
        raise CheckpointError(f"{path.absolute()}: its model card is not readable ({reason}); train it again") from None


def load_model(path: Path) -> tuple[nn.Module, ModelCard]:
    """Rebuild the model of a weights file from its card."""
    card = read_card(path)
    if card is None:
        raise CheckpointError(f"{path.absolute()}: has no model card; name its architecture with teacher.model")
    _register(card)
    kwargs = {"num_classes": len(card.class_names), **card.kwargs}
    tensors = load_file(path)
    with named(str(path.absolute())), _no_larger_than(tensors):
        skeleton(card.name, kwargs)
        model = timm_model(card.name, kwargs)
    load_strictly(model, tensors, where=str(path.absolute()))
    return model, card


def _register(card: ModelCard) -> None:
    """Let timm know the models of installed papers, of which a converted one may be; a run says its paper itself."""
    if card.method == CONVERTED:
        layouts()


@contextmanager
def _no_larger_than(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse to build a model with more parameters than there are weights for it, before they fill the memory."""
    # Some are built several times, as heads are.
    left = [4 * len(tensors) + 1000, 4 * sum(tensor.numel() for tensor in tensors.values()) + 10**7]

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.is_meta:
            left[0] -= 1
            left[1] -= parameter.numel()
            if min(left) < 0:
                raise CheckpointError("its model card describes a larger model than its weights are of")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Load a state dict whose names and shapes must match exactly; raises `CheckpointError`."""
    own = module.state_dict()
    missing, unknown = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    shapes = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or unknown or shapes:
        problems = {"missing": missing, "unknown": unknown, "other shape": shapes}
        text = "; ".join(f"{kind}: {', '.join(sorted(names)[:3])}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{where}: weights of another model ({text})")
    module.load_state_dict(tensors)


def weights_sha256(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over the names and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _create_pretrained(name: str, found: NamedModel, kwargs: dict[str, Any]) -> nn.Module:
    """Build a model with the weights that its name stands for, which timm fits to its classes, channels and size."""
    if found.folder is None:
        if found.cfg is not None and found.cfg.hf_hub_id:
            fetch(found.cfg.hf_hub_id, found.cfg.hf_hub_filename or WEIGHTS)  # timm would ask ten times
        return timm_model(name, kwargs, pretrained=True)
    path = found.folder / WEIGHTS
    read_card(path)  # says what is wrong with the file
    with named(name), _no_larger_than(load_file(path)):
        skeleton(found.architecture, found.kwargs)
    return timm_model(f"local-dir:{found.folder}", kwargs, pretrained=True)


def timm_model(name: str, kwargs: dict[str, Any], *, pretrained: bool = False) -> nn.Module:
    """Build a model that timm registers; raises `ConfigError` for another name, and for arguments it does not take."""
    if not pretrained:
        check_registered(name)
    for key in kwargs.keys() & _NOT_OURS:
        raise ConfigError(f"model {name}: '{key}' is not an argument of a model; leave it out of its kwargs")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    except CheckpointError:
        raise
    except Exception as error:  # a model may fail in any way on arguments that nobody has tried
        reason = str(error) or type(error).__name__
        raise ConfigError(f"model {name} with {json.dumps(kwargs)}: {reason}") from error
    return model
