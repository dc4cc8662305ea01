"""``segue pseudo-label``: models label the images of a data set for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli.options import Device, percent, pixels
from segue.config import DatasetConfig
from segue.errors import UserError
from segue.progress import Progress
from segue.pseudo_labelling import PseudoLabelConfig
from segue.settings import check

MODEL = "Run, stage or checkpoint folder, or model.safetensors; several answer by their mean probability."
QUANTILE = "Share of each class's pixels, the least sure ones, that stays without a label; 0: none."
QUANTILES = "The same for one class, as CLASS=SHARE; may be repeated."
CAP = "The quantile asks no class for more confidence than this."
ENTROPY = "No label for a pixel of higher entropy, in nats. Default: off."
CONFIDENCE = "No label for a pixel whose highest probability is lower. Default: off."
IMAGE_CLASSES = "No label in an image with fewer predicted classes. Default: off."
IMAGE_ENTROPY = "No label in an image of higher mean entropy, in nats. Default: off."
IMAGE_CONFIDENCE = "No label in an image whose mean highest probability is lower. Default: off."
TRUST = "Weigh labels by how many mirrored and scaled views of their image agree."
TRUST_SOURCE = (
    "Labelled data set, NAME[:SPLIT], default val: how often labels are right there is their weight (sets --trust)."
)
SIZE = "Resize images to HxW, as data.NAME.size of the recipe that trains on the labels; they get this size."
BATCH = "Images in one forward pass."
FIELDS = PseudoLabelConfig.model_fields


def pseudo_label(
    model: Annotated[list[str], typer.Option(help=MODEL)],
    data: Annotated[str, typer.Option(help="Data set or folder, with split: NAME[:SPLIT], default train.")],
    out: Annotated[Path, typer.Option(help="Folder for the labels; one that was interrupted goes on.")],
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    quantile: Annotated[float, typer.Option(help=QUANTILE)] = FIELDS["quantile"].default,
    class_quantile: Annotated[list[str] | None, typer.Option(help=QUANTILES)] = None,
    cap: Annotated[float, typer.Option(help=CAP)] = FIELDS["cap"].default,
    entropy_max: Annotated[float | None, typer.Option(help=ENTROPY)] = None,
    confidence_min: Annotated[float | None, typer.Option(help=CONFIDENCE)] = None,
    image_class_count_min: Annotated[int | None, typer.Option(help=IMAGE_CLASSES)] = None,
    image_entropy_max: Annotated[float | None, typer.Option(help=IMAGE_ENTROPY)] = None,
    image_confidence_min: Annotated[float | None, typer.Option(help=IMAGE_CONFIDENCE)] = None,
    trust: Annotated[bool, typer.Option("--trust", help=TRUST)] = False,
    trust_source: Annotated[str | None, typer.Option(help=TRUST_SOURCE)] = None,
    trust_root: Annotated[Path | None, typer.Option(help="Where that data set lies.")] = None,
    size: Annotated[str, typer.Option(help=SIZE)] = "",
    checkpoint: Annotated[str, typer.Option(help="last, best or an iteration.")] = "last",
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help=BATCH, min=1)] = 1,
) -> None:
    """Label images with models, where they are sure enough, to train on."""
    image = {
        "class_count_min": image_class_count_min,
        "entropy_max": image_entropy_max,
        "confidence_min": image_confidence_min,
    }
    settings = {
        "models": tuple(model),
        "quantile": quantile,
        "quantiles": dict(_share(text) for text in class_quantile or ()),
        "cap": cap,
        "entropy_max": entropy_max,
        "confidence_min": confidence_min,
        "image": image,
        "trust": {"source": trust_source} if trust or trust_source else None,
    }
    shape = pixels(size)
    index = _made(settings, data, DatasetConfig(root=root, size=shape), trust_root, out, checkpoint, device, batch_size)
    for line in _lines(index):
        print(line)
    print(f"{len(index['images'])} labels in {out}; train on them with data.NAME.labels={out}")


def _made(
    settings: dict[str, Any],
    data: str,
    given: DatasetConfig,
    trust_root: Path | None,
    out: Path,
    checkpoint: str,
    device: str,
    batch_size: int,
) -> dict[str, Any]:
    try:
        config = check(PseudoLabelConfig, settings, "")
    except ValueError as error:
        raise UserError(str(error)) from error
    from segue import api
    from segue.data.dataset import open_dataset
    from segue.data.reference import parse
    from segue.pseudo_labels import generate

    predictors = [api.load(path, device, checkpoint) for path in config.models]
    space = predictors[0].labels
    for path, other in zip(config.models, predictors, strict=True):
        if other.labels.classes != space.classes:
            raise UserError(f"{config.models[0]} and {path} know different classes: give models of the same ones")
    name, split = parse(data)
    source = None
    if config.trust is not None and config.trust.source is not None:
        of, part = parse(config.trust.source)
        source = open_dataset(of, given.model_copy(update={"root": trust_root}), part or "val", space)
    return generate(
        [p.model for p in predictors],
        open_dataset(name, given, split or "train", space),
        space,
        out,
        config,
        device=predictors[0].model.mean.device,
        batch_size=batch_size,
        progress=Progress("labelling"),
        source=source,
    )


def _share(text: str) -> tuple[str, str]:
    name, _, share = text.partition("=")
    if not share:
        raise UserError(f"--class-quantile {text!r}: give a class and a share, as in road=0.8")
    return name, share


def _lines(index: dict[str, Any]) -> Iterator[str]:
    width, weights = max(map(len, index["pixels"])), index.get("weights")
    yield f"{'class':{width}} {'threshold':>10} {'pixels':>14} {'kept %':>7}" + (f" {'trust':>6}" if weights else "")
    for name, number in index["pixels"].items():
        kept = percent(index["pixels_kept"][name] / number if number else None)
        threshold = f"{index['thresholds'][name]:.4f}" if number else ""
        mean = f" {weights[name]:>6.3f}" if weights and weights[name] is not None else ""
        yield f"{name:{width}} {threshold:>10} {number:>14} {kept:>7}{mean}"
    total = percent(index["share_kept"])
    yield f"{'all':{width}} {'':>10} {sum(index['pixels'].values()):>14} {total:>7}"
    if source := index.get("source_labels"):
        right = ", ".join(percent(share) for share in source["right_by_agreement"])
        yield (
            f"trust: labels of {len(index['trust']['ids'])} images of {source['data']}:{source['split']} were read; "
            f"right there, by the number of agreeing views: {right} %"
        )
    elif weights:
        yield "trust: the share of views that agree, no probability (--trust-source makes it one)"
