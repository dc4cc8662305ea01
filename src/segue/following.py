"""Settings of a stage that follows an unlabelled stream bucket by bucket (``follow``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from segue.pseudo_labelling import ImageRules
from segue.settings import Settings


class RankConfig(Settings):
    """By what the images of a stream are ordered."""

    by: str = "stream"
    """``stream``: as they come (data sets in the order of ``follow.data``, images by id); ``gap``: earth mover's
    distance of every image to the source; else a column of ``file`` (``emd_block_11`` in the published run)."""
    file: Path | None = None
    """Published ranking, a JSON list with paths and scores; images that it does not list are left out, and those that
    it marks as validation."""
    network: str = "start"
    """For ``gap``: ``start``, the model that the stream begins with, or a network of ``segue gap``."""
    layers: tuple[str, ...] = ()
    """For ``gap``: regular expressions that name layers. Default: the encoder's blocks."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """For ``gap``: images are resized to (height, width). Default: as they are read for training."""


class LayersConfig(Settings):
    """Train those layers only whose activations differ most between source and stream."""

    layers: tuple[str, ...] = ()
    """Regular expressions that name the layers to choose from. Default: the encoder's blocks."""
    deviations: float = 1.0
    """A layer is chosen above the mean of all distances by so many standard deviations (1 in the published run)."""
    always: tuple[str, ...] = ()
    """Regular expressions on parameter names that are trained whatever the distances. Default: all but the encoder."""


class AnchorConfig(Settings):
    """What a stage keeps of its training images beside its weights, for models that go on from it without them."""

    data: str | None = None
    """``NAME:split`` with labels. Default: the first data set of the stage's first labelled stream."""
    images: PositiveInt | None = 500
    """Look at so many of its images, evenly spaced; null: all."""


class FollowConfig(Settings):
    """Which images a stage follows: one bucket of a stream, which ``rounds`` shares out over as many stages."""

    data: tuple[str, ...] = Field(min_length=1)
    """``NAME:split`` of the stream's data sets; in the stage's own streams they mean the images of its bucket."""
    source: str | None = None
    """``NAME:split`` of the source, where ``rank.by: gap`` or ``layers`` compares with it. No label of it is read."""
    scored_source: str | None = None
    """Which of ``evaluate.data`` is the source's, for the ledger. Default: the second one."""
    source_images: PositiveInt | None = 500
    """Use so many source images at most, evenly spaced; null: all."""
    rank: RankConfig = RankConfig()
    order: Literal["ascending", "descending", "random"] = "ascending"
    """Nearest first, farthest first, or at random. Of ``rank.by: stream``: forwards, backwards, at random."""
    cut: Literal["count", "width", "within"] = "count"
    """Buckets of equal numbers of images, of equal intervals of the score, or as wide as ``distance``."""
    buckets: PositiveInt | None = None
    """How many buckets the stream is cut into; default: as many as ``rounds``. More than these are left unvisited."""
    distance: PositiveFloat | None = None
    """For ``within``: a bucket ends where the score has moved on by more than this."""
    filters: ImageRules = ImageRules()
    """What the model that the stream begins with must predict on an image (``class_count_min: 9`` in the published
    run); a column of the ranking file by that name is taken from there."""
    images: PositiveInt | None = None
    """Draw so many images of a bucket (2000 in the published run). Default: all."""
    layers: LayersConfig | None = None
    """Choose the layers to train by their gap. Default: the model's settings say what is trained."""
    keep_measures: bool = True
    """Keep the per-image numbers that images were ranked and filtered by."""
    group: str | None = None
    """Name of the buckets that belong together. Default: the stage's name. Written out when read."""
    bucket: PositiveInt = 1
    """Number of this stage's bucket. Written out when read."""
    total: PositiveInt = 1
    """How many buckets are visited. Written out when read."""

    @field_validator("data", mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("rank", mode="before")
    @classmethod
    def _bare_rank(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> FollowConfig:
        by = self.rank.by
        if by not in ("stream", "gap") and self.rank.file is None:
            raise ValueError(f"follow.rank.by {by!r} is a column of a ranking: give follow.rank.file (or gap, stream)")
        if ((by == "gap" and self.rank.file is None) or self.layers is not None) and self.source is None:
            raise ValueError("follow.rank.by gap and follow.layers compare with the source: give follow.source")
        if (self.cut == "within") != (self.distance is not None):
            raise ValueError("follow.cut within and follow.distance belong together")
        if self.cut != "count" and self.order == "random":
            raise ValueError("follow.cut width and within need an order by score, not a random one")
        if self.cut == "within" and self.buckets is not None:
            raise ValueError("follow.cut within makes as many buckets as the scores need: leave out follow.buckets")
        if self.buckets is not None and self.buckets < self.total:
            raise ValueError(f"follow.buckets {self.buckets} are fewer than the rounds, {self.total}")
        return self
