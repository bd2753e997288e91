"""Recipe files: the settings of a paper's rows at one scale, each written once.

A recipe has a ``base`` of nested values; ``presets`` and ``rows`` are dotted overrides of it, and ``rows`` of a preset
are further ones for the rows of a pattern. ``products`` make more
rows: each of their ``rows`` with each of their ``variants`` gives the row ``<row>_<variant>``. ``groups`` name rows
that a user may lack the data or the weights for, ``analyses`` the figures that `vitutor analyze` draws of rows, and
``agreements`` those that `vitutor agreement` draws of ``teachers`` and ``rows``.
``robustness`` has patterns of ``rows`` and the ``sets`` that they are measured on as well.

A recipe with ``like: SCALE`` is that of another scale with changes: ``base`` has dotted ones of its base,
``rows`` further ones of the rows of a pattern, and ``groups`` come to its groups.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from operator import eq
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vitutor_core.config import Config, apply_settings, assign, nearest, parse_yaml
from vitutor_core.errors import ConfigError
from vitutor_core.sizing import filled, names_sizes, sizes_of

Changes = dict[str, Any]
CORE_GROUP = "core"
OWN = "own"
"""The scale of a user's own images."""
SHIFTED_SETS = ("a", "r", "c", "v2", "real")
"""Sets of images out of distribution; set ``x`` lies in the folder ``imagenet-x``. See `vitutor_core.evaluate.sets`."""
_KEYS = ("base", "presets", "variants", "rows", "products", "groups", "analyses", "agreements", "robustness")
_LIKE = ("like", "base", "rows", "groups")
"""The keys of a recipe that is another one with changes."""
_ROWS = "rows"
"""In a preset: what else it changes in rows of a pattern, after the row's own changes."""
ConfigT = TypeVar("ConfigT", bound=Config)


class Shifts(NamedTuple):
    """Which rows are measured out of distribution, and on which of `SHIFTED_SETS`."""

    rows: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


class Agreement(NamedTuple):
    """What `vitutor agreement` compares: ``rows``, or beside them ``teachers``, which then choose the images."""

    rows: tuple[str, ...]
    teachers: tuple[str, ...] = ()


class Recipe(NamedTuple):
    """A recipe file; ``rows`` has those of the products too."""

    base: dict[str, Any]
    presets: dict[str, Changes]
    rows: dict[str, Changes]
    groups: dict[str, tuple[str, ...]]
    analyses: dict[str, tuple[str, ...]]
    agreements: dict[str, Agreement]
    robustness: Shifts

    def group_of(self, row: str) -> str:
        """Return the group that has a pattern for ``row``, or ``core``."""
        fitting = (group for group, patterns in self.groups.items() if any(fnmatchcase(row, p) for p in patterns))
        return next(fitting, CORE_GROUP)


def default_scale(recipe: Path | None) -> str:
    """Return the scale that is meant where none is given: that of the user's own images, of a ``recipe`` of their own.

    It decides where teachers come from, and is in the record.
    """
    return "digits" if recipe is None else OWN


def recipe_path(package: str, scale: str, own: Path | None = None) -> Path:
    """Return the recipe file of a package at a scale, or ``own`` if given."""
    return own if own is not None else Path(str(files(package))) / "recipes" / f"{scale}.yaml"


def scales_of(package: str) -> tuple[str, ...]:
    """Return the scales that a package has a recipe for, in alphabetical order; `OWN` has no images of its own."""
    found = sorted(path.stem for path in (Path(str(files(package))) / "recipes").glob("*.yaml"))
    return tuple(scale for scale in found if scale != OWN)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; raises `ConfigError` if it is not one."""
    return copy.deepcopy(_shared(path))


def has_row(path: Path, name: str) -> bool:
    """Return whether a recipe file has a row."""
    return name in _shared(path).rows


def _shared(path: Path) -> Recipe:
    """Read a recipe file whose values are left as they are: to copy two hundred rows takes as long as to check one."""
    return _parsed(_text(path), path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        others = sorted(other.stem for other in path.parent.glob("*.yaml"))
        beside = f"; beside it are {', '.join(others)}" if others else ""
        raise ConfigError(f"{path}: there is no such recipe{beside}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


@cache
def _parsed(text: str, path: Path) -> Recipe:
    # A recipe of two hundred rows takes a tenth of a second to read, and a test reads it once a row.
    loaded = parse_yaml(text, where=path.name)
    return _changed(loaded, path) if isinstance(loaded, dict) and "like" in loaded else _whole(loaded, path)


def _whole(loaded: Any, path: Path) -> Recipe:
    if not isinstance(loaded, dict) or "base" not in loaded or set(loaded) - set(_KEYS):
        keys = ", ".join(map(str, loaded)) if isinstance(loaded, dict) else "a value without keys"
        found = "the file is empty" if loaded is None else f"found {keys or 'none'}"
        raise ConfigError(f"{path}: a recipe has the key 'base' and may have {', '.join(_KEYS[1:])}; {found}")
    for key, value in loaded.items():
        _check_section(value, key, path)
    rows = dict(loaded.get("rows") or {})
    for product in loaded.get("products") or ():
        for name, changes in _product(product, rows, loaded.get("variants") or {}, path).items():
            if name in rows:
                raise ConfigError(f"{path}: row '{name}' is made twice")
            rows[name] = changes
    for name, changes in (loaded.get("presets") or {}).items():
        _check_section(changes.get(_ROWS), _ROWS, f"{path}: presets.{name}")
        _check_rows(changes.get(_ROWS) or (), rows, f"{path}: presets.{name}.rows")
    groups = _groups(loaded, rows, path)
    analyses = {name: tuple(of) for name, of in (loaded.get("analyses") or {}).items()}
    agreements = {name: _agreement(of, name, path) for name, of in (loaded.get("agreements") or {}).items()}
    for name, named in analyses.items():
        _check_rows(named, rows, f"{path}: analyses.{name}", fits=eq)
    for name, agreement in agreements.items():
        _check_rows(agreement.rows, rows, f"{path}: agreements.{name}", fits=eq)
    shifts = _shifts(loaded.get("robustness"), rows, path)
    return Recipe(loaded["base"] or {}, loaded.get("presets") or {}, rows, groups, analyses, agreements, shifts)


def _changed(loaded: dict[str, Any], path: Path) -> Recipe:
    """Build the recipe of another scale with changes."""
    if set(loaded) - set(_LIKE):
        raise ConfigError(
            f"{path}: beside 'like' a recipe may have {', '.join(_LIKE[1:])}; found {', '.join(map(str, loaded))}"
        )
    for key in _LIKE[1:]:
        _check_section(loaded.get(key), key, path)
    beside = {file.stem: file for file in path.parent.glob("*.yaml") if file.name != path.name}
    file = beside.get(str(loaded["like"]))
    if file is None:
        raise ConfigError(f"{path}: like: no recipe '{loaded['like']}' beside it{nearest(str(loaded['like']), beside)}")
    liked = parse_yaml(_text(file), where=file.name)
    if isinstance(liked, dict) and "like" in liked:
        raise ConfigError(f"{path}: like: {file.name} is itself like another; name that one")
    other = _whole(liked, file)
    base = _apart(other.base)
    for field, value in (loaded.get("base") or {}).items():
        assign(base, field, value)
    for pattern, changes in (loaded.get("rows") or {}).items():
        fitting = [row for row in other.rows if fnmatchcase(row, pattern)]
        if not fitting:
            raise ConfigError(f"{path}: {file.name} has no row '{pattern}'{nearest(pattern, other.rows)}")
        other.rows.update({row: _both(other.rows[row], changes) for row in fitting})
    other.groups.update(_groups(loaded, other.rows, path))
    return other._replace(base=base)


def _groups(loaded: Mapping[str, Any], rows: Mapping[str, Changes], path: Path) -> dict[str, tuple[str, ...]]:
    groups = {name: tuple(patterns) for name, patterns in (loaded.get("groups") or {}).items()}
    for name, patterns in groups.items():
        _check_rows(patterns, rows, f"{path}: groups.{name}")
    return groups


def _check_rows(
    named: Iterable[str], rows: Mapping[str, Changes], where: str, *, fits: Callable[[str, str], bool] = fnmatchcase
) -> None:
    """Raise `ConfigError` for a name that no row ``fits``: by default a pattern, with ``eq`` a row itself."""
    for name in named:
        if not any(fits(row, name) for row in rows):
            raise ConfigError(f"{where}: no row '{name}'{nearest(name, rows)}")


def _apart(value: Any) -> Any:
    """Copy mappings and lists, such that none is part of two, as aliases make them in YAML."""
    if isinstance(value, dict):
        return {key: _apart(part) for key, part in value.items()}
    return [_apart(part) for part in value] if isinstance(value, list) else value


def _agreement(given: Any, name: str, path: Path) -> Agreement:
    fits = isinstance(given, dict) and "rows" in given and set(given) <= {"rows", "teachers"}
    if not fits or not all(map(_are_names, given.values())):
        raise ConfigError(f"{path}: agreements.{name}: a list of 'rows' is expected, and one of 'teachers' if need be")
    found = Agreement(*(tuple(given.get(part, ())) for part in Agreement._fields))
    if len(found.teachers or found.rows) < 2:
        raise ConfigError(f"{path}: agreements.{name}: name two teachers or more, or without teachers, two rows")
    return found


def _shifts(given: Any, rows: Mapping[str, Changes], path: Path) -> Shifts:
    if given is None:
        return Shifts()
    if not isinstance(given, dict) or set(given) != {"rows", "sets"} or not all(map(_are_names, given.values())):
        raise ConfigError(f"{path}: 'robustness' has the keys 'rows' and 'sets', each a list of names")
    _check_rows(given["rows"], rows, f"{path}: robustness.rows")
    chosen = tuple(row for row in rows if any(fnmatchcase(row, pattern) for pattern in given["rows"]))
    return Shifts(chosen, shifted_sets(given["sets"], f"{path}: robustness"))


def shifted_sets(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Return ``names``, of `SHIFTED_SETS`; raises `ConfigError` for others, naming ``where``."""
    for name in names:
        if name not in SHIFTED_SETS:
            raise ConfigError(f"{where}: no set '{name}'; there are {', '.join(SHIFTED_SETS)}")
    return tuple(names)


def _are_names(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(name, str) for name in given)


def _check_section(value: Any, key: str, path: Path | str) -> None:
    """Check that a section maps names, and that rows and their like map names to changes."""
    if key == "robustness":
        return  # checked where it is read
    if key == "products":
        if not isinstance(value, list | None):
            raise ConfigError(f"{path}: {key}: a list is expected, not {type(value).__name__}")
        return
    values = {} if value is None else value
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{path}: {key}: names with their values are expected; quote names that are numbers")
    for name, listed in values.items() if key in {"groups", "analyses"} else ():
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise ConfigError(f"{path}: {key}.{name}: a list of names is expected")
    for name, changes in values.items() if key in {"presets", "variants", "rows"} else ():
        if not isinstance(changes, dict) or not all(isinstance(field, str) for field in changes):
            raise ConfigError(f"{path}: {key}.{name}: fields with their values are expected, or {{}}")


def _product(
    product: Any, rows: Mapping[str, Changes], variants: Mapping[str, Changes], path: Path
) -> dict[str, Changes]:
    if not isinstance(product, dict) or set(product) != {"rows", "variants"}:
        raise ConfigError(f"{path}: a product has the keys 'rows' and 'variants', each names or a mapping of changes")
    first, second = _chosen(product["rows"], rows, path), _chosen(product["variants"], variants, path)
    return {f"{row}_{variant}": _both(first[row], second[variant]) for variant in second for row in first}


def _chosen(named: Any, known: Mapping[str, Changes], path: Path) -> Mapping[str, Changes]:
    if isinstance(named, dict):
        _check_section(named, "rows", path)
        return named
    if not isinstance(named, list):
        raise ConfigError(f"{path}: a product has the keys 'rows' and 'variants', each names or a mapping of changes")
    for name in named:
        if name not in known:
            raise ConfigError(f"{path}: a product names '{name}'{nearest(name, known)}")
    return {name: known[name] for name in named}


def _both(first: Changes, second: Changes) -> Changes:
    # Changes are applied in order: those of the variant come last.
    return {path: value for path, value in first.items() if path not in second} | second


def resolve(
    schema: type[ConfigT],
    recipe: Path,
    *,
    preset: str | None = None,
    row: str | None = None,
    settings: Sequence[str] = (),
) -> ConfigT:
    """Build a config from a recipe, one of its presets, one of its rows, and ``a.b=c`` settings, in this order.

    What the recipe names by a dollar is filled in before the settings; see `vitutor_core.sizing`.
    """
    read = _shared(recipe)
    values = _apart(read.base)
    for _, changes in changes_of(read, recipe.name, preset=preset, row=row):
        for path, value in changes.items():
            assign(values, path, _apart(value))
    sizes = sizes_of(values, settings, schema) if names_sizes(values) else None
    if sizes is not None:
        values = filled(values, sizes)
    apply_settings(values, settings, schema)
    if sizes is not None:
        values = filled(values, sizes)  # settings may be those of a budget
    return schema.from_mapping(values, where=recipe.name)


def changes_of(read: Recipe, where: str, *, preset: str | None, row: str | None) -> list[tuple[str, Changes]]:
    """Return what a preset and a row change of a recipe's base, in order, each with what it is called."""
    layers = []
    for kind, name, known in (("preset", preset, read.presets), ("row", row, read.rows)):
        if name is None:
            continue
        if name not in known:
            valid = f"{kind}s: {', '.join(known)}" if known else f"it has no {kind}s"
            raise ConfigError(f"{where}: no {kind} '{name}'{nearest(name, known)}; {valid}")
        layers.append((f"{kind} {name}", {path: value for path, value in known[name].items() if path != _ROWS}))
    for pattern, changes in read.presets.get(preset or "", {}).get(_ROWS, {}).items():
        if row is not None and fnmatchcase(row, pattern):
            layers.append((f"preset {preset}", changes))
    return layers
