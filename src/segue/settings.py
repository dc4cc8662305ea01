"""Base class of everything a user can set: unknown keys are errors, values are checked when they arrive."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A block of settings. Field docstrings and ``Field(description=…)`` are what ``segue config schema`` shows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
