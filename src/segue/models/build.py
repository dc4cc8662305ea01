"""From settings to a network that is ready to train: construct, load encoder weights, freeze, synchronise norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from segue.errors import UserError
from segue.models.base import MODELS, ModelConfig, SegModel
from segue.models.norms import synchronise
from segue.models.weights import load_encoder
from segue.registry import UnknownName
from segue.settings import explain


def build_model(
    config: Mapping[str, Any] | ModelConfig, labels_n: int, layout: Mapping[str, Any] | None = None
) -> SegModel:
    """The network that ``model:`` of a recipe describes, for ``labels_n`` classes, in training mode.

    ``layout`` is ``SegModel.layout()`` of a stored network whose head has grown. ``UserError`` (settings, unknown name,
    a freeze pattern without a match) or ``WeightsError`` say what to change. Initial weights come from torch's global
    generator: seed it before.
    """
    if labels_n < 1:
        raise UserError(f"a model needs at least 1 class, not {labels_n}")
    settings = validate(config)
    model = MODELS.get(settings.name)(settings, labels_n)
    model.apply_layout(layout or {})
    load_encoder(model, settings.weights)
    if settings.norm == "sync":
        synchronise(model)
    model.apply_freeze()
    return model


def validate(config: Mapping[str, Any] | ModelConfig, where: str = "model") -> ModelConfig:
    """Settings checked against the ``Config`` of the class that they name; ``UserError`` lists every fault."""
    data = config.model_dump(exclude_unset=True) if isinstance(config, ModelConfig) else dict(config)
    if "name" not in data:
        raise UserError(f"{where} needs a name (known: {', '.join(MODELS.names())})")
    try:
        schema = MODELS.get(str(data["name"])).Config
        return schema.model_validate(data)
    except UnknownName as error:
        raise UserError(str(error)) from error
    except ValidationError as error:
        raise UserError("\n".join(explain(error, schema, where))) from error
