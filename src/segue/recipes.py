"""Find, read, extend, override and explain recipes.

Precedence: defaults < ``extends`` < the file < environment (``SEGUE__TRAIN__ITERATIONS=100``) < command line
(``train.iterations=100``; a stage is named by its name or number: ``stages.adapted.train.iterations=100``).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from segue.config import NAMED, Recipe, merge
from segue.errors import UserError
from segue.labels import nearest
from segue.presets import fragment
from segue.settings import explain

ENV_PREFIX = "SEGUE__"


class ConfigError(UserError):
    """A recipe that cannot be used; all its faults at once, each with the nearest known key."""


def shipped() -> dict[str, Path]:
    """Recipes that come with Segue: name (path below ``configs`` without ending) -> file."""
    root = Path(str(resources.files("segue").joinpath("configs")))
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}


def find(recipe: str | Path) -> Path:
    """A recipe file by path or shipped name."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if path.suffix == ".json" and path.is_file():
        raise ConfigError(f"{path} is no recipe: if it is of the vDNA project, segue config convert {path} makes one")
    known = shipped()
    name = str(recipe).removesuffix(".yaml").removeprefix("configs/")
    if name in known:
        return known[name]
    raise ConfigError(f"no recipe {str(recipe)!r}: no such file, and no shipped recipe{nearest(name, list(known))}")


def portable(recipe: str | Path) -> str:
    """Text of a recipe that means the same in every folder: it extends shipped recipes by name."""
    path = find(recipe)
    names = {file.resolve(): name for name, file in shipped().items()}

    def by_name(line: re.Match[str]) -> str:
        given = yaml.safe_load(line[1])
        found = [names.get((path.parent / base).resolve(), base) for base in _bases(given)]
        return f"extends: {found if isinstance(given, list) else found[0]}".replace("'", "")

    return re.sub(r"^extends:[ ]*(\S.*)$", by_name, path.read_text("utf-8"), flags=re.MULTILINE)


def load(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Recipe:
    """Read and check a recipe; ``ConfigError`` lists every fault."""
    data, _ = collect(recipe, overrides, environment)
    return validate(data)


def collect(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged plain containers and, for each dotted key that was set, who set it (for ``config show --why``)."""
    data: dict[str, Any] = {}
    why: dict[str, str] = {}
    layers = [("given", copy.deepcopy(dict(recipe)))] if isinstance(recipe, Mapping) else list(_files(find(recipe)))
    for source, layer in layers:
        data = merge(data, layer)
        # A list replaces the one below it as a whole, so must its explanations.
        replaced = tuple(f"{k}." for k, v in layer.items() if isinstance(v, list))
        why = {k: v for k, v in why.items() if not k.startswith(replaced)} if replaced else why
        why.update(dict.fromkeys(_leaves(layer), source))
    settings = [
        (f"environment {k}", k.removeprefix(ENV_PREFIX).lower().replace("__", "."), v)
        for k, v in sorted(environment.items())
        if k.startswith(ENV_PREFIX)
    ]
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"cannot read {text!r}: write key=value, for example train.iterations=100")
        settings.append(("command line", key, value))
    for source, key, value in settings:
        why[_override(data, key, _value(key, value))] = source
    stages = data.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(stage, dict) and stage.get("preset") is not None:
            given = _leaves(fragment(str(stage["preset"])), f"stages.{number}")
            why = dict.fromkeys(given, f"preset {stage['preset']}") | why
    return data, why


def validate(data: Mapping[str, Any]) -> Recipe:
    """Check plain containers; ``ConfigError`` lists every fault with the nearest known key."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Recipe))) from error


def to_yaml(recipe: Recipe) -> str:
    """The recipe as a file that runs to the same run: every key that was set, none that was not."""
    data = recipe.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def _files(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    if path in seen:
        raise ConfigError(f"recipes extend each other in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    data = read_yaml(path)
    for base in _bases(data.pop("extends", None)):
        below = path.parent / base
        yield from _files(below if below.is_file() else find(base), (*seen, path))
    yield str(path), data


def _bases(given: Any) -> list[str]:
    """``extends``: one recipe, or several of which each goes over those before it."""
    return [str(base) for base in (given if isinstance(given, list) else [] if given is None else [given])]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a block; ``ConfigError`` names file, line and what is wrong."""
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read recipe {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"recipe {path} must be a block of 'key: value' lines, it is {type(data).__name__}")
    return data


def _leaves(value: Any, prefix: str = "") -> Iterator[str]:
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    empty = True
    for key, inner in rows:
        empty = False
        yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    if empty and prefix:
        yield prefix


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value of {key}={text!r}: {error}") from error


def _override(data: dict[str, Any], key: str, value: Any) -> str:
    """Set a dotted key in place; list items are found by number or by their ``name``. Returns the numbered key."""
    here: Any = data
    path = key.split(".")
    done: list[str] = []
    for at, part in enumerate(path):
        last = at == len(path) - 1
        if isinstance(here, list):
            index = _item(here, part, ".".join(path[:at]))
            done.append(str(index))
            if last:
                here[index] = value
            else:
                here = here[index]
            continue
        if not isinstance(here, dict):
            raise ConfigError(f"cannot set {key!r}: {'.'.join(path[:at])} is {here!r}, which has no keys")
        done.append(part)
        if last:
            here[part] = value
            break
        if isinstance(here.get(part), str) and part in NAMED:
            here[part] = {"name": here[part]}  # a bare name becomes a block that can be set into
        if not isinstance(here.get(part), (dict, list)):
            here[part] = {}
        here = here[part]
    return ".".join(done)


def _item(rows: list[Any], part: str, where: str) -> int:
    names = [str(r.get("name", i)) if isinstance(r, dict) else str(i) for i, r in enumerate(rows)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(rows):
        return int(part)
    raise ConfigError(f"{where} has no item {part!r}{nearest(part, names)}")
