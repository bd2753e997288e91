"""Images that are not a multiple of a model's patches would lose a border without a word."""

from __future__ import annotations

from torch import nn

from vitutor_core.errors import ConfigError
from vitutor_core.schema import border_of


def check_border(model: nn.Module, name: str, image_size: int) -> None:
    """Raise `ConfigError` if patches of ``model`` do not cover images of ``image_size`` pixels a side."""
    for patch in sorted(_patches(model), reverse=True):
        problem = border_of(image_size, patch)
        if problem:
            raise ConfigError(f"{name}: {problem}")


def _patches(model: nn.Module) -> set[int]:
    """Return the sides of patches: of a patch embedding, and of first convolutions as wide as their stride."""
    embedding = getattr(model, "patch_embed", None)
    if getattr(embedding, "dynamic_img_pad", False):
        return set()
    own = getattr(embedding, "patch_size", ())
    first = (
        module.stride
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and module.in_channels <= 3
        and module.kernel_size == module.stride
        and module.padding == (0, 0)
    )
    return {*(own if isinstance(own, tuple) else ()), *(side for stride in first for side in stride)} - {1}
