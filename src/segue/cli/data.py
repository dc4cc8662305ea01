"""``segue data``: look at data sets, and generate scenes."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.cli import regions
from segue.cli.options import pixels
from segue.errors import UserError
from segue.policies import CorruptConfig
from segue.progress import Progress

app = typer.Typer(no_args_is_help=True, help="Look at data, make smaller copies, and generate scenes.")

app.command("regions")(regions.regions)

CORRUPT = "See images under NAME:SEVERITY, as fog:3; fog:0-5 grows from the first image to the last."
Root = Annotated[Path | None, typer.Option(help="Where the data set lies: folder or archive.")]
Workers = Annotated[int | None, typer.Option(help="How many at a time; default one a core.", min=0)]
Splits = Annotated[
    list[str] | None, typer.Option("--split", help="Split to take; may be repeated. Default train, val and test.")
]
SizeOption = Annotated[str, typer.Option("--size", help="HEIGHTxWIDTH in pixels.")]
NativeLabels = Annotated[
    bool | None,
    typer.Option(
        "--native-labels/--resized-labels",
        help="Labels keep their resolution, or follow the images. Default: those of val* and test* keep it (scores are "
        "at the label's own), others follow.",
    ),
]


@app.command("scenes")
def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    num: Annotated[int, typer.Option(help="Images.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.", min=0)] = 0,
    domain: Annotated[str, typer.Option(help="game, city, random-SEED, or between two, as game-city-0.3.")] = "city",
    to: Annotated[str, typer.Option(help="Drift to this domain from the first image to the last.")] = "",
    steps: Annotated[int | None, typer.Option(help="Drift in this many equal steps, not with every image.")] = None,
    layout: Annotated[str, typer.Option(help="cityscapes, gta5, synthia or kitti360.")] = "cityscapes",
    split: Annotated[str, typer.Option(help="Split to write.")] = "train",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "128x256",
) -> None:
    """Generate street scenes with exact labels in a real data set's layout."""
    from segue.data import scenes

    shape = pixels(size) or (128, 256)
    try:
        scenes.write(
            out,
            num=num,
            seed=seed,
            domain=scenes.domain(domain),
            to=scenes.domain(to) if to else None,
            steps=steps,
            size=shape,
            layout=layout,
            split=split,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    told = f"; how far each has drifted: {out / 'drift.json'}" if to else ""
    print(f"{num} scenes in {out}{told}")


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="NAME[:SPLIT]: data set, folder, archive or python:module:Class.")],
    root: Root = None,
    labels: Annotated[str, typer.Option(help="Label space of a python: class.")] = "",
    workers: Workers = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found here too.")] = None,
) -> None:
    """Find unreadable, damaged, mismatched, out-of-range and duplicate files; exit code 2 if there are any."""
    from segue.data import audit
    from segue.data.reference import open_splits
    from segue.files import write_json

    splits = open_splits(name, root, labels or None)
    tell = _Counted(Progress("check"))
    found: list[audit.Problem] = []
    stopped = False
    try:
        for problem in audit.problems(splits, workers=_cores() if workers is None else workers, progress=tell):
            found.append(problem)
            print(problem, flush=True)
    except KeyboardInterrupt:
        stopped = True
    if json_file:
        rows = [dataclasses.asdict(p) | {"warning": p.warning} for p in found]
        write_json(json_file, {"data": name, "images": tell.done, "total": tell.total, "problems": rows})
    print(audit.summary(found, tell.done, tell.total), file=sys.stderr)
    if stopped or any(not p.warning for p in found):
        sys.exit(128 + signal.SIGINT if stopped else 2)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="NAME[:SPLIT]: data set, folder, archive or python:module:Class.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("data.html"),
    root: Root = None,
    labels: Annotated[str, typer.Option(help="Label space to map to; default the data's own.")] = "",
    corrupt: Annotated[str, typer.Option(help=CORRUPT)] = "",
) -> None:
    """Write one page of images, labels and class shares."""
    seen = _corruption(corrupt)
    from segue.data.show import show

    print(show(name, out, root=root, labels=labels or None, corrupt=seen))


def _corruption(text: str) -> CorruptConfig | None:
    if not text:
        return None
    name, _, severity = text.partition(":")
    numbers = severity.split("-") if severity else ["3"]
    try:
        return CorruptConfig.model_validate({"name": name, "severity": numbers if len(numbers) > 1 else numbers[0]})
    except ValueError as error:
        raise UserError(f"cannot read --corrupt {text!r}: write NAME:SEVERITY, 0 to 5, for example fog:3") from error


@app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="NAME[:SPLIT]: data set, folder, archive or python:module:Class.")],
    size: SizeOption,
    out: Annotated[Path, typer.Option(help="Folder to write; a copy that was interrupted goes on.")],
    split: Splits = None,
    format: Annotated[str, typer.Option(help="png (lossless) or raw (memory map).")] = "png",
    root: Root = None,
    labels: Annotated[str, typer.Option(help="Label space to map to; default the data's own.")] = "",
    native_labels: NativeLabels = None,
    workers: Workers = None,
) -> None:
    """Write a resized copy that opens like any data set: data.NAME.root=DIR."""
    from segue.data.prepare import gigabytes, prepare

    plan = prepare(
        name,
        _required(size),
        out,
        splits=split or (),
        format=format,
        root=root,
        labels=labels or None,
        native_labels=native_labels,
        workers=workers or _cores(),
    )
    left = f"{len(plan.todo)} of {len(plan.rows)} images to write"
    print(f"{left}, about {gigabytes(plan.needed_bytes())} in {out}", file=sys.stderr)
    plan.run(Progress("prepare"))
    print(f"{len(plan.rows)} images in {out}; use them with data.NAME.root={out}")


@app.command("pack")
def pack(
    names: Annotated[list[str], typer.Argument(help="Data sets, folders or archives, each NAME[:SPLIT].")],
    size: SizeOption,
    out: Annotated[Path, typer.Option(help="Archive to write: FILE.zip.")],
    split: Splits = None,
    quality: Annotated[int, typer.Option(help="JPEG quality.", min=1, max=100)] = 80,
    lossless: Annotated[bool, typer.Option("--lossless", help="PNG images instead of JPEG.")] = False,
    limit: Annotated[int | None, typer.Option(help="Images of each split, evenly spaced.", min=1)] = None,
    root: Annotated[list[str] | None, typer.Option(help="NAME=PATH: where a data set lies; may be repeated.")] = None,
    native_labels: NativeLabels = None,
    workers: Workers = None,
) -> None:
    """Write several data sets at experiment size as one archive: data.NAME.root=FILE.zip/NAME."""
    from segue.data import pack
    from segue.data.prepare import gigabytes

    options = pack.Options(_required(size), quality, lossless, native_labels, workers or _cores())
    roots = dict(_root(text) for text in root or [])
    packed = pack.pack(names, out, options, roots=roots, splits=split or (), limit=limit, progress=Progress("pack"))
    for part in packed:
        print(f"{part.images} images, {gigabytes(part.bytes)}; use them with data.NAME.root={out}/{part.folder}")
    print(f"{out}: {gigabytes(out.stat().st_size)}")


class _Counted:
    def __init__(self, inner: Progress) -> None:
        self.inner, self.done, self.total = inner, 0, 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.inner(done, total)


def _cores() -> int:
    return os.cpu_count() or 1


def _required(size: str) -> tuple[int, int]:
    shape = pixels(size)
    if shape is None:
        raise UserError("--size is empty: write HEIGHTxWIDTH in pixels, for example 512x1024")
    return shape


def _root(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"cannot read --root {text!r}: write NAME=PATH, for example camvid=/data/camvid")
    return name, Path(path)


@app.command("statistics")
def statistics(
    name: Annotated[str, typer.Argument(help="Data set name or folder, with split: NAME[:SPLIT].")],
    out: Annotated[Path | None, typer.Option(help="Write the three published statistics files here.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    labels: Annotated[str, typer.Option(help="Label space of the table; default the data's own.")] = "",
    temperature: Annotated[float, typer.Option(help="Temperature T of rare class sampling.", min=1e-6)] = 0.01,
    min_px: Annotated[int, typer.Option(help="An image shows a class with more pixels.", min=0)] = 3000,
) -> None:
    """Count the pixels of every class, once: a table, or files that other tools read."""
    from segue.config import DatasetConfig, RareClassConfig
    from segue.data import reference, sampling, statistics, statistics_files

    found = reference.open_splits(name, root, labels or None).items()
    split, dataset = next(((s, d) for s, d in found if d.labelled), next(iter(found)))
    if not dataset.labelled:
        raise UserError(f"data set {name!r} has no labels to count (splits with images: {', '.join(dict(found))})")
    config = DatasetConfig(dataset=reference.parse(name)[0], root=root)
    if out is None:
        rare = RareClassConfig(temperature=temperature, min_px=min_px)
        print(f"{name}: {split}, {len(dataset)} images")
        print("\n".join(sampling.table(statistics.class_pixels(dataset, config), dataset.space, rare)))
        return
    if labels:
        raise UserError("--out writes the data set's own train ids, as the tools that read them expect; drop --labels")
    for path in statistics_files.write(out, dataset, statistics.class_pixels(dataset, config)):
        print(path)
