"""Writing scenes as real data sets, plus a ``scenes.json`` that says how.

A stream drifts from one domain to another in the order of its ids; ``drift.json`` tells how far each image is.

The layouts are those of Cityscapes, GTA5, SYNTHIA (16-bit labels of three channels) and KITTI-360 (with its list
files); the label ids are those that the catalog reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segue.data.catalog import load
from segue.data.images import write_image
from segue.data.scenes.domains import Domain, drift
from segue.data.scenes.scene import LEAST, Scene, render
from segue.files import read_json, replacing, write_json, write_text
from segue.labels import load_space

U8 = npt.NDArray[np.uint8]
SPLITS = ("train", "val", "test")
PER_CITY = 500
"""Frames per made-up city folder of the Cityscapes layout."""
KITTI_LIST = "data_2d_semantics/train/2013_05_28_drive_{split}_frames.txt"


def scene_seed(seed: int, split: str, index: int) -> int:
    """Seed of image `index` of `split`: splits and indices never share scenes (63 bits of SHA-256)."""
    word = hashlib.sha256(f"segue-scenes/{seed}/{split}/{index}".encode()).digest()
    return int.from_bytes(word[:8], "big") >> 1


def palette() -> list[int]:
    """The 256 RGB entries of GTA5 label files, indexed by label id."""
    space = load_space("cityscapes19")
    table = np.zeros((256, 3), np.uint8)
    table[list(space.ids)] = space.colors
    return [int(v) for v in table.ravel()]


def _save(path: Path, image: Image.Image) -> None:
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def _write_cityscapes(out: Path, split: str, index: int, scene: Scene) -> str:
    city = f"{split}town{index // PER_CITY:02d}"
    stem = f"{city}_{index:06d}_{19:06d}"
    _save(out / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", Image.fromarray(scene.image))
    _save(
        out / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png",
        Image.fromarray(load_space("cityscapes19").to_label_ids(scene.label)),
    )
    return f"{city}/{stem}"


def _write_gta5(out: Path, split: str, index: int, scene: Scene) -> str:
    name = f"{index + 1:05d}.png"
    label = Image.fromarray(load_space("cityscapes19").to_label_ids(scene.label)).convert("L")
    label = Image.frombytes("P", label.size, label.tobytes())
    label.putpalette(palette())
    _save(out / "images" / name, Image.fromarray(scene.image))
    _save(out / "labels" / name, label)
    return name.removesuffix(".png")


def _write_synthia(out: Path, split: str, index: int, scene: Scene) -> str:
    name = f"{index:07d}.png"
    ids = np.zeros((*scene.label.shape, 3), np.uint16)  # red: the class; green, the instance, stays 0
    ids[..., 0] = _synthia_ids()[scene.label]
    _save(out / "RGB" / name, Image.fromarray(scene.image))
    write_image(out / "GT/LABELS" / name, ids)
    return name.removesuffix(".png")


@cache
def _synthia_ids() -> npt.NDArray[np.uint16]:
    """Train id -> file id; 0 (void) for ignored pixels and for the classes that SYNTHIA never labels."""
    space = load_space("cityscapes19")
    table = np.zeros(256, np.uint16)
    for file_id, name in load("synthia").labels[0].names(space).items():
        if name in space.views["16"]:
            table[space.index(str(name))] = file_id
    return table


def _write_kitti360(out: Path, split: str, index: int, scene: Scene) -> str:
    drive = f"2013_05_28_drive_{SPLITS.index(split):04d}_sync"
    image = f"data_2d_raw/{drive}/image_00/data_rect/{index:010d}.png"
    label = f"data_2d_semantics/train/{drive}/image_00/semantic/{index:010d}.png"
    _save(out / image, Image.fromarray(scene.image))
    _save(out / label, Image.fromarray(load_space("cityscapes19").to_label_ids(scene.label)))
    frames = out / KITTI_LIST.format(split=split)
    lines = frames.read_text("utf-8").splitlines() if frames.exists() else []
    write_text(frames, "\n".join(sorted({*lines, f"{image} {label}"})) + "\n")
    return f"{drive}/{index:010d}"


WRITERS: dict[str, Callable[[Path, str, int, Scene], str]] = {
    "cityscapes": _write_cityscapes,
    "gta5": _write_gta5,
    "synthia": _write_synthia,
    "kitti360": _write_kitti360,
}
"""Each writes one scene and tells the image's id in the catalog."""
LAYOUTS = tuple(WRITERS)


def write(
    out: str | Path,
    *,
    num: int,
    seed: int,
    domain: Domain,
    to: Domain | None = None,
    steps: int | None = None,
    size: tuple[int, int] = (128, 256),
    layout: str = "cityscapes",
    split: str = "train",
    start: int = 0,
) -> None:
    """Render `num` scenes, numbers `start`.., and write them under `out` in a real data set's layout.

    `layout` is ``cityscapes`` or ``kitti360`` (8-bit label ids, void 0), ``gta5`` (palette label ids) or ``synthia``
    (16-bit ids of its own; terrain, truck and train become void, as it never labels them). The last two have no splits
    on disk, the name only chooses the scenes. Scenes depend on (`seed`, `split`, number) only, so a set can be written
    in parts.

    `to` makes a stream: the domain of its k-th image lies a share t = k / (num - 1) of the way from `domain` to `to`,
    or, with `steps` S, t = s / (S - 1) in the s-th of S equal parts. ``drift.json`` beside the images maps id to t.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if num < 1 or start < 0:
        raise ValueError(f"write: num must be at least 1 and start at least 0, got num={num}, start={start}")
    if min(size) < LEAST:
        raise ValueError(f"write: size must be at least {LEAST}x{LEAST} pixels, got {size[0]}x{size[1]}")
    if steps is not None and to is None:
        raise ValueError("write: steps are those of a stream: name the domain that it drifts to")
    shares = [0.0] * num if to is None else _shares(num, steps)
    folder = Path(out)
    ids = []
    for index, share in enumerate(shares, start):
        scene = render(drift(domain, to or domain, share), scene_seed(seed, split, index), size)
        ids.append(WRITERS[layout](folder, split, index, scene))
    if to is not None:
        path = folder / "drift.json"
        earlier = read_json(path) if path.exists() else {}
        write_json(path, earlier | dict(zip(ids, shares, strict=True)))
    _note(
        folder,
        split,
        {
            "domain": dataclasses.asdict(domain),
            "to": to and dataclasses.asdict(to),
            "steps": steps,
            "seed": seed,
            "num": num,
            "start": start,
            "size": list(size),
            "layout": layout,
        },
    )


def _shares(num: int, steps: int | None) -> list[float]:
    """How far each image of a stream has drifted, 0..1."""
    levels = num if steps is None else steps
    if not 2 <= levels <= num:
        raise ValueError(f"write: a stream needs 2 images or steps at least and no more steps than images ({num})")
    return [k * levels // num / (levels - 1) for k in range(num)]


def _note(folder: Path, split: str, entry: dict[str, Any]) -> None:
    """Add this split to ``scenes.json``."""
    path = folder / "scenes.json"
    notes = read_json(path) if path.exists() else {}
    notes[split] = json.loads(json.dumps(entry))
    write_json(path, notes)
