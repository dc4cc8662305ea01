"""Base class of everything a user can set, and how its faults are told: all at once, with the nearest known key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from segue.labels import nearest

M = TypeVar("M", bound=BaseModel)


class Settings(BaseModel):
    """A block of settings: unknown keys are errors. Field docstrings are what ``segue config schema`` shows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


def check(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """Validate a block; ``ValueError`` with every fault, each under ``where``."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError("\n".join(explain(error, model, where))) from error


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> list[str]:
    """One line a fault: dotted key, what is wrong, what is known."""
    lines: list[str] = []
    for fault in error.errors():
        key = ".".join(str(p) for p in (*([where] if where else []), *fault["loc"]))
        if fault["type"] == "extra_forbidden":
            known = _known_keys(model, fault["loc"][:-1])
            lines.append(f"unknown key {key!r}{nearest(str(fault['loc'][-1]), known)}")
            continue
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "value_error":
            lines.append(message)
            continue
        given = "" if fault["type"] == "missing" else f", it is {fault['input']!r}"
        lines.append(f"{key}: {message}{given}" if key else f"{message}{given}")
    return lines


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    here: type[BaseModel] = model
    for part in loc:
        if isinstance(part, str) and part in here.model_fields:
            here = _settings_in(here.model_fields[part].annotation) or here
    return list(here.model_fields)


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _settings_in(a))), None)
