"""Rounds of buying in memory-made pictures, and annotators who answer them in each tool's own format."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segue.acquire.state import VOID, Round, RoundInfo, Row, rounds_of, write_round
from segue.data.dataset import Dataset
from segue.data.images import resize_label, write_image
from segue.files import file_of
from segue.labelling import Report, export, import_answers
from segue.labelling.job import name_of, names
from segue.labels import IGNORE, U8, LabelSpace

SIZE = (24, 32)
IDS = ("town/a 1.x", "town/b", "c")
NAMES = ("road", 'car & <"truck">', "void", "tree", "night")
# black is nobody's colour in a mask, and two classes share one
SPACE = LabelSpace("odd", NAMES, ((128, 64, 128), (0, 0, 142), (1, 2, 3), (0, 0, 142), (0, 0, 0)), (7, 8, 11, 12, 13))


class Photos(Dataset):
    """Images whose content follows from their id."""

    def __init__(self, ids: Sequence[str] = IDS, size: tuple[int, int] = SIZE) -> None:
        super().__init__("photos", SPACE, list(ids), None)
        self.shape = size

    def _image(self, index: int) -> U8:
        return np.random.default_rng(index).integers(60, 256, (*self.shape, 3), dtype=np.uint8)


def asked_map(seed: int, regions: int = 3, offset: int = 0) -> np.ndarray:
    """(H, W) uint16: some tiles of a grid of 8x8 pixels; rounds of another ``offset`` (0 or 1) share none."""
    tiles = [n for n in range(12) if n % 2 == offset]
    chosen = np.random.default_rng(seed).permutation(tiles)[:regions]
    small = np.zeros(12, np.uint16)
    small[chosen] = np.arange(1, regions + 1)
    return np.kron(small.reshape(3, 4), np.ones((8, 8), np.uint16)).astype(np.uint16)


def truth(seed: int, void: bool = True) -> U8:
    """(H, W) train ids, with some void."""
    values = [0, 1, 2, 3, 4, VOID] if void else [0, 1, 2, 3, 4]
    small = np.random.default_rng(seed).choice(values, (6, 8)).astype(np.uint8)
    return np.kron(small, np.ones((4, 4), np.uint8)).astype(np.uint8)


def make_round(
    group: Path,
    number: int = 1,
    ids: Sequence[str] = IDS,
    *,
    guess: bool = False,
    regions: int = 3,
    scale: tuple[int, int] = SIZE,
    **info: Any,
) -> Round:
    """A round in ``group/round_<number>``; even and odd rounds share no pixel. ``scale``: size of its images."""
    masks = {image: asked_map(10 * number + n, regions, number % 2) for n, image in enumerate(ids)}
    if scale != SIZE:
        masks = {image: resize_label(mask, scale) for image, mask in masks.items()}
    rows = [
        Row(
            image=image,
            region=100 + part,
            part=part,
            area_px=int((mask == part).sum()),
            ignored_px=0,
            predicted=(part + n) % len(SPACE),
            clicks=4,
        )
        for n, (image, mask) in enumerate(masks.items())
        for part in range(1, regions + 1)
    ]
    about = RoundInfo(
        group=group.name,
        round=number,
        data="photos:train",
        split="train",
        labels=SPACE.to_dict(),
        annotator="people",
        acquisition={"name": "random"},
        partition={"name": "superpixels"},
        model="warmup",
        seed=0,
        pool_px=10000,
        budget_px=100,
        labelled_px=64 * len(rows),
        ignored_px=0,
        regions=len(rows),
        images=len(masks),
        clicks=4 * len(rows),
        minutes=1.0,
    ).model_copy(update=info)
    made = write_round(group / f"round_{number}", about, rows, masks)
    if guess:
        for n, image in enumerate(ids):
            write_image(made.folder / "guess" / f"{file_of(image)}.png", truth(50 + n, void=False))
    return made


def wanted(chosen: Round, labels: Mapping[str, U8]) -> dict[str, U8]:
    """What the answers must be when everybody has labelled everything."""
    return {i: np.where(chosen.asked(i) > 0, labels[i], IGNORE).astype(np.uint8) for i in chosen.by_image}


def stored(chosen: Round) -> dict[str, U8]:
    """The answers as they lie on disk."""
    answers = chosen.answers()
    return {image: answers.read(image) for image in answers.ids}


def browser_rle(rgba: np.ndarray) -> list[int]:
    """Bytes to the stream of rle-pack as a browser writes it, literals included; said again without our encoder."""
    words = rgba.ravel().tolist()
    bits = [f"{len(words):032b}", f"{7:05b}", "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))]
    at = 0
    while at < len(words):
        end = at
        while end < len(words) and words[end] == words[at] and end - at < 65536:
            end += 1
        if end - at > 2:
            which = next(k for k, n in enumerate((3, 4, 8, 16)) if end - at <= 1 << n)
            length = f"{end - at - 1:0{(3, 4, 8, 16)[which]}b}"
            bits.append(f"1{which:02b}{length}{words[at]:08b}")
        else:
            end = min(at + 2, len(words))
            bits.append(f"000{end - at - 1:03b}" + "".join(f"{w:08b}" for w in words[at:end]))
        at = end
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[n : n + 8], 2) for n in range(0, len(text), 8)]


def unpack(numbers: Sequence[int]) -> np.ndarray:
    """The stream of rle-pack to words, bit by bit."""
    text = "".join(f"{n:08b}" for n in numbers)
    at = 0

    def take(size: int) -> int:
        nonlocal at
        at += size
        return int(text[at - size : at], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < count:
        repeat, which = take(1), take(2)
        length = take(sizes[which]) + 1
        out += [take(word)] * length if repeat else [take(word) for _ in range(length)]
    return np.array(out, np.uint8)


def brush(mask: np.ndarray, name: str) -> dict[str, Any]:
    """A result as Label Studio stores it."""
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask] = (200, 10, 30, 255)
    return {
        "id": "x",
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "image_rotation": 0,
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "value": {"format": "rle", "rle": browser_rle(rgba), "brushlabels": [name]},
    }


def paint(label: U8, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Brushes of a whole label."""
    return [brush(label == key, names[key]) for key in np.unique(label).tolist() if key != IGNORE]


def label_studio(job: Path, answers: Mapping[str, U8], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Label Studio's export of the job after these images were labelled by one person."""
    tasks = json.loads((job / "tasks.json").read_text())
    for number, task in enumerate(tasks, 1):
        task["id"] = number
        image = task["data"]["image_id"]
        done = {"completed_by": 1, "updated_at": "2026-01-01T00:00:00Z", "result": []}
        if image in answers:
            done["result"] = paint(answers[image], names)
        task["annotations"] = [done] if image in answers else []
    return tasks


def cvat(job: Path, out: Path, answers: Mapping[str, U8], *, mode: str = "RGB", start: str = "") -> None:
    """CVAT's export: its masks, in colours of its own."""
    described = json.loads((job / "job.json").read_text())
    colors = {c["id"]: tuple((x + 50) % 256 for x in c["color"]) for c in described["classes"]}
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{c['name']}:{','.join(map(str, colors[c['id']]))}::" for c in described["classes"]]
    order = {c["id"]: n for n, c in enumerate(described["classes"], 1)}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{start}labelmap.txt", "\n".join(lines))
        for image in described["images"]:
            label = answers.get(image["id"])
            if label is None:
                continue
            if mode == "L":
                table = np.zeros(256, np.uint8)
                table[list(order)] = list(order.values())
                pixels = table[label]
            else:
                palette = np.zeros((256, 3), np.uint8)
                for key, color in colors.items():
                    palette[key] = color
                pixels = palette[label]
            archive.writestr(f"{start}SegmentationClass/{image['name']}.png", png(pixels))


def png(pixels: np.ndarray) -> bytes:
    """A PNG by Pillow."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def hand_in(tool: str, job: Path, answers: Mapping[str, U8]) -> Path:
    """What comes back from ``tool`` after these images were labelled so."""
    out = job.parent / f"back-{tool}"
    if tool == "label-studio":
        out = out.with_suffix(".json")
        out.write_text(json.dumps(label_studio(job, answers, names(SPACE))))
    elif tool.startswith("cvat"):
        out = out.with_suffix(".zip")
        cvat(job, out, answers, mode="L" if tool.endswith("grey") else "RGB")
    else:
        for image, label in answers.items():
            path = job / "labels" / f"{name_of(image)}.png"
            if tool == "png-grey":
                path.write_bytes(png(label))
                continue
            painted = Image.open(path)
            palette = painted.getpalette()
            painted = Image.fromarray(label)
            painted.putpalette(palette)
            (painted.convert("RGB") if tool == "png-colour" else painted).save(path)
        out = job
        if tool == "png-zip":
            out = job.parent / "back.zip"
            with zipfile.ZipFile(out, "w") as archive:
                for path in sorted(p for p in job.rglob("*") if p.is_file()):
                    archive.write(path, f"inner/folder/{path.relative_to(job)}")
    return out


def labelled(chosen: Round, tool: str, tmp_path: Path, answers: Mapping[str, U8], name: str = "job") -> Path:
    """Export, label, hand in."""
    job = tmp_path / name / "files"
    export(chosen, Photos(), job, tool.split("-")[0] if tool != "label-studio" else tool)
    return hand_in(tool, job, answers)


def take(chosen: Round, *paths: Path, **options: Any) -> Report:
    """Import into the rounds of its group."""
    return import_answers(rounds_of(chosen.folder.parent), chosen, paths, **options)


def same(found: Mapping[str, U8], expected: Mapping[str, U8]) -> None:
    """Equal images and pixels."""
    assert sorted(found) == sorted(expected)
    for image, label in expected.items():
        np.testing.assert_array_equal(found[image], label, err_msg=image)


def everything() -> dict[str, U8]:
    """A label of every image."""
    return {image: truth(n) for n, image in enumerate(IDS)}
