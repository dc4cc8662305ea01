"""What an input means (image, folder, glob or video), and which file each prediction goes to."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from segue.errors import UserError
from segue.scoring.predictions import CITYSCAPES

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_MAGIC = "*?["


@dataclass(frozen=True)
class Job:
    """An image, its path below the input without suffix, and the file of its prediction."""

    image: Path
    name: str
    target: Path


def is_video(source: str | Path) -> bool:
    """Whether the input is one video file, by its suffix."""
    return Path(source).suffix.lower() in VIDEOS and Path(source).is_file()


def find_images(source: str | Path, out: Path | None = None) -> dict[str, Path]:
    """Images of a file, a folder with all below it, or a glob, by their path below it without suffix.

    ``out`` is left out where it lies inside. ``UserError`` when there is nothing, or two share a path but for the
    suffix.
    """
    root, found = _listed(source)
    if out is not None:
        found = _without(found, root, source, out.resolve())
    if not found:
        raise UserError(
            f"no image below {source} (looked for {', '.join(IMAGES)}; an output folder inside it is left out)"
        )
    names: dict[str, Path] = {}
    for path in found:
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in names:
            raise UserError(f"{names[name]} and {path} would both be written to {name}.png; rename one")
        names[name] = path
    return names


def jobs(images: dict[str, Path], out: Path, *, official: bool) -> list[Job]:
    """Where each prediction goes: a PNG under ``out`` with the same path below it.

    ``official``: names are cut to ``CITY_SEQUENCE_FRAME.png``; the server takes what begins so, in any sub-folder
    (cityscapesScripts, evalPixelLevelSemanticLabeling.getPrediction). ``UserError`` for names without these fields, a
    name that two images need, and a prediction that would replace its image.
    """
    found = [
        Job(path, name, out / f"{_official(name, path) if official else name}.png") for name, path in images.items()
    ]
    taken: dict[str, Path] = {}
    for job in found:
        # the server looks in all sub-folders, so an official name must be free in every one
        key = job.target.name if official else str(job.target)
        if key in taken:
            raise UserError(f"{taken[key]} and {job.image} would both be written to {key}; rename one")
        if job.target.resolve() == job.image.resolve():
            raise UserError(f"the prediction would replace {job.image} itself; choose another output folder")
        taken[key] = job.image
    return found


def _official(name: str, path: Path) -> str:
    folder, slash, stem = name.rpartition("/")
    match = CITYSCAPES.fullmatch(stem)
    if match is None:
        raise UserError(
            f"{path} has no Cityscapes name (CITY_SEQUENCE_FRAME_leftImg8bit.png), which the format 'cityscapes' "
            f"needs; 'labelid' writes the same ids under any name"
        )
    return folder + slash + match[1]


def _listed(source: str | Path) -> tuple[Path, list[Path]]:
    path = Path(source)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, [p for p in sorted(path.rglob("*")) if _is_image(p)]
    if not any(c in str(source) for c in _MAGIC):
        raise UserError(f"no image, folder or video {source}")
    fixed: list[str] = []
    for part in path.parts:
        if any(c in part for c in _MAGIC):
            break
        fixed.append(part)
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))  # noqa: PTH207 (a pattern may be absolute)
    return Path(*fixed), [p for p in found if _is_image(p) and p.is_file()]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def _without(found: list[Path], root: Path, source: str | Path, out: Path) -> list[Path]:
    if Path(source).is_dir() and out == root.resolve():
        raise UserError(f"{source} is the input folder too; choose another output folder")
    if root.resolve() not in out.parents:
        return found
    # An output folder below the input would feed an earlier run's predictions back in.
    return [p for p in found if out not in p.resolve().parents]
