"""``segue data prepare``: a resized copy of a data set that opens like any other one.

``png`` writes lossless files (about half the bytes, decoded in a sixth of the time of 2048x1024 files); ``raw`` writes
memory maps (nothing to decode at all). Images are resized as the reader does for ``size: [H, W]``, and so are the
labels that a model trains on; labels of splits that are scored keep their resolution (``native_labels``). The sides
become H and W whatever the picture's aspect, as with ``size``.

``prepared.json`` records the source: ids and file sizes. An interrupted copy goes on where it stopped as long as that
record and the settings are the same; ``segue data check`` compares it with the source as it is then.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, get_args

from segue.data import catalog, memory_map
from segue.data.copies import (
    FAST_PNG,
    LABEL_PNG,
    Layout,
    Row,
    description,
    encode_as,
    keeps_size,
    ordered,
    rows_of,
    spread,
)
from segue.data.dataset import PYTHON, Dataset
from segue.data.errors import DataError
from segue.data.images import Size
from segue.data.reference import copied_splits, open_splits, parse, spec_of
from segue.errors import DISK_FULL
from segue.files import read_json, remove, replacing, write_json, write_text
from segue.labels import U8, nearest

Format = Literal["png", "raw"]
FORMATS: tuple[str, ...] = get_args(Format)
RECORD = "prepared.json"
MEASURED = 8
"""The bytes of a copy are told from this many images, evenly spaced."""


@dataclass
class Preparation:
    """A copy that is to be written to ``out``: what it needs, and what an earlier run has done of it."""

    out: Path
    format: str
    size: Size
    layout: Layout
    rows: list[Row]
    record: dict[str, Any]
    yaml: str
    workers: int | None = None
    todo: list[Row] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.out / catalog.FILE).is_file()

    def run(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Write what is missing; ``DataError`` for a source file that cannot be read, and for a full disk.

        Stopped at any moment, the same call goes on where it was.
        """
        if self.finished:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / RECORD, self.record)
        first = len(self.rows) - len(self.todo)
        done = first
        try:
            for done, _ in enumerate(_WRITERS[self.format](self), first + 1):
                if progress is not None:
                    progress(done, len(self.rows))
            for name, text in self.layout.lists().items() if self.format == "png" else ():
                write_text(self.out / name, text)
            write_text(self.out / catalog.FILE, self.yaml)
            remove(self.out / memory_map.JOURNAL)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise DataError(
                f"the disk is full after {done} of {len(self.rows)} images in {self.out}; free space and run the same "
                f"command again: it goes on from there"
            ) from error

    def needed_bytes(self) -> int:
        """About how much will be written, told from a few images; ``DataError`` when that is more than is free."""
        sample = spread(self.todo, MEASURED)
        if not sample:
            return 0
        measured = sum(_MEASURES[self.format](*row.read(self.size)) for row in sample)
        needed = measured * len(self.todo) // len(sample)
        place = next(p for p in (self.out, *self.out.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise DataError(
                f"{self.out} needs about {gigabytes(needed)}, {gigabytes(free)} are free: free space, choose another "
                f"folder, or a smaller --size"
            )
        return needed


def prepare(
    text: str,
    size: Size,
    out: Path,
    *,
    splits: Sequence[str] = (),
    format: str = "png",
    root: Path | None = None,
    labels: str | None = None,
    native_labels: bool | None = None,
    workers: int | None = None,
) -> Preparation:
    """Plan a resized copy of ``NAME[:SPLIT]`` at ``size`` (height, width) in folder ``out``; call ``run`` to write it.

    ``splits``: default train, val and test where there are such, else all. ``format``: ``png`` or ``raw``. ``labels``:
    label space to map to (default: the data set's own). ``native_labels``: labels keep their resolution in every split
    (True), none (False), or those that are scored (None). ``workers``: threads, by default one a core.
    ``DataError`` for a source that cannot be opened, and for an ``out`` that holds something else.
    """
    if format not in FORMATS:
        raise DataError(f"unknown format {format!r}{nearest(format, FORMATS)}")
    opened = open_splits(text, root, labels, splits or copied_splits(text, root))
    name = parse(text)[0]
    spec = None if name.startswith(PYTHON) else spec_of(name, root)
    rows = rows_of(opened, native_labels)
    layout = Layout(opened, native_labels, ".png")
    record = {
        "format": format,
        "size": list(size),
        "labels": labels,
        "native_labels": {split: keeps_size(split, native_labels) for split in opened},
        **_record(text, root, opened),
    }
    called = name.rpartition(":")[2] if spec is None else spec.name
    rowwise = {"image": "{split}/{key}", "labels": [], "splits": {split: {} for split in opened}}
    yaml = _HEADER[format] + description(called, spec, labels, layout.describe() if format == "png" else rowwise)
    # a class of the user's need not be safe in threads
    plan = Preparation(out, format, size, layout, rows, record, yaml, workers if spec else 1)
    _claim(plan)
    plan.todo = [] if plan.finished else _TODO[format](plan)
    return plan


def changed(folder: Path) -> str:
    """What differs between the source of a copy and the source as it is now; "" when nothing does.

    A source that is not there any more is no difference: a copy stands alone.
    """
    try:
        record = read_json(folder / RECORD)
        source = record["source"]
        root = None if source["root"] is None else Path(source["root"])
        splits = open_splits(source["name"], root, record["labels"], list(record["splits"]))
        then, now = _flat(record["splits"]), _flat(_list(splits))
    except OSError:
        return ""
    except DataError:
        return ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / RECORD} is damaged: prepare the data again") from error
    added, gone = len(now.keys() - then.keys()), len(then.keys() - now.keys())
    other = sum(then[key] != now[key] for key in then.keys() & now.keys())
    facts = [f"{n} {what}" for n, what in ((added, "new"), (gone, "gone"), (other, "of another size")) if n]
    return f"{source['name']} has changed since {folder} was prepared: images {', '.join(facts)}" if facts else ""


def gigabytes(number: int) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _record(text: str, root: Path | None, splits: Mapping[str, Dataset]) -> dict[str, Any]:
    content = _list(splits)
    name, split = parse(text)
    if not name.startswith(PYTHON) and Path(name).expanduser().exists():
        name = str(Path(name).expanduser().resolve())
    source = {"name": f"{name}:{split}" if split else name, "root": None if root is None else str(root.resolve())}
    checksum = blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
    return {"source": source, "checksum": checksum, "splits": content}


def _list(splits: Mapping[str, Dataset]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for split, dataset in splits.items():
        files = [dataset.files(index) for index in range(len(dataset))]
        image_bytes, label_bytes = (
            [0 if f is None else f.size() for f in column] for column in zip(*files, strict=True)
        )
        out[split] = {"ids": dataset.ids, "image_bytes": image_bytes, "label_bytes": label_bytes}
    return out


def _flat(content: Mapping[str, Any]) -> dict[tuple[str, str], tuple[int, int]]:
    return {
        (split, image_id): (image, label)
        for split, part in content.items()
        for image_id, image, label in zip(part["ids"], part["image_bytes"], part["label_bytes"], strict=True)
    }


def _claim(plan: Preparation) -> None:
    """``DataError`` unless the folder is empty or holds an earlier run of the same copy."""
    out, path = plan.out, plan.out / RECORD
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not path.is_file():
        raise DataError(f"{out} holds other files: choose an empty folder")
    try:
        there = read_json(path)
        different = [k for k in plan.record if k != "source" and there.get(k) != plan.record[k]]
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged: delete {out}, or choose another folder") from error
    if not different:
        return
    key = different[0]
    shown = f"{key} {there.get(key)}, not {plan.record[key]}"
    what = "another source (its list of files has changed)" if key in ("checksum", "splits") else shown
    raise DataError(f"{out} was prepared with {what}: choose another folder, or delete it")


def _missing_png(plan: Preparation) -> list[Row]:
    names = ([*plan.layout.images(row), *plan.layout.labels(row)] for row in plan.rows)
    return [row for row, mine in zip(plan.rows, names, strict=True) if not all((plan.out / n).is_file() for n in mine)]


def _missing_raw(plan: Preparation) -> list[Row]:
    if not (plan.out / memory_map.JOURNAL).is_file():
        return plan.rows
    writer = memory_map.Writer(plan.out, plan.size)
    writer.close()
    return plan.rows[writer.done :]


def _run_png(plan: Preparation) -> Any:
    def write(row: Row) -> None:
        image, label = row.read(plan.size)
        _write(plan, plan.layout.images(row), image, FAST_PNG)
        if label is not None:
            _write(plan, plan.layout.labels(row), label, LABEL_PNG)

    return ordered(write, plan.todo, plan.workers)


def _write(plan: Preparation, names: Sequence[str], image: U8, options: Sequence[int]) -> None:
    data = encode_as(".png", image, options) if names else b""
    for name in names:
        with replacing(plan.out / name) as temporary:
            temporary.write_bytes(data)


def _run_raw(plan: Preparation) -> Any:
    writer = memory_map.Writer(plan.out, plan.size)
    try:
        for image, label in ordered(lambda row: row.read(plan.size), plan.todo, plan.workers):
            writer.append(image, label)
            yield None
        splits: dict[str, tuple[list[str], list[int]]] = {}
        for number, row in enumerate(plan.rows):
            for split, image_id in row.uses:
                ids, numbers = splits.setdefault(split, ([], []))
                ids.append(image_id)
                numbers.append(number)
        writer.finish(splits)
    finally:
        writer.close()


def _measure_png(image: U8, label: U8 | None) -> int:
    return len(encode_as(".png", image, FAST_PNG)) + (0 if label is None else len(encode_as(".png", label, LABEL_PNG)))


def _measure_raw(image: U8, label: U8 | None) -> int:
    return image.nbytes + (0 if label is None else label.nbytes)


_WRITERS = {"png": _run_png, "raw": _run_raw}
_TODO = {"png": _missing_png, "raw": _missing_raw}
_MEASURES = {"png": _measure_png, "raw": _measure_raw}
_HEADER = {
    "png": "# Written by `segue data prepare`; prepared.json says from what.\n",
    "raw": "# Written by `segue data prepare --format raw`; prepared.json says from what.\n"
    "# The images lie in images.u8, the labels in labels.u8; memory_map.json says where.\n",
}
