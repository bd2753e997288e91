"""Frozen configs: apply ``--set a.b=c``, validate, fingerprint.

A config is a tree of `Config` models. Every leaf is declared with `fingerprinted` (it changes the result of a run,
so it is part of the fingerprint) or `runtime` (it may change between a run and its resumption).
This module and the schemas import neither torch nor timm, so that a typo is reported at once.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from vitutor_core.errors import ConfigError

_REQUIRED: Any = ...
_MEANT = 3
"""Fields of one name that are proposed for one that there is not."""


def fingerprinted(default: Any = _REQUIRED, *, help: str, **constraints: Any) -> Any:
    """Declare a field that determines the result of a run; it enters the fingerprint."""
    return _tagged("fingerprinted", default, help, constraints)


def runtime(default: Any = _REQUIRED, *, help: str, **constraints: Any) -> Any:
    """Declare a field that may change when a run is resumed (workers, device, log interval)."""
    return _tagged("runtime", default, help, constraints)


def _tagged(tag: str, default: Any, text: str, constraints: dict[str, Any]) -> Any:
    return Field(default, description=text, json_schema_extra={"tag": tag}, **constraints)


class Config(BaseModel):
    """Base of all configs: frozen, no unknown keys, finite numbers, no silent type conversion."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, validate_default=True, protected_namespaces=()
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Validate ``values`` as read from YAML; every mistake is reported in one `ConfigError`."""
        try:
            # JSON mode is strict about types and still reads a list where the schema has a tuple.
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            lines = [_explain(detail, cls) for detail in _of_the_type_meant(error.errors())]
            raise ConfigError(f"{where}: " + "; ".join(lines)) from None
        except TypeError as error:
            raise ConfigError(f"{where}: {error}; use plain YAML values") from None

    def changed(self, settings: Iterable[str]) -> Self:
        """Return a copy with ``a.b=c`` settings applied and validated."""
        values = self.model_dump(mode="json")
        apply_settings(values, settings, type(self))
        return self.from_mapping(values, where="settings")

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the fingerprinted fields."""
        text = json.dumps(fingerprinted_fields(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def leaves(config: Config, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield ``(dotted path, tag, JSON value)`` of every leaf field."""
    dumped = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping) and value and all(isinstance(child, Config) for child in value.values()):
            for key, child in value.items():
                yield from leaves(child, f"{prefix}{name}.{key}.")
        else:
            extra = field.json_schema_extra
            yield prefix + name, str(extra["tag"]) if isinstance(extra, dict) else "", dumped[name]


def fingerprinted_fields(config: Config) -> dict[str, Any]:
    """Map the dotted path of each fingerprinted field to its JSON value."""
    return {path: value for path, tag, value in leaves(config) if tag != "runtime"}


def runtime_paths(schema: type[Config]) -> Iterator[str]:
    """Yield the dotted path of each field of a schema that may change between a run and its resumption."""
    return (path for path, tag in _paths(schema) if tag == "runtime")


def _paths(schema: type[Config], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``(dotted path, tag)`` of each leaf field of a schema; ``KEY`` stands for the keys of a mapping."""
    for name, field in schema.model_fields.items():
        section, extra = _config_type(field.annotation), field.json_schema_extra
        if section is not None:
            yield from _paths(section, f"{prefix}{name}.{'KEY.' if get_origin(field.annotation) is dict else ''}")
        else:
            yield prefix + name, str(extra["tag"]) if isinstance(extra, dict) else ""


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return each value of nested mappings by its dotted path; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe each field that differs, one ``path: old -> new`` per line, for the resume refusal."""
    paths = sorted(old.keys() | new.keys())
    return [f"{path}: {old.get(path)!r} -> {new.get(path)!r}" for path in paths if old.get(path) != new.get(path)]


def parse_yaml(text: str, *, where: str) -> Any:
    """Read YAML 1.2 safely: duplicate keys are refused, ``1e-3`` is a float, ``no`` is a string."""
    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    except YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {_reason(error)}") from None


def _reason(error: YAMLError) -> str:
    """Say what is wrong and where, without the name that YAML gives to what has no file."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).replace('in "<file>", ', "at ").split())


def apply_settings(values: dict[str, Any], settings: Iterable[str], schema: type[Config]) -> None:
    """Apply ``a.b=c`` settings to nested values of ``schema``; ``c`` is read by `read_value`.

    A model of another name keeps no ``kwargs`` of the one before, which is said in a warning.
    """
    changes: dict[str, Any] = {}
    for given in settings:
        path, equals, text = given.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {given}: write it as field.name=value")
        changes.pop(path, None)  # the last one counts, and comes last
        changes[path] = read_value(text, _annotation(schema, path.split(".")), where=f"--set {path}")
    for path, value in changes.items():
        section, _, last = path.rpartition(".")
        if last == "name":
            _drop_kwargs(values, section, value, replaced=f"{section}.kwargs" in changes)
    for path, value in changes.items():
        assign(values, path, value)


def _drop_kwargs(values: Any, section: str, name: Any, *, replaced: bool) -> None:
    """Empty the ``kwargs`` beside a model's name that changes: heads and sizes of one are not those of another."""
    for part in section.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(name, str) or not values.get("kwargs"):
        return
    before, kwargs = values["name"], values["kwargs"]
    if before.partition(".")[0] == name.partition(".")[0]:
        return  # other weights of the same model
    values["kwargs"] = {}
    if not replaced:
        dropped = ", ".join(f"{key}={json.dumps(value)}" for key, value in kwargs.items())
        warnings.warn(
            f"{section}.name: what was set for {before} is not passed on to {name} ({dropped}); "
            f"set {section}.kwargs.KEY where it is meant for it",
            stacklevel=2,
        )


def setting(path: str, value: Any) -> str:
    """Write the setting by which the field at ``path`` gets ``value``."""
    return f"{path}={value if isinstance(value, str) else json.dumps(value)}"


def read_value(text: str, annotation: Any, *, where: str) -> Any:
    """Read a value that a user typed for a field of type ``annotation``.

    A field of type text takes the text as it is, and ``null`` as none where it may be. Others are read as YAML; a list
    may be typed without brackets, ``a,b``. Where text is one of several types, it is what the others do not accept, a
    list being in brackets; where numbers are too,
    quotes make it text.
    """
    types = _types(annotation)
    if str not in types:
        value = _typed(text, where)
        is_listed = list in types and isinstance(value, str)
        return [_typed(part.strip(), where) for part in value.split(",")] if is_listed else value
    if text == "null" and NoneType in types:
        return None
    try:
        value = _typed(text, where)
    except ConfigError:
        return text
    if isinstance(value, str):
        return value if float in types and text[0] in {'"', "'"} else text
    is_other = type(value) in types and value is not None and (text[0] == "[" or not isinstance(value, list))
    return value if is_other else text


def _typed(text: str, where: str) -> Any:
    return copy.deepcopy(_parsed(text, where))  # a later setting may change a part of it


@cache  # to plan or compare rows reads the same settings hundreds of times
def _parsed(text: str, where: str) -> Any:
    return parse_yaml(text, where=where)


def _types(annotation: Any) -> set[Any]:
    """Return the types that YAML can give a field, lists and mappings among them."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return set().union(*map(_types, arguments))
    if origin is Literal:
        return {type(argument) for argument in arguments}
    return {list if origin is tuple else origin or annotation}


def _annotation(schema: Any, path: Sequence[Any]) -> Any:
    """Return the type of the field at ``path``, a key of a mapping included; `Any` where there is none."""
    for part in path:
        if get_origin(schema) is dict:
            schema = get_args(schema)[1]
            continue
        section = _config_type(schema)
        field = section.model_fields.get(part) if section is not None else None
        schema = Any if field is None else field.annotation
    return schema


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest valid name, or an empty string."""
    return _meant(difflib.get_close_matches(name, list(valid), n=1))


def _meant(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def nearest_field(path: str, schema: type[Config]) -> str:
    """Return what was meant by the ``path`` of no field: those of its last part elsewhere, else the closest beside it.

    Without a section, closer names are looked for in all of them, too.
    """
    *parents, name = path.split(".")
    section = _config_type(_annotation(schema, parents))
    named: dict[str, list[str]] = {}
    for other, _ in _paths(schema):
        named.setdefault(other.rpartition(".")[2], []).append(other)
    if name in named:
        return _meant(named[name][:_MEANT])
    beside = difflib.get_close_matches(name, section.model_fields if section is not None else (), n=1)
    if beside or parents:
        return _meant([".".join((*parents, like)) for like in beside])
    return _meant([path for like in difflib.get_close_matches(name, named, n=1, cutoff=0.75) for path in named[like]])


def assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the dotted ``path`` of nested values; raises `ConfigError` where a parent is not a section."""
    *parents, last = path.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{path}: '{parent}' is a value, not a section")
        values = child
    values[last] = value


def _of_the_type_meant(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out, of a list for a field that also takes a word, that it is no such word."""
    return [
        detail
        for detail in details
        if not (detail["type"] == "literal_error" and isinstance(detail["input"], list) and len(details) > 1)
    ]


def _explain(detail: ErrorDetails, schema: type[Config]) -> str:
    # Of several types, pydantic puts the one that was tried into the path.
    path = ".".join(part for part in map(str, detail["loc"]) if not part.startswith(("literal[", "tuple[")))
    if detail["type"] == "value_error":  # of a rule over several fields
        message = detail["msg"].removeprefix("Value error, ")
        return f"{path}: {message}" if path else message
    if detail["type"] == "missing":
        return f"{path}: is missing"
    if detail["type"] == "string_type" and isinstance(detail["input"], bool | int | float):
        return f"{path}: {json.dumps(detail['input'])} is not text; quote it"
    if detail["type"] != "extra_forbidden":
        return f"{path}: {detail['msg']} (got {detail['input']!r})"
    return f"unknown key '{path}'{nearest_field(path, schema)}"


def _config_type(annotation: Any) -> Any:
    """Return the `Config` class inside an annotation such as ``TeacherConfig | None``."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None
