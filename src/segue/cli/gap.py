"""``segue gap``: how far apart two sets of images are for a network, and images ordered by it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from segue.cli.options import Device, pixels
from segue.errors import UserError
from segue.files import write_json, write_text
from segue.progress import Progress

if TYPE_CHECKING:
    from segue.gap.between import ImageSet, Kind
    from segue.gap.fingerprint import Fingerprint
    from segue.gap.networks import Extractor

DATA = "Data set with split (NAME[:SPLIT]), folder of pictures, glob in quotes, or fingerprint (.npz, .json)."
NETWORK = "Folder of a trained model, timm:NAME or torchvision:NAME, with @imagenet (default), @random, @lite0-package."
LAYERS = "Regular expression on whole names of layers; may be repeated. Default: the encoder's blocks."
SIZE = "Resize images to HxW; default what the network was made for, of a model of ours the images' own."
SQUARE = "Published preparation: the centre square, bicubic in float; 224x224 for a model of ours."
LIMIT = "So many images of each at most, evenly spaced."
BINS = "Bins of a histogram; 1000 as published."
DISTANCE = "emd (earth mover's distance), nfd or fd (Frechet, by neuron or by layer)."
SAVE = "Also write A's fingerprint: .npz, or .json for the two files of the vDNA library."
PLAN = "Print what it would cost, and count nothing."
CLASSES = "Also by predicted class; --network is a trained model. Default layer: the last block."
SHOWN = 5

ROOT = "Where {}'s data set lies."
RootA = Annotated[Path | None, typer.Option(help=ROOT.format("A"))]
RootB = Annotated[Path | None, typer.Option(help=ROOT.format("B"))]
Network = Annotated[str, typer.Option(help=NETWORK)]
Layers = Annotated[list[str] | None, typer.Option(help=LAYERS)]
InputSize = Annotated[str, typer.Option(help=SIZE)]
Square = Annotated[bool, typer.Option("--square", help=SQUARE)]
Bins = Annotated[int, typer.Option(help=BINS, min=2)]
Limit = Annotated[int | None, typer.Option(help=LIMIT, min=1)]
BatchSize = Annotated[int, typer.Option(help="Images in one forward pass.", min=1)]
Seed = Annotated[int, typer.Option(help="Of @random weights.")]

DEFAULT_NETWORK = "timm:resnet50"
COMPARE = "compare"


class _Group(TyperGroup):
    """``segue gap A B`` is ``segue gap compare A B``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [COMPARE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Group, no_args_is_help=True, help="How far apart two sets of images are for a network.")


@app.command(COMPARE)
def compare(
    a: Annotated[str, typer.Argument(help=f"A, the reference. {DATA}")],
    b: Annotated[str, typer.Argument(help="B, as A.")],
    root_a: RootA = None,
    root_b: RootB = None,
    network: Network = DEFAULT_NETWORK,
    layers: Layers = None,
    size: InputSize = "",
    square: Square = False,
    distance: Annotated[str, typer.Option(help=DISTANCE)] = "emd",
    bins: Bins = 1000,
    limit: Limit = None,
    json: Annotated[Path | None, typer.Option(help="Also write the numbers.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also write a page with charts (.html).")] = None,
    classes: Annotated[bool, typer.Option("--classes", help=CLASSES)] = False,
    class_bins: Annotated[int, typer.Option(help="Bins of a class's histograms.", min=2)] = 64,
    plan: Annotated[bool, typer.Option("--plan", help=PLAN)] = False,
    save: Annotated[Path | None, typer.Option(help=SAVE)] = None,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """The gap from A to B; the word compare may be left out."""
    kind = _kind(distance)
    shape = pixels(size)
    if save is not None and save.suffix not in (".npz", ".json"):  # told before the work, not after it
        raise UserError(f"cannot store a fingerprint as {save}: name a .npz, or a .json for the vDNA library")
    first, second = (_opened(x, r, shape, limit, batch_size) for x, r in ((a, root_a), (b, root_b)))
    if classes:
        first, second = _images(first), _images(second)
    from segue.gap import show
    from segue.gap.between import ImageSet, distance_of
    from segue.gap.classes import class_gap
    from segue.gap.files import keep
    from segue.gap.plan import planned

    asked = isinstance(first, ImageSet) or isinstance(second, ImageSet) or classes or plan
    extractor = _network(network, layers, shape, square, seed, device) if asked else None
    by_class = _for_classes(extractor, layers) if extractor and classes else None
    if plan and extractor:
        _print(planned(extractor, _images(first), _images(second), kind, bins, by_class, class_bins))
        return
    gap = distance_of(extractor, first, second, kind, bins=bins)
    found = class_gap(by_class, _images(first), _images(second), class_bins) if by_class else None
    facts = show.facts(gap, a, b, shape or (extractor.size if extractor else None), found)
    _print(show.lines(facts))
    if json is not None:
        write_json(json, facts)
    if picture is not None:
        write_text(picture, show.page(facts))
    if save is not None:
        keep(gap.a, save)


@app.command()
def rank(
    a: Annotated[str, typer.Argument(help=f"A, the reference. {DATA}")],
    b: Annotated[str, typer.Argument(help="B, the images to order, as A but no fingerprint.")],
    out: Annotated[Path, typer.Option(help="Ranking file (.json), written at the end.")],
    root_a: RootA = None,
    root_b: RootB = None,
    network: Network = DEFAULT_NETWORK,
    layers: Layers = None,
    size: InputSize = "",
    square: Square = False,
    bins: Bins = 1000,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Order the images of B by their distance to A, nearest first."""
    shape = pixels(size)
    first = _opened(a, root_a, shape, limit, batch_size)
    images = _images(_opened(b, root_b, shape, limit, batch_size))
    from segue.gap.between import ImageSet, fingerprint_of
    from segue.gap.fingerprint import Histogram
    from segue.gap.rank import rank_images

    extractor = _network(network, layers, shape, square, seed, device)
    reference = fingerprint_of(extractor, first, bins=bins) if isinstance(first, ImageSet) else first
    if not isinstance(reference, Histogram):
        raise UserError(f"{a} is a normal form, which a single image has none of: rank by a histogram")
    ranked = rank_images(extractor, reference, images)
    ranked.write(out)
    records = ranked.records()
    print(f"{len(records)} images in {out}, by column gap: {records[0]['gap']:.4g} to {records[-1]['gap']:.4g} bins")
    for title, rows in (("nearest", records[:SHOWN]), ("farthest", records[::-1][:SHOWN])):
        _print([title, *(f"  {row['gap']:9.4g}  {row['image']}" for row in rows)])


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _kind(text: str) -> Kind:
    kinds: dict[str, Kind] = {"emd": "emd", "nfd": "nfd", "fd": "fd"}
    if text not in kinds:
        raise UserError(f"unknown distance {text!r} (known: {', '.join(kinds)})")
    return kinds[text]


def _opened(
    text: str, root: Path | None, size: tuple[int, int] | None, limit: int | None, batch_size: int
) -> ImageSet | Fingerprint:
    from segue.gap.between import ImageSet
    from segue.gap.files import opened
    from segue.gap.reading import open_images

    if Path(text).suffix in (".npz", ".json") and not Path(text).is_dir():
        return opened(Path(text))
    return ImageSet(open_images(text, root), size, batch_size, limit, partial(Progress, f"looking at {text}"))


def _for_classes(extractor: Extractor, layers: list[str] | None) -> Extractor:
    from segue.gap.classes import require_model

    require_model(extractor)
    return extractor if layers else extractor.only(extractor.probe.names[-1:])


def _images(given: ImageSet | Fingerprint) -> ImageSet:
    from segue.gap.between import ImageSet

    if not isinstance(given, ImageSet):
        raise UserError("a stored fingerprint has no images, which this needs: name a data set or a folder")
    return given


def _network(
    name: str, layers: list[str] | None, size: tuple[int, int] | None, square: bool, seed: int, device: str
) -> Extractor:
    from segue.gap.networks import open_network
    from segue.hardware import launch

    opened = open_network(name, layers=layers or (), device=launch(device).device, seed=seed, square=square)
    return opened if size is None else opened.at(size)
