"""Densities of regions in source and target, class by class (Wu et al., "D2ADA", ECCV 2022, section 3.2).

For each predicted class two Gaussian mixtures, of the source's and of the target's embeddings, each with components for
its own number of points; then log p(z|c) under both for every region of the target. Embeddings are projected on
principal axes that both domains and all classes share. D2ADA fits in 256 dimensions and forked workers, where one class
that fails loses all others; here each class has an outcome of its own, and one without densities is reported.

Knobs that matter: ``dimensions``, ``most_points``, ``time_limit_s``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from segue.acquire.table import F32, I64, LOG_DENSITIES, RegionTable, append_column
from segue.errors import DISK_FULL, UserError
from segue.files import remove, replacing
from segue.ops.mixtures import Mixture, MixtureConfig, Projection, fit_mixtures, principal_axes
from segue.settings import Settings

MIXTURES = "mixtures.safetensors"
FORMAT = "segue-mixtures-1"
DOMAINS = ("source", "target")
AXES_POINTS = 50_000
"""Points of a domain by which axes are found: 50 MB in 256 dimensions."""
DAMAGE = (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError)
"""What a file that holds no mixtures of ours, or damaged ones, ends in."""
FAILURES = (MemoryError, RuntimeError, ValueError, ArithmeticError)
"""What a fit may end in: no memory (torch: RuntimeError), a decomposition that fails, numbers that are not finite."""


class DensitiesConfig(Settings):
    """How densities are estimated."""

    dimensions: int = Field(64, ge=1)
    """Principal axes that embeddings are projected on; all, where these are fewer. Ours: a fit in 256 is 16 times as
    dear."""
    most_points: int = Field(20_000, ge=2)
    """Regions of a class and domain that a mixture is fitted to, drawn where there are more; ours."""
    time_limit_s: float = Field(1800.0, ge=0)
    """Seconds for all mixtures; classes that come after are skipped; ours."""
    mixtures: MixtureConfig = MixtureConfig()
    """Each of them."""


@dataclass(frozen=True)
class Mixtures:
    """Densities of embeddings given a class."""

    projection: Projection | None
    """None when there are no mixtures at all."""
    of_class: dict[int, tuple[Mixture, Mixture]]
    """Source's and target's."""
    skipped: dict[int, str]
    """Classes without, and why."""
    unfinished: dict[int, str]
    """Classes whose fit stopped early, and why."""

    @classmethod
    def load(cls, path: Path) -> Mixtures:
        """What :meth:`save` stored; ``UserError`` when it is damaged or gone."""
        try:
            with safe_open(path, "pt") as file:
                told = _told(file)
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            lists = {n: {int(c): str(why) for c, why in told[n].items()} for n in ("skipped", "unfinished")}
            classes = sorted({int(name.split(".")[0]) for name in held if name[0].isdigit()})
            of_class = {c: tuple(_read(Mixture, held, f"{c}.{d}") for d in DOMAINS) for c in classes}
            projection = _read(Projection, held, "projection") if classes else None
            return cls(projection, of_class, **lists)
        except DAMAGE as error:
            raise UserError(f"{path} is damaged, or holds no mixtures: delete it, and they are fitted again") from error

    def save(self, path: Path, identity: str = "") -> None:
        """Store them as plain tensors; ``identity`` is kept beside."""
        held = {} if self.projection is None else _named(self.projection, "projection")
        for c, pair in self.of_class.items():
            for domain, mixture in zip(DOMAINS, pair, strict=True):
                held |= _named(mixture, f"{c}.{domain}")
        told = {"identity": identity, "skipped": self.skipped, "unfinished": self.unfinished}
        data = save(held, {FORMAT: json.dumps(told)})  # of several entries the order would be random
        with replacing(path) as temporary:
            temporary.write_bytes(data)


def fill_densities(
    folder: Path,
    source: RegionTable,
    config: DensitiesConfig,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
) -> tuple[RegionTable, dict[int, str]]:
    """Add both log-densities to the stored table of all target regions; the table, and classes without, with reasons.

    A class that cannot be fitted, for whatever reason, has none (NaN), the others are as without it. Mixtures are kept
    beside as :data:`MIXTURES`; what was filled from equal ``config``, source and ``generator`` is returned as it is.
    ``TableError`` when a table has no embeddings, ``UserError`` for a full disk.
    """
    target, path = RegionTable.load(folder), folder / MIXTURES
    identity = json.dumps([config.model_dump(), len(source), generator.initial_seed()])
    if set(LOG_DENSITIES) <= set(target.names) and _identity(path) == identity:
        return target, Mixtures.load(path).skipped
    remove(path)
    mixtures, columns = estimate(target, source, config, generator, device)
    try:
        for name, values in zip(LOG_DENSITIES, columns, strict=True):
            append_column(folder, name, values)
        mixtures.save(path, identity)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(f"the disk is full, densities do not fit into {folder}: free space and run again") from error
    return RegionTable.load(folder), mixtures.skipped


def estimate(
    target: RegionTable,
    source: RegionTable,
    config: DensitiesConfig,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> tuple[Mixtures, tuple[F32, F32]]:
    """Mixtures of every class, and log-densities (N,) of the target's regions in source and target, NaN without."""
    return _Estimate(target, source, config, generator, torch.device(device)).run()


class _Estimate:
    def __init__(
        self,
        target: RegionTable,
        source: RegionTable,
        config: DensitiesConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.tables = (source, target)
        self.config = config
        self.device = device
        self.deadline = time.monotonic() + config.time_limit_s
        shape = (target.num_classes, len(DOMAINS), 2)
        self.seeds = torch.randint(2**62, shape, generator=generator).tolist()
        self.mixtures = Mixtures(None, {}, {}, {})

    def run(self) -> tuple[Mixtures, tuple[F32, F32]]:
        target = self.tables[1]
        for table in self.tables:
            next(table.blocks("embedding"), None)  # says so when there are none
        columns = tuple(np.full(len(target), np.nan, np.float32) for _ in DOMAINS)
        skipped = self.mixtures.skipped
        try:
            projection = self._axes()
        except FAILURES as error:
            skipped |= dict.fromkeys(range(target.num_classes), f"no principal axes: {_reason(error)}")
            return self.mixtures, (columns[0], columns[1])
        for c in range(target.num_classes):
            try:
                self._fill(c, projection, (columns[0], columns[1]))
            except FAILURES as error:
                skipped[c] = _reason(error)
                self.mixtures.unfinished.pop(c, None)
        of_class = self.mixtures.of_class
        done = Mixtures(projection if of_class else None, of_class, skipped, self.mixtures.unfinished)
        return done, (columns[0], columns[1])

    def _fill(self, c: int, projection: Projection, columns: tuple[F32, F32]) -> None:
        """Mixtures and densities of one class, all or nothing."""
        rows = np.flatnonzero(self.tables[1].predicted == c)
        if not len(rows):
            raise UserError("no region of the target is predicted as it")
        pair = tuple(self._fit(c, domain, projection) for domain in range(len(DOMAINS)))
        found: list[list[npt.NDArray[Any]]] = [[], []]
        for points in _projected(self.tables[1], rows, projection, self.device):
            for mixture, values in zip(pair, found, strict=True):
                values.append(mixture.log_density(points).cpu().numpy())
        for column, values in zip(columns, found, strict=True):
            column[rows] = np.concatenate(values)
        self.mixtures.of_class[c] = (pair[0], pair[1])

    def _fit(self, c: int, domain: int, projection: Projection) -> Mixture:
        config, name = self.config.mixtures, DOMAINS[domain]
        blocks = _projected(self.tables[domain], self._drawn(c, domain), projection, self.device)
        points = torch.cat([projection.axes.new_empty(0, len(projection.axes)), *blocks])
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise UserError(f"no time left of {self.config.time_limit_s:g} s (time_limit_s)")
        config = config.model_copy(update={"time_limit_s": min(config.time_limit_s, left_s)})
        draws = torch.Generator().manual_seed(self.seeds[c][domain][1])
        fit = fit_mixtures([points], config, draws)[0]
        if fit.mixture is None or (fit.stop == "time" and not len(fit.log_likelihood)):
            raise UserError(f"{name}: {fit.reason}")
        if fit.reason:
            self.mixtures.unfinished[c] = f"{name}: {fit.reason}"
        return fit.mixture

    def _drawn(self, c: int, domain: int) -> I64:
        """Rows of a class that are fitted to, rising."""
        rows = np.flatnonzero(self.tables[domain].predicted == c)
        return _some(rows, self.config.most_points, self.seeds[c][domain][0])

    def _axes(self) -> Projection:
        sets = []
        for domain, table in enumerate(self.tables):
            rows = np.concatenate([self._drawn(c, domain) for c in range(table.num_classes)])
            rows = _some(np.sort(rows), AXES_POINTS, self.seeds[0][domain][0])
            sets.append(torch.from_numpy(table.take(rows).statistic("embedding")).to(self.device))
        return principal_axes(sets, min(self.config.dimensions, sets[0].shape[1]))


def _projected(table: RegionTable, rows: I64, projection: Projection, device: torch.device) -> Iterator[Tensor]:
    for block in table.take(rows).blocks("embedding"):
        yield projection.project(torch.from_numpy(block).to(device))


def _some(rows: I64, most: int, seed: int) -> I64:
    if len(rows) <= most:
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return np.sort(rows[order[:most].numpy()])


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in str(error):
        return "not enough memory"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _named(held: Mixture | Projection, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.cpu().contiguous() for name, tensor in vars(held).items()}


def _read(cls: type[Any], held: dict[str, Tensor], prefix: str) -> Any:
    return cls(**{field.name: held[f"{prefix}.{field.name}"] for field in fields(cls)})


def _told(file: Any) -> dict[str, Any]:
    return dict(json.loads(file.metadata()[FORMAT]))


def _identity(path: Path) -> Any:
    try:
        with safe_open(path, "pt") as file:
            return _told(file).get("identity")
    except DAMAGE:
        return None
