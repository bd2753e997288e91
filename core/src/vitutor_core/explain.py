"""What each field of a config is: its text, type, bounds, default, value, and where the value comes from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from vitutor_core.config import Config, leaves, nearest, nearest_field
from vitutor_core.errors import ConfigError
from vitutor_core.recipe import Changes, changes_of, read_recipe
from vitutor_core.sizing import names_sizes

REQUIRED = "required"
KEY = "KEY"
"""In the path of a field: any name, such as a teacher's role."""
_TYPES = {bool: "true | false", int: "whole number", float: "number", str: "text", NoneType: "null", Any: "any"}
_BOUNDS = {"ge": ">= {}", "gt": "> {}", "le": "<= {}", "lt": "< {}"}


class Field(NamedTuple):
    """A field of a schema. ``default`` is JSON, or ``required``."""

    path: str
    kind: str
    default: str
    text: str

    @property
    def limits(self) -> str:
        """Type, bounds and default."""
        return f"{self.kind}; {'required' if self.default == REQUIRED else f'default {self.default}'}"


def fields_of(schema: type[Config], prefix: str = "") -> Iterator[Field]:
    """Yield every field of a schema, in its order; a section that may be null is a field, too."""
    for name, info in schema.model_fields.items():
        path, parts = prefix + name, _parts(info.annotation)
        section = next((part for part in parts if _is_section(part)), None)
        keyed: Any = next((get_args(part)[1] for part in parts if get_origin(part) is dict), None)
        if _is_section(keyed):
            yield Field(path, "mapping to sections", _default(info), info.description or "")
            yield from fields_of(keyed, f"{path}.{KEY}.")
            continue
        if section is None:
            kind = ", ".join([_kind(info.annotation), *_bounds(info.metadata)])
            yield Field(path, kind, _default(info), info.description or "")
            continue
        if NoneType in parts:
            yield Field(path, "section | null", _default(info), info.description or "")
        yield from fields_of(section, f"{path}.")


def _parts(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return REQUIRED
    value = info.default
    return json.dumps(value.model_dump(mode="json") if isinstance(value, Config) else value)


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(map(_kind, arguments)))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is Annotated:
        limits = [limit for extra in arguments[1:] for limit in _bounds(getattr(extra, "metadata", ()))]
        return _kind(arguments[0]) + (f" ({', '.join(limits)})" if limits else "")
    if origin is tuple:
        kinds = [_kind(argument) for argument in arguments if argument is not ...]
        return f"list of ({kinds[0]})" if ... in arguments else f"[{', '.join(kinds)}]"
    if origin is dict:
        return f"mapping to ({_kind(arguments[1])})"
    return _TYPES.get(annotation, str(annotation))


def _bounds(metadata: Sequence[Any]) -> list[str]:
    return [
        text.format(f"{getattr(limit, name):g}" if isinstance(getattr(limit, name), float) else getattr(limit, name))
        for limit in metadata
        for name, text in _BOUNDS.items()
        if hasattr(limit, name)
    ]


def explained(
    config: Config,
    recipe: Path,
    *,
    preset: str | None,
    row: str | None,
    settings: Sequence[str],
    below: str = "",
) -> Iterator[str]:
    """Yield lines on each field of a resolved config, or on those ``below`` a field; raises `ConfigError` for none."""
    known = {field.path: field for field in fields_of(type(config))}
    read = read_recipe(recipe)
    layers = [("recipe base", read.base), *changes_of(read, recipe.name, preset=preset, row=row)]
    layers.append(("--set", {text.partition("=")[0]: None for text in settings}))
    shown = [leaf for leaf in leaves(config) if not below or f"{leaf[0]}.".startswith(f"{below}.")]
    if not shown:
        names = {name for path, _, _ in leaves(config) for name in accumulate(path.split("."), "{}.{}".format)}
        hint = nearest(below, sorted(names)) or nearest_field(below, type(config))
        raise ConfigError(f"--explain {below}: no such field{hint}")
    for path, _, value in shown:
        field = _field(known, path)
        where = origin(path, layers)
        computed = where == "default" and field.default not in {json.dumps(value), REQUIRED}
        yield f"{path} = {json.dumps(value)}  ({'computed' if computed else where})"
        yield f"    {field.text}"
        yield f"    {field.limits}"


def _field(known: Mapping[str, Field], path: str) -> Field:
    """Return the field at a path of a config, in which a key has its own name."""
    if path in known:
        return known[path]
    parts = path.split(".")
    keyed = (".".join([*parts[:index], KEY, *parts[index + 1 :]]) for index in range(len(parts)))
    return next(known[name] for name in keyed if name in known)


def origin(path: str, layers: Sequence[tuple[str, Changes]]) -> str:
    """Return what set the field at ``path`` last: a layer's name, or ``default``."""
    found = "default"
    for layer, changes in layers:
        for name, given in changes.items():
            value = given
            if path == name or name.startswith(f"{path}."):
                found = layer
            elif path.startswith(f"{name}."):
                # A section that is set anew has the defaults of what it leaves out.
                value, is_there = _inside(value, path[len(name) + 1 :])
                found = layer if is_there else "default"
            else:
                continue
            if found == layer and names_sizes(value):
                found = f"{layer}: your images and machine"
    return found


def _inside(values: Any, path: str) -> tuple[Any, bool]:
    """Return the value at a dotted path of nested values, and whether it is there."""
    for part in path.split("."):
        if not isinstance(values, dict) or part not in values:
            return None, False
        values = values[part]
    return values, True


def commented(config: Config, command: str) -> str:
    """Write a config as a recipe with the text of each field as a comment, which resolves to the same config."""
    known = {field.path: field for field in fields_of(type(config))}
    return "\n".join([f"# {command}", "base:", *_commented(config, known, "", 1)]) + "\n"


def _commented(config: Config, known: Mapping[str, Field], prefix: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    dumped = config.model_dump(mode="json")
    for name, value in config:
        path = prefix + name
        field = known.get(path)
        if field is not None:
            for text in (field.text, field.limits):
                yield from textwrap.wrap(text, 116, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ")
        if isinstance(value, Config):
            yield f"{indent}{name}:"
            yield from _commented(value, known, f"{path}.", depth + 1)
        elif isinstance(value, Mapping) and value and all(isinstance(child, Config) for child in value.values()):
            yield f"{indent}{name}:"
            for key, child in value.items():
                yield f"{indent}  {json.dumps(key)}:"
                yield from _commented(child, known, f"{path}.{KEY}.", depth + 2)
        else:
            yield f"{indent}{name}: {json.dumps(dumped[name])}"
