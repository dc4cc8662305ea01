"""``segue gap watch``: an alarm when images of a stream are no longer like the source's."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli.gap import DEFAULT_NETWORK, BatchSize, InputSize, Layers, Network, Seed, Square
from segue.cli.options import Device, pixels
from segue.files import write_json
from segue.progress import Progress

DATA = "Data set with split (NAME[:SPLIT]), folder of pictures, or glob in quotes."
WINDOW = "Images that are judged together, without overlap."
RATE = "False alarms by window where nothing has drifted, at most."
LIMIT = "So many images of the source at most, evenly spaced; half make the reference, half calibrate."


def watch(
    source: Annotated[str, typer.Argument(help=f"Images as they should be. {DATA}")],
    stream: Annotated[str, typer.Argument(help="Images to watch, in the order of their ids, as the source.")],
    network: Network = DEFAULT_NETWORK,
    layers: Layers = None,
    size: InputSize = "",
    square: Square = False,
    window: Annotated[int, typer.Option(help=WINDOW, min=1)] = 20,
    rate: Annotated[float, typer.Option(help=RATE)] = 0.01,
    limit: Annotated[int | None, typer.Option(help=LIMIT, min=2)] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the numbers.")] = None,
    fail: Annotated[bool, typer.Option("--fail", help="Exit with 1 when there was an alarm.")] = False,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Tell when a stream drifts from the source, with a stated rate of false alarms."""
    shape = pixels(size)
    from segue.gap.between import ImageSet
    from segue.gap.networks import open_network
    from segue.gap.reading import open_images
    from segue.gap.watch import calibrate, require_window
    from segue.hardware import launch

    known = ImageSet(open_images(source), shape, batch_size, limit, partial(Progress, f"looking at {source}"))
    watched = ImageSet(open_images(stream), shape, batch_size)
    require_window(len(watched.indices), window)  # told before the source is looked at
    extractor = open_network(network, layers=layers or (), device=launch(device).device, seed=seed, square=square)
    alarm = calibrate(extractor, known, window, rate)
    own = alarm.watch
    print(f"mean distance of {own.images} source images to {alarm.reference.images} others: {own.distance:.4g} bins")
    print(f"{'images':>13}  {'distance':>8}  {'p':>7}  last image")
    ids = watched.dataset.ids
    rows: list[dict[str, Any]] = []
    for found in alarm.windows(watched):
        rows.append({"from": ids[found.first], "to": ids[found.last], **asdict(found)})
        print(_line(rows[-1]), flush=True)
    rung = [row for row in rows if row["alarm"]]
    print(_sentence(rows, rung, rate))
    if json is not None:
        facts = {"source": source, "stream": stream, "network": extractor.identity, "window": window, "rate": rate}
        write_json(json, facts | {"alarm": rung[0] if rung else None, "windows": rows})
    if fail and rung:
        raise typer.Exit(1)


def _line(row: dict[str, Any]) -> str:
    images = f"{row['first'] + 1} to {row['last'] + 1}"
    alarm = f"  ALARM: {_moved(row)}" if row["alarm"] else ""
    return f"{images:>13}  {row['distance']:8.4g}  {row['p']:7.5f}  {row['to']}{alarm}"


def _moved(row: dict[str, Any]) -> str:
    side = "farther" if row["deviation"] > 0 else "nearer"
    return f"{side}, most in {row['layer']} ({row['deviation']:+.1f} standard errors)"


def _sentence(rows: list[dict[str, Any]], rung: list[dict[str, Any]], rate: float) -> str:
    chance = f"{len(rows) * rate:.2g} of {len(rows)} windows are expected to raise one by chance, at most"
    if not rung:
        return f"no alarm; {chance}"
    first = rung[0]
    return f"first alarm at image {first['last'] + 1}, {first['to']}; {len(rung)} alarms: {chance}"
