"""What one round of annotation is to buy: the ``annotate`` block of a stage, its settings checked by their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from segue.acquire import Acquisition, CostModel, build_acquisition
from segue.acquire.partition import Partition, Superpixels, WholeImage, Windows
from segue.acquire.table import LOG_DENSITIES
from segue.annotation import SHARE, AnnotateConfig
from segue.config import StageConfig
from segue.data.regions import Regions, SuperpixelConfig
from segue.jobs.build import Job, method_class
from segue.labels import nearest
from segue.methods.adversarial import Adversarial
from segue.recipes import ConfigError
from segue.settings import check
from segue.survey import DensitiesConfig

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Order:
    """One round of a stage."""

    config: AnnotateConfig
    group: str
    number: int
    acquisition: Acquisition
    partition: Partition
    superpixels: SuperpixelConfig
    densities: DensitiesConfig
    cost: CostModel
    source: str | None
    """``NAME:split`` whose regions are compared with the pool's, where the acquisition does that."""

    @property
    def estimates_densities(self) -> bool:
        """Whether densities of regions are asked for, which come from embeddings."""
        return bool(set(LOG_DENSITIES) & set(self.acquisition.needs))

    @property
    def compares(self) -> bool:
        """Whether regions of the source are asked for."""
        return self.estimates_densities or "source" in self.acquisition.reads

    @property
    def columns(self) -> tuple[str, ...]:
        """Statistics of the pool's regions that a model has to be asked for."""
        asked = [n for n in self.acquisition.needs if n not in LOG_DENSITIES]
        return tuple(dict.fromkeys([*asked, *(["embedding"] if self.estimates_densities else [])]))

    @property
    def source_columns(self) -> tuple[str, ...]:
        """Those of the source's."""
        return self.columns if "source" in self.acquisition.reads else ("embedding",)

    def budget_px(self, pool_px: int, images: int) -> int:
        """Pixels that the round may buy of a pool of so many, ignored ones left out."""
        config = self.config
        if config.budget_px is not None:
            return config.budget_px
        if config.images is not None:
            return round(pool_px * config.images / images)
        return round(pool_px * (config.share or SHARE))


def order_of(stage: StageConfig, number: int) -> Order:
    """The order of a stage's round; ``ConfigError`` lists every fault of its settings."""
    config = stage.annotate
    assert config is not None
    where = f"stages.{stage.name}.annotate"
    acquisition = build_acquisition(config.acquisition, number, f"{where}.acquisition")
    order = Order(
        config=config,
        group=config.group or stage.name,
        number=number,
        acquisition=acquisition,
        partition=_partition(acquisition, config.partition),
        superpixels=_block(SuperpixelConfig, config.superpixels, f"{where}.superpixels"),
        densities=_block(DensitiesConfig, config.densities, f"{where}.densities"),
        cost=_block(CostModel, config.cost, f"{where}.cost"),
        source=config.source or _first_other(stage),
    )
    if order.compares and order.source is None:
        raise ConfigError(
            f"{where}: acquisition {acquisition.config.name!r} compares the pool with the source; name it with 'source'"
        )
    if "domain_prob" in acquisition.needs and config.discriminator is None:
        raise ConfigError(
            f"{where}: acquisition {acquisition.config.name!r} asks a discriminator; name an adversarial stage with "
            f"'discriminator'"
        )
    return order


def check_annotate(job: Job, stage: StageConfig) -> None:
    """``ConfigError`` for what a stage's annotation lacks: labels of the truth, a stream to train on, time to buy."""
    config = stage.annotate
    if config is None:
        return
    where = f"stages.{stage.name}.annotate"
    streams = [n for n in method_class(stage).uses_labels if config.data in [m.data for m in stage.data.get(n, ())]]
    if not streams:
        raise ConfigError(f"{where} buys labels of {config.data!r}, but no labelled stream of the stage names it")
    if both := [name for name in streams if name in stage.pseudo_labels]:
        raise ConfigError(f"{where}: stream {both[0]} has pseudo-labels; it takes those, or bought labels")
    pool = job.dataset(config.data, where)
    if config.annotator == "truth":
        pool.require_labels()
    total = job.recipe.train_of(stage).iterations
    if config.at and (total is None or config.at[-1] >= total):
        raise ConfigError(f"{where}.at names iteration {config.at[-1]}, set train.iterations to more than that")
    if config.at and config.at[0] > 0 and any({m.data for m in stage.data[n]} == {config.data} for n in streams):
        raise ConfigError(f"{where}.at: there is nothing to train on before the first round; begin with 0")
    if config.begin is not None and not pool.labelled:
        raise ConfigError(f"{where}.begin: labels of what was bought are read from {config.data!r}, which has none")
    if config.begin is not None and config.partition not in (None, "superpixels"):
        raise ConfigError(f"{where}.begin goes on with superpixels: leave 'partition' out")
    if config.regions is not None:
        Regions(config.regions).require(pool.ids)
    if config.discriminator is not None:
        _check_discriminator(job, config.discriminator, where)


def _check_discriminator(job: Job, name: str, where: str) -> None:
    named = {s.name: s for s in job.recipe.stages}
    if name not in named or not issubclass(method_class(named[name]), Adversarial):
        known = [n for n, s in named.items() if issubclass(method_class(s), Adversarial)]
        raise ConfigError(f"{where}.discriminator {name!r} is no adversarial stage{nearest(name, known)}")


def _partition(acquisition: Acquisition, given: str | None) -> Partition:
    if (given or acquisition.partition) == "superpixels":
        return Superpixels()
    return WholeImage() if (given or acquisition.partition) == "image" else getattr(acquisition, "windows", Windows())


def _first_other(stage: StageConfig) -> str | None:
    assert stage.annotate is not None
    streams = [stage.data[name] for name in method_class(stage).uses_labels if name in stage.data]
    return next((m.data for row in streams for m in row if m.data != stage.annotate.data), None)


def _block(cls: type[M], data: Mapping[str, Any], where: str) -> M:
    try:
        return check(cls, data, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
