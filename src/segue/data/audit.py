"""``segue data check``: what is wrong with a data set's files; ``segue data show``: one page to look at it."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from segue.config import DatasetConfig
from segue.data.dataset import Dataset, describe_source, open_dataset
from segue.data.errors import DataError
from segue.data.images import encode, resize_image, resize_label
from segue.files import write_text
from segue.labels import IGNORE, U8, load_space

PAGE_BYTES = 5_000_000
THUMB_WIDTH_PX = 320
IMAGES = 12
COUNTED = 200
"""Class shares are counted over at most this many labels, evenly spaced."""


@dataclass(frozen=True)
class Problem:
    """One fault: ``kind`` (unreadable | mismatch | values | duplicate | no_label | no_image) and what to look at."""

    kind: str
    split: str
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind:10} [{self.split}] {self.message}"


@dataclass(frozen=True)
class _Checked:
    digest: bytes
    problems: list[Problem]


def check(name: str, root: Path | None = None) -> list[Problem]:
    """Audit every split of a data set (catalog name or folder, ``NAME:split`` for one): reads all images and labels.

    ``DataError`` when the data set cannot be found or has no image in any split.
    """
    return check_splits(open_splits(name, root))


def open_splits(name: str, root: Path | None = None) -> dict[str, Dataset]:
    """The splits that have images, with labels in the data set's own space; ``DataError`` when none has."""
    name, _, wanted = name.partition(":")
    config = DatasetConfig(root=root)
    spec, _ = describe_source(name, config)
    out: dict[str, Dataset] = {}
    faults: list[str] = []
    for split in [wanted] if wanted else spec.splits:
        try:
            out[split] = open_dataset(name, config, split)
        except DataError as error:
            faults.append(str(error))
    if not out:
        raise DataError(faults[0])
    return out


def check_splits(splits: Mapping[str, Dataset]) -> list[Problem]:
    """Audit opened splits; an image that two splits share (GTA5's val is part of train) is read once."""
    problems: list[Problem] = []
    first: dict[bytes, str] = {}
    seen: set[str] = set()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for split, dataset in splits.items():
            new = [i for i in range(len(dataset)) if dataset.describe(i) not in seen]
            seen.update(dataset.describe(i) for i in new)
            results = pool.map(lambda i, d=dataset, s=split: _check_one(d, s, i), new)
            for index, result in zip(new, results, strict=True):
                file = dataset.describe(index)
                problems += result.problems
                if result.digest and (other := first.setdefault(result.digest, file)) != file:
                    problems.append(Problem("duplicate", split, file, f"{file} has the same content as {other}"))
            for label in dataset.stray_labels():
                problems.append(Problem("no_image", split, label, f"label {label} belongs to no image"))
    return _unique(problems)


def show(name: str, out: Path, root: Path | None = None, labels: str | None = None) -> Path:
    """Write one self-contained page: images, labels, mapped labels, class shares, coverage; at most 5 MB.

    ``name``: catalog name or folder, with ``:split`` (default: the first split that has images). ``labels``: label
    space to map to. ``DataError`` names a file that cannot be read.
    """
    split, own = next(iter(open_splits(name, root).items()))
    mapped = own
    if labels is not None and labels != own.space.name:
        mapped = open_dataset(name.partition(":")[0], DatasetConfig(root=root), split, load_space(labels))
    page = ""
    count = min(IMAGES, len(own))
    while count > 0:
        page = _page(own, mapped, split, _spread(range(len(own)), count))
        if len(page.encode()) <= PAGE_BYTES:
            break
        count //= 2
    write_text(out, page)
    return out


def class_shares(dataset: Dataset, limit: int = COUNTED) -> tuple[list[float], float, int]:
    """Share of each class among labelled pixels, share of labelled pixels, number of labels counted."""
    missing = set(dataset.unlabelled_ids)
    have = [i for i, image_id in enumerate(dataset.ids) if image_id not in missing] if dataset.labelled else []
    chosen = _spread(have, limit)
    count = np.zeros(256, np.int64)
    for index in chosen:
        count += np.bincount(dataset.read_label(index).ravel(), minlength=256)
    labelled = int(count[:IGNORE].sum())
    shares = [float(c) / max(labelled, 1) for c in count[: len(dataset.space)]]
    return shares, labelled / max(int(count.sum()), 1), len(chosen)


def _check_one(dataset: Dataset, split: str, index: int) -> _Checked:
    image, label = dataset.paths(index)
    file = dataset.describe(index)
    digest = b""
    problems: list[Problem] = []
    try:
        if image is not None:
            digest = blake2b(image.read_bytes(), digest_size=16).digest()
        shape = dataset.read_image(index).shape[:2]
    except (DataError, OSError) as error:
        problems.append(Problem("unreadable", split, file, str(error)))
        shape = (0, 0)
    if not dataset.labelled:
        return _Checked(digest, problems)
    if image is not None and label is None:
        message = f"image {file} has no label file"
        return _Checked(digest, [*problems, Problem("no_label", split, file, message)])
    try:
        found = dataset.read_label(index).shape
    except DataError as error:
        kind = "values" if "label values" in str(error) else "unreadable"
        return _Checked(digest, [*problems, Problem(kind, split, str(label or file), str(error))])
    if not problems and found != shape:
        message = f"image {file} is {shape[1]}x{shape[0]} pixels, its label {label} is {found[1]}x{found[0]}"
        problems.append(Problem("mismatch", split, file, message))
    return _Checked(digest, problems)


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    # Splits of one folder (GTA5) list the same stray labels.
    return list({(p.kind, p.file, p.message): p for p in reversed(list(problems))}.values())[::-1]


def _spread(items: Any, count: int) -> list[int]:
    total = len(items)
    return [items[k * total // count] for k in range(count)] if count < total else list(items)


def _page(own: Dataset, mapped: Dataset, split: str, indices: list[int]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    shares, labelled, counted = class_shares(mapped)
    rows = zip(mapped.space.classes, mapped.space.colors, shares, strict=True)
    return environment.from_string(_TEMPLATE).render(
        name=own.name,
        split=split,
        number=len(own),
        unlabelled=len(own.unlabelled_ids) if own.labelled else len(own),
        native=own.space.name,
        target=mapped.space.name,
        coverage=[] if mapped.coverage is None else mapped.coverage.lines(),
        classes=[{"name": n, "color": "#%02x%02x%02x" % c, "share": s} for n, c, s in rows],  # noqa: UP031
        labelled=labelled,
        counted=counted,
        rows=[{"id": own.ids[i], "panels": list(_panels(own, mapped, i))} for i in indices],
    )


def _panels(own: Dataset, mapped: Dataset, index: int) -> Iterator[dict[str, str]]:
    image = own.read_image(index)
    height, width = image.shape[:2]
    size = (
        (max(1, round(height * THUMB_WIDTH_PX / width)), THUMB_WIDTH_PX) if width > THUMB_WIDTH_PX else (height, width)
    )
    yield {"title": f"image {width}x{height}", "url": _url(resize_image(image, size), ".jpg")}
    if not own.labelled or own.ids[index] in own.unlabelled_ids:
        return
    for dataset in [own] if mapped is own else [own, mapped]:
        label = resize_label(dataset.read_label(index), size)
        yield {"title": f"label {dataset.space.name}", "url": _url(dataset.colorize(label), ".png")}


def _url(image: U8, suffix: str) -> str:
    kind = "jpeg" if suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(encode(image, suffix, 85)).decode()}"


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}: {{ split }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1040px; padding: 0 1em; }
figure { display: inline-block; margin: 0 8px 8px 0; } figcaption { font-size: 12px; color: #555; }
img { display: block; max-width: 100%; } td { padding: 1px 8px; } h3 { font-size: 14px; margin: 1em 0 .3em; }
.swatch { width: 14px; height: 14px; border: 1px solid #888; } .bar { height: 10px; background: #567; }
</style></head><body>
<h1>{{ name }}: {{ split }}</h1>
<p>{{ number }} images, {{ unlabelled }} without a label. Files in label space {{ native }}, shown in {{ target }}.</p>
{% if coverage %}<h2>Map to {{ target }}</h2>
<ul>{% for line in coverage %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% if counted %}<h2>Class shares</h2>
<p>Of {{ counted }} labels; {{ "%.1f" | format(100 * labelled) }} % of their pixels are labelled.</p>
<table>{% for c in classes %}
<tr><td><div class="swatch" style="background:{{ c.color }}"></div></td><td>{{ c.name }}</td>
<td>{{ "%.2f" | format(100 * c.share) }} %</td>
<td><div class="bar" style="width:{{ (300 * c.share) | round | int }}px"></div></td></tr>{% endfor %}</table>{% endif %}
<h2>Images</h2>
{% for row in rows %}<h3>{{ row.id }}</h3>{% for p in row.panels %}<figure><img src="{{ p.url }}" alt="{{ p.title }}">
<figcaption>{{ p.title }}</figcaption></figure>{% endfor %}{% endfor %}
</body></html>
"""
