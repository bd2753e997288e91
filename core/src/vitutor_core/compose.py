"""A paper's term beside another paper's method: the config that both need, and how such a method is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from pydantic import create_model

from vitutor_core.config import Config, fingerprinted


@cache
def with_section(schema: type[Config], package: str, section: type[Config]) -> type[Config]:
    """Return the config of a method with one more section, ``package``, for the term beside it."""
    fields: Any = {package: (section, fingerprinted(section(), help=f"The term of {package} beside the method"))}
    made: type[Config] = create_model(f"{schema.__name__}With{section.__name__}", __base__=schema, **fields)
    return made


class Composed:
    """Builds a method, then what wraps it."""

    def __init__(self, builder: Any, package: str, term: Callable[[Any, Any, Any], Any]) -> None:
        self._builder, self._package, self._term = builder, package, term

    def build(self, config: Any, info: Any) -> Any:
        """Build for the data at hand; raises `ConfigError` where the parts do not fit."""
        return self._term(self._builder.build(config, info), getattr(config, self._package), info)
