"""A run folder as plain data. Whatever is missing, unfinished or damaged is left out and noted, never fatal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segue.errors import UserError
from segue.labels import LabelError, LabelSpace, space_from_dict

ROLES = ("source_only", "adapted", "target_supervised")
NAN = math.nan


@dataclass(frozen=True)
class Evaluation:
    """Scores of one stage on one validation set, fractions 0..1, NaN where there is none."""

    miou: float
    accuracy: float
    mean_accuracy: float
    iou: dict[str, float]
    num_images: int
    protocol: str
    view: str
    confusion: npt.NDArray[np.float64] | None
    worst: list[tuple[str, float]]


@dataclass(frozen=True)
class Stage:
    """One training and what came of it; ``info`` is stage.json."""

    name: str
    folder: Path
    info: Mapping[str, Any]
    evaluations: dict[str, Evaluation]
    rows: list[dict[str, Any]]

    @property
    def method(self) -> str:
        """Name of the method; stage.json holds it bare or inside the method's settings."""
        method = self.info.get("method")
        return str(method.get("name", "")) if isinstance(method, dict) else str(method or "")

    @property
    def prior(self) -> dict[str, float]:
        """Share of every class in the source labels; empty when unknown."""
        return _numbers(self.info.get("prior"))


@dataclass(frozen=True)
class Run:
    """One run, or one seed of it; ``info`` is run.json."""

    folder: Path
    info: Mapping[str, Any]
    labels: LabelSpace | None
    stages: list[Stage]
    problems: list[str]
    config: str = ""
    seeds: dict[str, Run] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def roles(self) -> dict[str, Stage]:
        """Stages by role, those that exist."""
        named = self.info.get("roles")
        found = {s.name: s for s in self.stages}
        pairs = named.items() if isinstance(named, dict) else ()
        return {role: found[str(name)] for role, name in pairs if role in ROLES and str(name) in found}

    @property
    def target(self) -> str | None:
        """Validation set of the three numbers: named by result.json or run.json, else the first that was scored."""
        scored = [name for stage in self.stages for name in stage.evaluations]
        for named in (self.result.get("data"), self.info.get("target")):
            if isinstance(named, str) and (named in scored or not scored):
                return named
        return scored[0] if scored else None

    @property
    def main(self) -> Stage | None:
        """The stage that the page is about: the adapted one, else the last scored on the target, else the last."""
        adapted = self.roles.get("adapted")
        scored = [s for s in self.stages if self.target in s.evaluations]
        if adapted or not self.stages:
            return adapted
        return (scored or self.stages)[-1]

    def score(self, stage: Stage) -> float:
        """mIoU of a stage on the target, NaN without one."""
        evaluation = stage.evaluations.get(self.target or "")
        return evaluation.miou if evaluation else NAN


def read_run(folder: Path) -> Run:
    """Read a run folder and the folders of its seeds; ``UserError`` when it holds no readable run.json."""
    problems: list[str] = []
    info = _object(folder / "run.json", problems)
    if not info:
        raise UserError(f"{folder} is no run folder: it has no readable run.json")
    result = _object(folder / "result.json", problems) if (folder / "result.json").exists() else {}
    return Run(
        folder=folder,
        info=info,
        labels=_labels(info, problems),
        stages=[_stage(p, problems) for p in _stage_folders(folder)],
        problems=problems,
        config=_text(folder / "config.yaml"),
        seeds=_seeds(folder, result, problems),
        result=result,
    )


def number(value: Any) -> float:
    """A finite number, else NaN."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else NAN


def _seeds(folder: Path, result: Mapping[str, Any], problems: list[str]) -> dict[str, Run]:
    found = {}
    for path in sorted(folder.glob("seed_*/run.json"), key=lambda p: (len(p.parent.name), p.parent.name)):
        name = path.parent.name.removeprefix("seed_")
        try:
            found[name] = replace(read_run(path.parent), result=result)
        except UserError as error:
            problems.append(str(error))
            continue
        problems += [f"seed {name}: {text}" for text in found[name].problems]
    return found


def _stage_folders(folder: Path) -> list[Path]:
    found = [p for p in (folder / "stages").glob("*_*") if p.is_dir()]
    return sorted(found, key=lambda p: (int(k) if (k := p.name.split("_")[0]).isdigit() else 10**9, p.name))


def _stage(folder: Path, problems: list[str]) -> Stage:
    info = _object(folder / "stage.json", problems)
    evaluations = info.get("evaluations")
    parsed = {}
    for name, data in evaluations.items() if isinstance(evaluations, dict) else ():
        if isinstance(data, dict):
            parsed[str(name)] = _evaluation(data)
    name = str(info.get("name") or folder.name.partition("_")[2])
    return Stage(name, folder, info, parsed, _rows(folder / "metrics.jsonl"))


def _evaluation(data: Mapping[str, Any]) -> Evaluation:
    images = number(data.get("num_images"))
    worst = data.get("worst")
    return Evaluation(
        miou=number(data.get("miou")),
        accuracy=number(data.get("accuracy")),
        mean_accuracy=number(data.get("mean_accuracy")),
        iou=_numbers(data.get("iou")),
        num_images=0 if math.isnan(images) else int(images),
        protocol=str(data.get("protocol") or "unknown"),
        view=str(data.get("view") or "all"),
        confusion=_matrix(data.get("confusion")),
        worst=[
            (str(w["id"]), number(w.get("miou")))
            for w in (worst if isinstance(worst, list) else ())
            if isinstance(w, dict) and "id" in w
        ],
    )


def _matrix(value: Any) -> npt.NDArray[np.float64] | None:
    """(C, C) or (C, C+1) counts, else None."""
    try:
        matrix = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if matrix.ndim != 2 or matrix.shape[1] - matrix.shape[0] not in (0, 1) or not np.isfinite(matrix).all():
        return None
    return matrix


def _numbers(value: Any) -> dict[str, float]:
    return {str(k): number(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that are whole objects with an iteration."""
    out = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and not math.isnan(number(row.get("iteration"))):
            out.append(row)
    return out


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
        return {}
    return data if isinstance(data, dict) else {}


def _labels(info: Mapping[str, Any], problems: list[str]) -> LabelSpace | None:
    try:
        return space_from_dict(info["labels"])
    except (KeyError, TypeError):
        problems.append("run.json holds no label space: pictures have no colours")
    except (LabelError, ValueError) as error:
        problems.append(f"run.json holds a label space that cannot be used: {error}")
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
