"""One round of annotation: survey the pool, rank, buy within the budget, get answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segue import checkpoint
from segue.acquire import Acquisition, Purchase, RegionTable, walk
from segue.acquire.datalist import begin, read_datalist
from segue.acquire.partition import Partition, Superpixels, Windows
from segue.acquire.state import INFO, VOID, Asked, Round, RoundInfo, Row, rounds_of, write_round
from segue.config import StageConfig
from segue.data.dataset import Dataset, open_dataset
from segue.data.images import write_image
from segue.data.regions import Regions, make
from segue.errors import Interrupted, UserError
from segue.files import file_of, remove
from segue.jobs.build import Job, build_method, round_folder
from segue.jobs.purchase import Order
from segue.labels import IGNORE
from segue.methods.adversarial import Adversarial
from segue.models.base import Output, SegModel
from segue.ops.keys import generator, seed_of
from segue.progress import Progress, warn
from segue.scoring.names import folder_of
from segue.survey import Look, fill_densities, predicted_map, survey

TABLES = "tables"


@dataclass(frozen=True)
class Buyer:
    """A round of a stage and the model that it is chosen by; ``name`` says whose predictions these are."""

    job: Job
    stage: StageConfig
    order: Order
    model: SegModel
    name: str

    @property
    def folder(self) -> Path:
        return round_folder(self.job, self.stage, self.order.number)

    @cached_property
    def pool(self) -> Dataset:
        return self.job.dataset(self.order.config.data, self.stage.name)

    @cached_property
    def pool_regions(self) -> Regions | None:
        return self._regions(self.pool, self.order.config.regions)

    @cached_property
    def digest(self) -> str:
        """Of the model's weights."""
        digest = blake2b(digest_size=16)
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def key(self) -> tuple[int | str, ...]:
        return self.job.recipe.seed, self.order.group, self.order.number

    def earlier(self) -> list[Round]:
        """Rounds before this one; with what D2ADA's code bought before, as round 0."""
        group, datalist = self.folder.parent, self.order.config.begin
        if datalist is not None and not (group / "round_0" / INFO).is_file():
            self._begin(group / "round_0", datalist)
        return [r for r in rounds_of(group) if r.info.round < self.order.number]

    def choose(self, earlier: list[Round]) -> None:
        """Rank the pool, buy, and write the round."""
        order = self.order
        table = self._survey("pool", self.pool, order.columns, self.pool_regions, earlier)
        source = table.take([])
        if order.compares:
            assert order.source is not None
            dataset = self._source(order.source)
            regions = self._regions(dataset, order.config.source_regions)
            source = self._survey("source", dataset, order.source_columns, regions, [])
        skipped: dict[int, str] = {}
        if order.estimates_densities:
            draws = generator(*self.key, "densities")
            table, skipped = fill_densities(self.folder / TABLES / "pool", source, order.densities, draws)
        had = _among(earlier, table)
        pool, labelled = table.take(~had), table.take(had)
        pool_px = self._pool_px(table)
        budget_px = order.budget_px(pool_px, len(self.pool))
        rng = np.random.default_rng(seed_of(*self.key, "choose"))
        purchase = walk(order.acquisition.rank(pool, labelled, source, budget_px, rng), pool, budget_px)
        if not len(purchase.rows):
            raise UserError(
                f"round {order.number} of {order.group!r} finds nothing to buy in {order.config.data!r}: "
                f"{len(pool)} of {len(table)} regions are left for a budget of {budget_px} pixels"
            )
        if purchase.missing_px:
            warn(
                f"round {order.number} of {order.group!r} buys {purchase.labelled_px} of {budget_px} pixels: no more "
                f"are for sale"
            )
        classes = self.job.labels.classes
        if lost := [f"{classes[c]} ({why})" for c, why in skipped.items() if (table.predicted == c).any()]:
            warn(f"no densities for {len(lost)} classes, whose regions come last: {'; '.join(lost)}")
        self._write(purchase, pool, pool_px, {classes[c]: why for c, why in skipped.items()})
        if not order.config.keep_tables:
            remove(self.folder / TABLES)

    def answer(self, found: Round) -> None:
        """Labels from the truth; or see whether people are done, and ask them if not."""
        if self.order.config.annotator == "truth":
            return self._tell_truth(found)
        missing = [] if found.info.closed else found.missing()
        if missing:
            images, run = len({row.image for row in missing}), self.job.folder
            minutes = self.order.cost.minutes(sum(row.clicks for row in missing), len(missing))
            raise Interrupted(
                f"round {self.order.number} of {self.order.group!r} waits for labels of {len(missing)} regions in "
                f"{images} images, about {minutes:.0f} minutes of clicks: `segue annotate export {run} --out JOB`, "
                f"label them, `segue annotate import {run} FILE`"
            )

    def _tell_truth(self, found: Round) -> None:
        answers, places = found.answers(), {image: n for n, image in enumerate(self.pool.ids)}
        for image in found.by_image:
            label = self.pool.read_sample(places[image], True).label
            assert label is not None  # asked for
            said = np.where(label == IGNORE, VOID, label).astype(np.uint8)
            answers.put(image, np.where(found.asked(image) > 0, said, np.uint8(IGNORE)))
        answers.save()

    def _begin(self, folder: Path, datalist: Path) -> None:
        assert self.pool_regions is not None  # checked before the run
        regions = self.pool_regions
        rows, masks = begin(read_datalist(datalist), self.pool, regions, self.order.cost)
        total_px = int(regions.area_px.sum()) - (0 if regions.ignored_px is None else int(regions.ignored_px.sum()))
        info = self._info(rows, pool_px=total_px, budget_px=0)
        from_there = {"round": 0, "model": datalist.name, "acquisition": {"name": "datalist"}, "annotator": "truth"}
        write_round(folder, info.model_copy(update=from_there), rows, masks)
        self._tell_truth(Round(folder))

    def _write(self, purchase: Purchase, pool: RegionTable, pool_px: int, skipped: dict[str, str]) -> None:
        records = purchase.records(pool)
        chosen: dict[str, list[int]] = {}
        for found in records:
            chosen.setdefault(found["image"], []).append(found["region"])
        masks = Asked(self._map, chosen)
        clicks = {image: self.order.cost.clicks_of(masks[image], len(ids)) for image, ids in chosen.items()}
        shown = _shown(self.order.acquisition, pool, purchase.rows)
        rows, parts = [], dict.fromkeys(chosen, 0)
        for found, extra in zip(records, shown, strict=True):
            parts[found["image"]] += 1
            part = parts[found["image"]]
            rows.append(Row(**found, part=part, clicks=clicks[found["image"]][part - 1], **extra))
        if self.order.config.annotator == "people":
            self._guess(list(chosen))
        info = self._info(rows, pool_px=pool_px, budget_px=purchase.budget_px)
        write_round(self.folder, info.model_copy(update={"skipped": skipped}), rows, masks)

    def _info(self, rows: list[Row], *, pool_px: int, budget_px: int) -> RoundInfo:
        order, clicks = self.order, sum(row.clicks for row in rows)
        return RoundInfo(
            group=order.group,
            round=order.number,
            data=order.config.data,
            split=self.pool.split,
            labels=self.job.labels.to_dict(),
            annotator=order.config.annotator,
            acquisition=order.acquisition.config.model_dump(mode="json"),
            partition=order.partition.model_dump(mode="json"),
            model=self.name,
            seed=self.job.recipe.seed,
            pool_px=pool_px,
            budget_px=budget_px,
            labelled_px=sum(row.area_px - row.ignored_px for row in rows),
            ignored_px=sum(row.ignored_px for row in rows),
            regions=len(rows),
            images=len({row.image for row in rows}),
            clicks=clicks,
            minutes=order.cost.minutes(clicks, len(rows)),
        )

    def _map(self, image: str, chosen: Sequence[int]) -> npt.NDArray[np.integer]:
        """Region ids of an image (H, W), of ``chosen`` ones at least."""
        if self.pool_regions is not None:
            return self.pool_regions.read(image)
        size = self.pool.read_sample(self.pool.ids.index(image), False).image.shape[:2]
        if isinstance(self.order.partition, Windows):
            return self.order.partition.around(size, chosen)
        return np.zeros(size, np.int32)

    def _survey(
        self, name: str, dataset: Dataset, columns: tuple[str, ...], regions: Regions | None, earlier: list[Round]
    ) -> RegionTable:
        def had(image: str) -> npt.NDArray[np.bool_] | None:
            masks = [r.asked(image) > 0 for r in earlier if image in r.by_image]
            return np.asarray(np.logical_or.reduce(masks)) if masks else None

        return survey(
            self.model,
            dataset,
            self.folder / TABLES / name,
            Look(columns, self.partition, regions, had, self._domain() if "domain_prob" in columns else None),
            device=self.job.hardware.device,
            identity={"model": self.digest, "data": f"{dataset.name}:{dataset.split}", "rounds": len(earlier)},
            progress=Progress(f"survey of {dataset.name}"),
        )

    def _domain(self) -> Callable[[Output], Tensor]:
        stage = next(s for s in self.job.recipe.stages if s.name == self.order.config.discriminator)
        method = build_method(self.job, stage)
        assert isinstance(method, Adversarial)  # checked before the run
        newest = checkpoint.newest(self.job.stage_folder(stage) / "checkpoints")
        assert newest is not None  # an earlier stage
        method.load_state_dict(checkpoint.load_state(newest)["method"])
        method.to(self.job.hardware.device)
        return method.domain_logits

    @cached_property
    def partition(self) -> Partition:
        """What is for sale; of an image so many windows as its part of the budget could pay twice, the best ones."""
        partition = self.order.partition
        if not isinstance(partition, Windows) or partition.most is not None:
            return partition
        side = 2 * (partition.radius_px if partition.label_px is None else partition.label_px) + 1
        budget_px = self.order.budget_px(self._image_px * len(self.pool), len(self.pool))
        return partition.model_copy(update={"most": math.ceil(2 * budget_px / side**2 / len(self.pool))})

    @cached_property
    def _image_px(self) -> int:
        return self.pool.read_sample(0, False).image[..., 0].size

    def _pool_px(self, table: RegionTable) -> int:
        """Pixels for sale in the whole pool before any round; of windows, as if all images were as large as the first.

        Windows are cut where a score is high, so that a table of them does not tell.
        """
        windows = isinstance(self.order.partition, Windows)
        return self._image_px * len(self.pool) if windows else int(table.cost_px.sum())

    def _source(self, text: str) -> Dataset:
        name, split = self.job.recipe.split_of(text, self.stage.name)
        config = self.job.recipe.data[name]
        most = [n for n in (config.limit, self.order.config.source_images) if n is not None]
        return open_dataset(name, config.model_copy(update={"limit": min(most, default=None)}), split, self.job.labels)

    def _regions(self, dataset: Dataset, given: Path | None) -> Regions | None:
        if not isinstance(self.order.partition, Superpixels):
            return None
        if given is not None:
            return Regions(given)
        folder = self.job.folder / "regions" / folder_of(f"{dataset.name}:{dataset.split}")
        return make(dataset, folder, self.order.superpixels, progress=Progress(f"regions of {dataset.name}"))

    def _guess(self, images: Sequence[str]) -> None:
        for image in images:
            place = self.pool.ids.index(image)
            predicted = predicted_map(self.model, self.pool, place, device=self.job.hardware.device)
            write_image(self.folder / "guess" / f"{file_of(image)}.png", predicted)


def _among(earlier: list[Round], table: RegionTable) -> npt.NDArray[np.bool_]:
    """(N,) whether a region was bought before."""
    places = {image: n for n, image in enumerate(table.images)}
    known = [places[row.image] << 32 | row.region for r in earlier for row in r.rows if row.image in places]
    return np.isin(table.image.astype(np.int64) << 32 | table.region, np.array(known, np.int64))


def _shown(acquisition: Acquisition, pool: RegionTable, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Score and scalar statistics of some rows, as a person may want to see them."""
    names = [name for name in pool.names if name not in ("embedding", "prob")]
    shown = {name: _numbers(pool.statistic(name)[rows]) for name in names}
    scored = type(acquisition).score is not Acquisition.score
    score = _numbers(acquisition.score(pool)[rows]) if scored else [None] * len(rows)
    return [{"score": score[k], "statistics": {n: v[k] for n, v in shown.items()}} for k in range(len(rows))]


def _numbers(values: npt.NDArray[np.floating]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
