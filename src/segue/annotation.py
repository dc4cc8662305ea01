"""Settings of a stage that buys labels of target regions (``annotate``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from segue.settings import Settings

SHARE = 0.01


class AnnotateConfig(Settings):
    """What is bought before the stage trains, or while it does.

    In labelled streams of the stage the pool is its images with bought labels, in the others it is all of its images.
    """

    data: str
    """``NAME:split`` of the pool; it needs labels only when the truth answers."""
    acquisition: dict[str, Any] = Field(default_factory=lambda: {"name": "mixed"})
    """Name of an acquisition (``segue list acquisitions``), or a block with ``name`` and its settings. Default: D2ADA,
    density and entropy with half-decay."""
    share: float | None = Field(None, gt=0, le=1)
    """Budget of a round as a share of the pool's pixels, ignored ones left out (default 0.01, as in D2ADA)."""
    images: PositiveFloat | None = None
    """Instead: so many images of average size (29 of Cityscapes in D2ADA's code)."""
    budget_px: PositiveInt | None = None
    """Instead: so many pixels."""
    annotator: Literal["truth", "people"] = "truth"
    """Who answers: the data set's labels, for research, or people (``segue annotate export``): then the run stops after
    each choice and goes on with ``--resume`` when the labels have come (``segue annotate import``)."""
    regions: Path | None = None
    """Superpixels of the pool, made by ``segue data regions``. Default: made in the run's folder."""
    partition: Literal["superpixels", "image", "windows"] | None = None
    """What is bought at once. Default: what the acquisition was published for."""
    superpixels: dict[str, Any] = Field(default_factory=dict)
    """How regions are made where there are none: ``number`` and ``compactness``."""
    source: str | None = None
    """``NAME:split`` whose regions are compared with the pool's. Default: the first other data set with labels."""
    source_regions: Path | None = None
    """Superpixels of the source, likewise."""
    source_images: PositiveInt | None = 5000
    """Use so many source images at most, evenly spaced; null: all, as in D2ADA's code (24,904 of GTA5, every round)."""
    densities: dict[str, Any] = Field(default_factory=dict)
    """How densities of regions are estimated."""
    at: tuple[NonNegativeInt, ...] = ()
    """Iterations of the running training before which a round is bought, instead of one training a round
    (``rounds``): RIPU buys at 10k, 12k, 14k, 16k and 18k of 40k."""
    discriminator: str | None = None
    """Stage whose discriminator tells how much a region looks like the target (AADA)."""
    begin: Path | None = None
    """``datalist_0X.pkl`` of D2ADA's code: what has been bought before. Needs ``regions`` made from its superpixels."""
    cost: dict[str, Any] = Field(default_factory=dict)
    """From clicks to minutes: ``seconds_per_click``, ``seconds_per_region``."""
    keep_tables: bool = True
    """Keep statistics and densities of regions after a round has been chosen."""
    group: str | None = None
    """Name of the rounds that belong together. Default: the stage's name. Written out when read."""
    round: PositiveInt = 1
    """Number of this stage's round. Written out when read."""

    @field_validator("acquisition", mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> AnnotateConfig:
        if sum(x is not None for x in (self.share, self.images, self.budget_px)) > 1:
            raise ValueError("annotate: give one of share, images and budget_px")
        if any(a >= b for a, b in zip(self.at, self.at[1:], strict=False)):
            raise ValueError(f"annotate.at names rising iterations, each once, not {list(self.at)}")
        if self.at and self.group is not None:
            raise ValueError("annotate.at buys within one training, 'rounds' trains anew for each: give one of them")
        if self.begin is not None and self.regions is None:
            raise ValueError("annotate.begin needs annotate.regions, made with `segue data regions --published`")
        return self
