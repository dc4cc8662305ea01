"""Predicts files into files: images one by one into PNGs or one film, videos frame by frame.

Each PNG appears whole or not at all, and what was written stays when the work stops; memory holds a few pictures,
however long the input. An image that cannot be used is named in the end, after all others.

Knobs that matter: ``format``; in :class:`Look` ``side_by_side`` (networks next to each other instead of one picture)
and ``alpha`` (weight of the colours in ``overlay``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from segue.data.errors import DataError
from segue.data.images import read_rgb, write_image
from segue.errors import UserError
from segue.files import write_json
from segue.labels import U8, LabelSpace, load_space, nearest
from segue.models.base import SegModel
from segue.predict import draw, inputs
from segue.predict.film import FILMS, film, open_video
from segue.predict.inputs import Job
from segue.predict.network import Network
from segue.predict.truth import Truth
from segue.scoring.reading import ahead
from segue.scoring.result import Tally

Format = Literal["trainid", "labelid", "cityscapes", "color", "overlay"]
FORMATS: tuple[str, ...] = get_args(Format)
DRAWN = ("color", "overlay")
SCORES = "scores.json"
SLIDES_FPS = 2.0  # of a film made of separate images

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Look:
    """How drawn predictions look.

    ``side_by_side``: the networks next to each other, a single one beside its input. ``alpha``: weight of the colours
    in ``overlay``. ``legend``: class names below. ``film``: ``mp4`` or ``gif`` instead of PNGs (videos: mp4 anyway).
    ``fps``: frames a second, 0 for those of the video, or 2.
    """

    side_by_side: bool = False
    alpha: float = 0.5
    legend: bool = False
    film: str = ""
    fps: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Files written, how many were there already, and with ground truth the scores of every network (``scores.json``).

    An entry of ``scores`` holds ``title``, ``per_image`` (``id``, ``miou``), and what an evaluation holds.
    """

    written: list[Path] = field(default_factory=list)
    skipped: int = 0
    scores: list[dict[str, Any]] = field(default_factory=list)


class Incomplete(UserError):
    """Some images cannot be predicted; ``outcome`` is what became of the others."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True)
class _Item:
    job: Job
    picture: U8 | None = None
    label: U8 | None = None
    fault: str = ""


def predict_folder(
    networks: SegModel | Sequence[Network],
    labels: LabelSpace,
    source: str | Path,
    out: Path,
    *,
    format: str = "color",
    look: Look | None = None,
    ground_truth: Path | None = None,
    encoding: str = "",
    view: str = "all",
    skip_existing: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Predict an image, every image below a folder or of a glob, or a video, into ``out`` with the same relative names.

    ``format``: ``trainid``, ``labelid`` (numbers of the label space's files), ``cityscapes`` (these under official
    names), ``color`` or ``overlay``. ``ground_truth``: labels (see :class:`segue.predict.truth.Truth`) that
    are drawn beside the predictions and scored in ``view``. ``UserError`` for settings that do not go together, no
    image, two that need the same name; :class:`Incomplete`, once all others are predicted, for those that cannot be.
    """
    own = (Network((networks,)),) if isinstance(networks, SegModel) else tuple(networks)
    work = _Work(own, labels, format, look or Look(), ground_truth, encoding, view, skip_existing, progress)
    work.check()
    if inputs.is_video(source):
        return work.video(Path(source), out)
    return work.images(source, out)


@dataclass(frozen=True)
class _Work:
    networks: tuple[Network, ...]
    labels: LabelSpace
    format: str
    look: Look
    ground_truth: Path | None
    encoding: str
    view: str
    skip_existing: bool
    progress: Progress | None

    def check(self) -> None:
        look, labels = self.look, self.labels
        if self.format not in FORMATS:
            raise UserError(f"unknown format {self.format!r}{nearest(self.format, FORMATS)}")
        if look.film and look.film not in FILMS:
            raise UserError(f"unknown film {look.film!r}{nearest(look.film, FILMS)}")
        if self.format not in DRAWN and (look.side_by_side or look.film or look.legend):
            raise UserError(
                f"the format {self.format!r} is numbers, not a picture: side by side, films and legends "
                f"need color or overlay"
            )
        if not 0 <= look.alpha <= 1 or look.fps < 0:
            raise UserError(f"alpha lies between 0 and 1 and fps is not negative: {look.alpha:g}, {look.fps:g}")
        if self.skip_existing and self.ground_truth is not None:
            raise UserError("--skip-existing leaves images out, so it does not go with the scores of --ground-truth")
        for model in (model for network in self.networks for model in network.models):
            if model.num_classes != len(labels):
                raise UserError(
                    f"the model has {model.num_classes} classes, label space {labels.name!r} has {len(labels)}"
                )
        official = load_space("cityscapes19")
        if self.format == "cityscapes" and not {*zip(labels.ids, labels.classes, strict=True)} <= {
            *zip(official.ids, official.classes, strict=True)
        }:
            raise UserError(f"label space {labels.name!r} has other ids than Cityscapes: use the format labelid")

    def images(self, source: str | Path, out: Path) -> Outcome:
        found = inputs.find_images(source, out)
        jobs = inputs.jobs(found, out, official=self.format == "cityscapes")
        truth = None
        if self.ground_truth is not None:
            truth = Truth(self.ground_truth, list(found), self.labels, self.encoding)
        if self.look.film:
            path = Path(source).resolve()
            name = path.name if path.is_dir() else path.stem if path.is_file() else "film"
            target = out / f"{name}.{self.look.film}"
            if self.skip_existing and target.exists():
                return Outcome(skipped=1)
            with film(target, self.look.fps or SLIDES_FPS) as add:
                return self._predict(jobs, truth, out, lambda _, page: add(page), [target])
        left = [job for job in jobs if not (self.skip_existing and job.target.exists())]
        return self._predict(left, truth, out, write_image, [], len(jobs) - len(left))

    def _predict(
        self,
        jobs: Sequence[Job],
        truth: Truth | None,
        out: Path,
        write: Callable[[Path, U8], object],
        films: list[Path],
        skipped: int = 0,
    ) -> Outcome:
        tallies = [Tally(self.labels, (self.view,)) for _ in self.networks] if truth is not None else []
        written: list[Path] = []
        refused: list[str] = []
        for done, item in enumerate(ahead(lambda i: _read(jobs[i], truth), range(len(jobs)))):
            self._tell(done, len(jobs))
            try:
                if item.picture is None:
                    raise DataError(item.fault)
                page = self._page(item.picture, item.label, tallies, item.job.name)
            except UserError as error:
                refused.append(str(error) if isinstance(error, DataError) else f"{item.job.image}: {error}")
                continue
            write(item.job.target, page)
            written += films or [item.job.target]
        self._tell(len(jobs), len(jobs))
        outcome = Outcome(list(dict.fromkeys(written)), skipped, self._scores(tallies, truth, out))
        if refused:
            told = f"{len(refused)} of {len(jobs)} images cannot be predicted; the other predictions are in {out}"
            raise Incomplete("\n".join([told, *refused]) if len(jobs) > 1 else refused[0], outcome)
        return outcome

    def video(self, source: Path, out: Path) -> Outcome:
        if self.ground_truth is not None:
            raise UserError("--ground-truth goes with images: labels have no names by which frames of a video match")
        if self.format == "cityscapes":
            raise UserError("the frames of a video have no Cityscapes names: use the format labelid")
        clip = open_video(source)
        target = out / f"{source.stem}.{self.look.film or 'mp4'}" if self.format in DRAWN else None
        if target is not None and target.resolve() == source.resolve():
            raise UserError(f"the film would replace {source} itself; choose another output folder")
        if target is not None and self.skip_existing and target.exists():
            return Outcome(skipped=1)
        written: list[Path] = [] if target is None else [target]
        skipped = done = 0
        with film(target, self.look.fps or clip.fps) if target is not None else nullcontext() as add:
            for done, picture in enumerate(clip.frames(), 1):
                self._tell(done - 1, max(clip.declared, done))
                path = out / source.stem / f"{done:06d}.png"
                if add is not None:
                    add(self._page(picture, None, [], ""))
                elif self.skip_existing and path.exists():
                    skipped += 1
                else:
                    write_image(path, self._page(picture, None, [], ""))
                    written.append(path)
        self._tell(done, done)
        return Outcome(written, skipped)

    def _page(self, picture: U8, label: U8 | None, tallies: Sequence[Tally], name: str) -> U8:
        answers = [network.predict(picture) for network in self.networks]
        for tally, ids in zip(tallies, answers, strict=bool(tallies)):
            if label is not None:
                tally.add(name, label, ids)
        if self.format not in DRAWN:
            return self._render(answers[0], picture)
        panels = [(n.title, self._render(a, picture)) for n, a in zip(self.networks, answers, strict=True)]
        if self.look.side_by_side and len(panels) == 1:
            panels.insert(0, ("input", picture))
        if tallies and label is not None:
            panels.append(("ground truth", self._render(label, picture)))
        elif tallies:
            panels.append(("no ground truth", np.zeros_like(picture)))
        page = draw.strip(panels) if len(panels) > 1 else panels[0][1]
        page = draw.with_legend(page, self.labels) if self.look.legend else page
        return draw.even(page) if len(panels) > 1 else page

    def _render(self, ids: U8, picture: U8) -> U8:
        return draw.render(ids, picture, self.labels, self.format, self.look.alpha)

    def _scores(self, tallies: Sequence[Tally], truth: Truth | None, out: Path) -> list[dict[str, Any]]:
        if truth is None or not tallies or not tallies[0].total.counts.any():
            return []
        scores = [
            {"title": network.title, "per_image": _per_image(tally)} | tally.result(len(truth.without)).to_dict()
            for network, tally in zip(self.networks, tallies, strict=True)
        ]
        write_json(out / SCORES, {"ground_truth": str(truth.folder), "networks": scores})
        return scores

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def _read(job: Job, truth: Truth | None) -> _Item:
    try:
        picture = read_rgb(job.image)
        label = None if truth is None else truth.read(job.name)
    except UserError as error:
        return _Item(job, fault=str(error))
    if label is not None and label.shape != picture.shape[:2]:
        (h, w), (lh, lw) = picture.shape[:2], label.shape
        return _Item(job, fault=f"image {job.image} is {w}x{h} pixels, but its label is {lw}x{lh}: they must match")
    return _Item(job, picture, label)


def _per_image(tally: Tally) -> list[dict[str, Any]]:
    images = tally.result().per_image
    return [{"id": name, "miou": float(miou)} for name, miou in zip(images.ids, images.scores(), strict=True)]
