"""Settings of pictures that are changed on purpose: the corruption of a data set (``data.NAME.corrupt``), the
augmentation block (``transform.augment``) and its four named policies.

The policies are those of a published real-time adaptation study, by the ranges of its code (its report names other
steps); ``segue.data.augment`` says what each step does.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, FiniteFloat, field_validator, model_validator

from segue.labels import nearest
from segue.settings import Settings

Severity = Annotated[int, Field(ge=0, le=5)]
MOST_STEPS = 12
"""A block has at most so many steps: each owns a fixed place among a sample's random numbers."""

LIMITS: dict[str, tuple[float, float] | None] = {
    "contrast": (0, 20),
    "saturation": (0, 20),
    "brightness": (0, 20),
    "hue": (-0.5, 0.5),
    "grayscale": None,
    "solarize": (0, 1),
    "blur": (0.1, 5),  # wider than 5 px, a kernel of 15 would be a box
    "flip": None,
    "rotation": (-180, 180),
    "perspective": (0, 0.6),  # from 2/3 on, the four corners may be no convex quadrilateral
}
"""Step -> least and largest value of its range; None: it has none."""

POLICIES: dict[str, list[dict[str, Any]]] = {
    "C-S-HF": [{"name": "contrast", "range": (2, 6)}, {"name": "saturation", "range": (1, 4)}, {"name": "flip"}],
    "H-RP-HF": [{"name": "hue", "range": (-0.3, 0.3)}, {"name": "perspective", "range": (0.5, 0.5)}, {"name": "flip"}],
    "B-GS-R": [
        {"name": "brightness", "range": (1, 3)},
        {"name": "grayscale"},
        {"name": "rotation", "range": (-90, 90)},
    ],
    "S-BL-R": [
        {"name": "solarize", "range": (0.4, 0.4)},
        {"name": "blur", "range": (0.3, 0.7)},
        {"name": "rotation", "range": (-90, 90)},
    ],
}


class AugmentStep(Settings):
    """One step of the block."""

    name: str
    """contrast, saturation, brightness, hue, grayscale, solarize, blur, flip, rotation or perspective."""
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    """The step's value is drawn uniformly from here: factor (contrast, saturation, brightness), turns (hue), threshold
    in 0..1 (solarize), sigma in pixels (blur), degrees (rotation), distortion (perspective). The others have none."""
    probability: float = Field(1.0, ge=0, le=1)
    """Of this step, once the block is applied."""

    @model_validator(mode="after")
    def _known(self) -> AugmentStep:
        if self.name not in LIMITS:
            raise ValueError(f"unknown augmentation step {self.name!r}{nearest(self.name, list(LIMITS))}")
        limits = LIMITS[self.name]
        if limits is None:
            if self.range is not None:
                raise ValueError(f"augmentation step {self.name!r} has no range")
            return self
        low, high = limits
        if self.range is None or not low <= self.range[0] <= self.range[1] <= high:
            given = "none" if self.range is None else list(self.range)
            raise ValueError(
                f"augmentation step {self.name!r} needs 'range: [low, high]' in ascending order within "
                f"{low}..{high}, it has {given}"
            )
        return self


class AugmentConfig(Settings):
    """A block of strong steps that a sample gets as a whole or not at all."""

    steps: tuple[AugmentStep, ...] = Field(min_length=1, max_length=MOST_STEPS)
    """In this order; the name of a policy (C-S-HF, H-RP-HF, B-GS-R, S-BL-R) stands for its steps."""
    probability: float = Field(0.5, ge=0, le=1)
    """Of the block (0.5 in the study)."""

    @field_validator("steps", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in POLICIES:
            raise ValueError(f"unknown augmentation policy {value!r}{nearest(value, list(POLICIES))}")
        return POLICIES[value]

    @model_validator(mode="after")
    def _one_horizon(self) -> AugmentConfig:
        if sum(step.name == "perspective" for step in self.steps) > 1:
            raise ValueError("an augmentation block has at most one step 'perspective'")
        return self


class CorruptConfig(Settings):
    """One corruption of every image of a data set (:mod:`segue.data.corruptions`); labels stay as they are."""

    name: str
    """fog, night, rain, blur or camera."""
    severity: Severity | tuple[Severity, Severity] = 3
    """0 (the picture itself) to 5; ``[0, 5]``: from the first image of the sorted list to the last, in equal shares."""
    seed: int = 0
    """Draws differ from image to image; equal seeds give an image the same ones at every severity."""
