"""A network around another one, ``base``, that answers as the base does but for what the wrapper adds.

A wrapper starts from a stored model of its own kind, or from one of the base's kind (``checkpoint.start_from``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from segue.errors import UserError
from segue.models.base import MODELS, ModelConfig, ParamGroup, SegModel
from segue.models.build import validate
from segue.models.weights import Converting

OUTER = frozenset(ModelConfig.model_fields) - {"name"}
"""Settings that the wrapper has for both."""


class WrappedConfig(ModelConfig):
    """Settings of a wrapper; all but ``base`` and its own are about the base too."""

    base: dict[str, Any] = Field(default_factory=lambda: {"name": "bisenet"}, validate_default=True)
    """Settings of the network that is wrapped, as those of ``model`` without a wrapper."""

    @field_validator("base")
    @classmethod
    def _known_base(cls, base: dict[str, Any]) -> dict[str, Any]:
        if outer := sorted(OUTER & set(base)):
            raise ValueError(f"model.base.{outer[0]}: set model.{outer[0]}, it is for the whole network")
        try:
            settings = validate(base, "model.base")
            inner = MODELS.get(settings.name)
            if issubclass(inner, Wrapped) and not inner.wrappable:
                raise ValueError(f"model.base.name: {settings.name} is a wrapper and cannot be wrapped")
            return settings.model_dump(exclude=set(OUTER))
        except UserError as error:  # told together with the other faults
            raise ValueError(str(error)) from error


class Wrapped(SegModel):
    """Base of wrappers: what they and their base share."""

    Config = WrappedConfig
    config: WrappedConfig
    encoder_prefix = "base.encoder."
    wrappable: ClassVar[bool] = False
    """Whether other wrappers may go around it."""

    def __init__(self, config: WrappedConfig, num_classes: int) -> None:
        settings = validate({**config.base, "head_lr_factor": config.head_lr_factor}, "model.base")
        base = MODELS.get(settings.name)(settings, num_classes)
        super().__init__(config, num_classes, base.mean.flatten().tolist(), base.std.flatten().tolist())
        # What reaches the base is normalised already.
        base.register_buffer("mean", torch.zeros_like(base.mean), persistent=False)
        base.register_buffer("std", torch.ones_like(base.std), persistent=False)
        self.base = base
        self.encoder_prefix = f"base.{base.encoder_prefix}"
        self.multiple, self.align_corners = base.multiple, base.align_corners
        self.fixed_size_graph = base.fixed_size_graph

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Around the smallest ERFNet."""
        return {"base": {"name": "erfnet", **MODELS.get("erfnet").tiny()}}

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Those of the base."""
        return self.base.features(self._prepared(image))

    def classifiers(self) -> dict[str, nn.Module]:
        """Those of the base."""
        return {f"base.{path}": module for path, module in self.base.classifiers().items()}

    def imagenet_state(self) -> Mapping[str, Tensor] | None:
        """That of the base."""
        state = self.base.imagenet_state()
        self.notes = self.base.notes
        return state

    def encoder_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """That of the base."""
        return self.base.encoder_state(state) if isinstance(self.base, Converting) else state

    def param_groups(self) -> list[ParamGroup]:
        """Those of the base, which may have several for its encoder."""
        return self.base.param_groups()

    def deployed(self) -> Wrapped:
        """See :class:`SegModel`; what serves training only is the base's."""
        model = super().deployed()
        assert isinstance(model, Wrapped)
        model.base = model.base.deployed()
        return model

    def layout(self) -> dict[str, Any]:
        """See :class:`SegModel`; what the base lacks is under ``base``."""
        inner = self.base.layout()
        return super().layout() | ({"base": inner} if inner else {})

    def apply_layout(self, layout: Mapping[str, Any]) -> None:
        """See :class:`SegModel`."""
        self.base.apply_layout(layout.get("base", {}))
        super().apply_layout(layout)
