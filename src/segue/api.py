"""Segue from Python: run a recipe, load a model, predict, score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from segue import recipes
from segue.checkpoint import PREFIX, all_of, find_model, load_model
from segue.config import DatasetConfig
from segue.data import reference
from segue.data.dataset import Dataset, open_dataset
from segue.errors import UserError
from segue.files import read_json
from segue.hardware import launch
from segue.jobs.run import RunResult
from segue.jobs.run import run as run_recipe
from segue.labels import LabelSpace, load_space
from segue.models.base import SegModel
from segue.predict import Look, Network, Outcome, predict_folder
from segue.predict import check as checking
from segue.predict.inputs import find_images
from segue.scoring import predictions as predicted
from segue.scoring import score
from segue.scoring.matrix import LENIENT
from segue.scoring.protocols import NATIVE, Protocol, Size, Window, protocol_of
from segue.scoring.result import Result
from segue.tasks import load_task

CHOSEN = "classes"  # the view of the classes that a call names


class Predictor:
    """A trained model ready to predict; ``model``, ``labels`` and ``info`` (model.json) are open to use."""

    def __init__(self, model: SegModel, labels: LabelSpace, info: Mapping[str, Any]) -> None:
        self.model, self.labels, self.info = model, labels, info

    def predict(self, image: npt.NDArray[np.uint8] | str | Path) -> npt.NDArray[np.uint8]:
        """Train ids (H, W) uint8 of an RGB image (H, W, 3) uint8, or of an image file."""
        return Network((self.model,)).predict(image)

    def predict_folder(self, source: str | Path, out: str | Path, format: str = "color") -> list[Path]:
        """Predict an image or every image of a folder into PNGs; returns the files written."""
        return predict_files(self, source, out, format=format).written


Models: TypeAlias = str | Path | Predictor | Sequence[str | Path | Predictor]


def load(path: str | Path, device: str = "auto", checkpoint: str = "last") -> Predictor:
    """Load a run folder, stage, checkpoint or model.safetensors; nothing else is needed.

    ``checkpoint``: ``last``, ``best`` (by ``train.best``) or an iteration; ``info["chosen"]`` says which it was.
    """
    folder, chosen = _checkpoint(Path(path), checkpoint)
    model, labels, info = load_model(folder)
    return Predictor(model.to(launch(device).device), labels, {**info, **chosen})


def run(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
    seeds: Sequence[int] = (),
) -> RunResult:
    """Run a recipe (file, shipped name, or containers) into ``out`` (default ``runs/<name>/<time>``)."""
    given = recipes.load(recipe, overrides)
    return run_recipe(given, Path(out) if out is not None else None, resume=resume, device=device, seeds=seeds)


def evaluate(
    model: Models = (),
    data: str = "",
    *,
    predictions: str | Path | None = None,
    root: Path | None = None,
    size: Size | None = None,
    views: Sequence[str] = (),
    checkpoint: str = "last",
    classes: Sequence[str] = (),
    protocol: str = "native",
    flip: bool = False,
    scales: Sequence[float] = (),
    slide: Size | None = None,
    stride: Size | None = None,
    boundary: bool = False,
    calibration: bool = False,
    temperature_data: str | None = None,
    temperature_root: Path | None = None,
    tasks: str | Path | Mapping[str, Any] | None = None,
    labels: str | None = None,
    encoding: str | None = None,
    device: str = "auto",
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Score models, or the PNGs below ``predictions``, on ``NAME[:SPLIT]`` (split ``val`` by default).

    Returns plain containers, scores as shares 0..1. Several models answer by their averaged probabilities, and
    ``members`` holds the scores of each. ``views`` of the label space: the first is the headline (default: all
    classes, or ``classes``); ``NAME-lenient`` ignores pixels of other classes. ``classes``: names, or the name of a
    view, among which the networks must choose. ``protocol``: see ``segue.scoring.protocols``; varied by ``flip``,
    ``scales``, ``slide`` windows every ``stride`` (default: half) and ``size`` of the network's input.
    ``temperature_data``: labelled data that a temperature is fitted on. ``tasks``: a task (:mod:`segue.tasks`), of
    whose steps the model knows the classes, of all or the first few: scores of each group of classes and of the unions,
    among which the networks must choose, from the same pass. ``labels`` (a label space's name) and
    ``encoding`` are of ``predictions``, which no setting of a model goes with. ``UserError`` for what cannot be.
    """
    models = [model] if isinstance(model, (str, Path, Predictor)) else list(model)
    calibrated = calibration or temperature_data is not None
    if predictions is not None:
        if any((models, classes, tasks, flip, scales, slide, stride, size, calibrated)) or protocol != NATIVE.name:
            raise UserError("predictions are scored as they are: no model and no setting of one goes with them")
        dataset = _open(data, root, None, load_space(labels) if labels else None)
        found = predicted.score_predictions(
            Path(predictions), dataset, views or ("all",), encoding=encoding, boundary=boundary, progress=progress
        )
        return {"predictions": str(predictions), "data": data, **found.to_dict()}
    rule = _rule(protocol, size, scales, flip, slide, stride)
    predictors = [m if isinstance(m, Predictor) else load(m, device, checkpoint) for m in models]
    space, names = _classes(predictors, classes)
    measure = score.Measure(
        tuple(views) or _default_view(rule, names), rule, names, boundary, calibrated, tasks=_tasks(tasks, space)
    )
    networks, seen = [p.model for p in predictors], size if rule.size is None else None
    dataset = _open(data, root, seen, space)
    if temperature_data is not None:
        source = _open(temperature_data, temperature_root, seen, space)
        measure = replace(measure, temperature=score.fit_temperature(networks, source, space, measure))
    first, *members = score.measure_models(networks, dataset, space, measure, progress=progress)
    return _told(predictors, members) | {"data": data, "rule": asdict(rule), **first.to_dict()}


def predict_files(
    model: Models,
    source: str | Path,
    out: str | Path,
    *,
    format: str = "color",
    classes: Sequence[str] = (),
    ground_truth: str | Path | None = None,
    encoding: str = "",
    look: Look | None = None,
    flip: bool = False,
    scales: Sequence[float] = (),
    slide: Size | None = None,
    stride: Size | None = None,
    size: Size | None = None,
    skip_existing: bool = False,
    checkpoint: str = "last",
    device: str = "auto",
    progress: Callable[[int, int], object] | None = None,
) -> Outcome:
    """Predict an image, a folder with all below it, a glob or a video into files below ``out``.

    Several models answer by their averaged probabilities, with ``look.side_by_side`` each by itself. ``format``,
    ``look``, ``ground_truth`` and ``encoding``: see :func:`segue.predict.predict_folder`. ``classes`` and how the
    networks are asked: as for :func:`evaluate`, under the protocol ``native``. ``UserError`` for what cannot be;
    its kind :class:`segue.predict.Incomplete` after all others, for images that cannot be read or predicted.
    """
    predictors = _loaded(model, device, checkpoint)
    if not predictors:
        raise UserError("say which model is to predict")
    look = look or Look()
    rule = _rule(NATIVE.name, None, scales, flip, slide, stride)
    space, names = _classes(predictors, classes)
    kept = tuple(space.index(name) for name in names) or None
    networks = tuple(p.model for p in predictors)
    if look.side_by_side:
        titles = _titles(predictors)
        asked = [Network((n,), title, rule, kept, size) for n, title in zip(networks, titles, strict=True)]
    else:
        asked = [Network(networks, "prediction", rule, kept, size)]
    return predict_folder(
        asked,
        space,
        source,
        Path(out),
        format=format,
        look=look,
        ground_truth=None if ground_truth is None else Path(ground_truth),
        encoding=encoding,
        view=CHOSEN if names else "all",
        skip_existing=skip_existing,
        progress=progress,
    )


def check_predictions(
    folder: str | Path,
    source: str | Path | None = None,
    *,
    data: str = "",
    root: Path | None = None,
    labels: str = "",
    encoding: str = "labelid",
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Check that ``folder`` holds what a server expects for ``source`` or ``NAME:SPLIT``; the number of files.

    Every file is there and no other, of its image's size, one 8-bit channel, ids of the label space ``labels``
    (default: the data's own, of ``source`` cityscapes19). ``encoding``: ``labelid`` or ``trainid``. ``UserError``
    names every fault.
    """
    if (source is None) == (not data):
        raise UserError("say which images the predictions are of: an input (image, folder or glob), or data NAME:SPLIT")
    if source is not None:
        expected: Dataset = checking.Pictures(find_images(source, Path(folder)), load_space(labels or "cityscapes19"))
    else:
        expected = _open(data, root, None, None)
    space = load_space(labels) if labels else expected.space
    faults = checking.check(Path(folder), expected, space, encoding=encoding, progress=progress)
    checking.require(faults, Path(folder))
    return len(expected)


def _loaded(model: Models, device: str, checkpoint: str) -> list[Predictor]:
    models = [model] if isinstance(model, (str, Path, Predictor)) else list(model)
    return [m if isinstance(m, Predictor) else load(m, device, checkpoint) for m in models]


def _titles(predictors: Sequence[Predictor]) -> list[str]:
    """The shortest of stage, run and stage, those with the iteration, that tells all models apart."""
    keys = ("stage",), ("run", "stage"), ("run", "stage", "iteration")
    for parts in keys:
        titles = [" ".join(str(p.info.get(key, "model")) for key in parts) for p in predictors]
        if len(set(titles)) == len(titles):
            return titles
    return [f"{title} ({number})" for number, title in enumerate(titles, 1)]


def _open(data: str, root: Path | None, size: Size | None, space: LabelSpace | None) -> Dataset:
    name, split = reference.parse(data)
    if not name:
        raise UserError("say which data to score on: NAME[:SPLIT]")
    return open_dataset(name, DatasetConfig(root=root, size=size), split or "val", space)


def _rule(
    protocol: str, size: Size | None, scales: Sequence[float], flip: bool, slide: Size | None, stride: Size | None
) -> Protocol:
    rule = protocol_of(protocol)
    if stride is not None and slide is None:
        raise UserError("a stride needs the size of the windows too (slide)")
    if any(not 0 < s <= 8 for s in scales):
        raise UserError(f"scales lie between 0 and 8, not {', '.join(f'{s:g}' for s in scales)}")
    window = None
    if slide is not None:
        step = stride or (max(1, slide[0] // 2), max(1, slide[1] // 2))
        if step[0] > slide[0] or step[1] > slide[1]:
            raise UserError(f"a stride of {step[0]}x{step[1]} leaves gaps between windows of {slide[0]}x{slide[1]}")
        window = Window(slide, step)
    # native is at any size of the input; the data set resizes, as while training
    return rule.varied(size=None if rule.name == NATIVE.name else size, scales=scales, flip=flip, window=window)


def _classes(predictors: Sequence[Predictor], classes: Sequence[str]) -> tuple[LabelSpace, tuple[str, ...]]:
    """The models' common label space, with the chosen classes as a view of it."""
    if not predictors:
        raise UserError("say what to score: a model, several, or a folder of predictions")
    space = predictors[0].labels
    for other in predictors[1:]:
        if other.labels.classes != space.classes:
            differ = sorted(set(other.labels.classes) ^ set(space.classes))
            raise UserError(
                f"models of different classes cannot be averaged: {space.name!r} and {other.labels.name!r} differ in "
                f"{', '.join(differ[:6]) or 'the order of classes'}"
            )
    names = tuple(classes)
    if len(names) == 1 and names[0] in space.views:
        names = tuple(space.views[names[0]])
    names = tuple(space.classes[t] for t in sorted({space.index(name) for name in names}))
    return (replace(space, views={**space.views, CHOSEN: names}) if names else space), names


def _tasks(given: str | Path | Mapping[str, Any] | None, space: LabelSpace) -> dict[str, tuple[str, ...]]:
    """Classes of each group and union of a task, up to the last step whose classes the models know."""
    if given is None:
        return {}
    task = load_task(given)
    known = [step for step in range(1, task.steps + 1) if set(task.space(step).classes) <= set(space.classes)]
    if not known:
        missing = [name for name in task.space(1).classes if name not in space.classes]
        raise UserError(f"task {task.name!r} does not fit: the model does not know {', '.join(missing)}")
    if task.domains:
        raise UserError(f"task {task.name!r} has the same classes in every step: there is nothing to score by itself")
    return task.tasks(known[-1])


def _default_view(rule: Protocol, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ("all",)
    return (CHOSEN + LENIENT if rule.lenient else CHOSEN,)


def _told(predictors: Sequence[Predictor], members: Sequence[Result]) -> dict[str, Any]:
    """Which models the scores are of; with several, the scores of each."""
    known = [{key: p.info.get(key) for key in ("run", "stage", "iteration", "chosen")} for p in predictors]
    if not members:
        return {"model": known[0]}
    return {"members": [{"model": m, **r.to_dict()} for m, r in zip(known, members, strict=True)]}


def _checkpoint(path: Path, which: str) -> tuple[Path, dict[str, Any]]:
    """The model folder that ``which`` means and what to tell of the choice."""
    newest = find_model(path)
    if which == "last":
        return newest, {}
    root = newest.parent
    if newest.resolve() in (path.resolve(), path.resolve().parent) or not newest.name.startswith(PREFIX):
        raise UserError(f"{path} is one model: give its run or stage folder to choose {which!r} among its checkpoints")
    if which == "best":
        if not (root / "best.json").is_file():
            raise UserError(f"{root} has no best checkpoint: the recipe did not set train.best")
        best = read_json(root / "best.json")
        return root / f"{PREFIX}{best['iteration']:08d}", {"chosen": f"oracle (best on {best['data']}, by its labels)"}
    known = {int(p.name.removeprefix(PREFIX)): p for p in all_of(root)}
    if not which.isdecimal() or int(which) not in known:
        raise UserError(f"no checkpoint {which!r} in {root} (known: last, best, {', '.join(map(str, known))})")
    return known[int(which)], {"chosen": f"iteration {int(which)}"}
