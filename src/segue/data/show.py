"""``segue data show``: one page to look at a data set, and to send to somebody.

Self-contained and at most 5 MB: images, labels, the same labels mapped to another space, class shares, and what the map
merges, loses and never labels.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import jinja2

from segue.config import DatasetConfig
from segue.data.audit import class_shares
from segue.data.copies import spread
from segue.data.corrupted import Corrupted
from segue.data.dataset import PYTHON, Dataset, open_dataset
from segue.data.images import encode, resize_image, resize_label
from segue.data.reference import open_splits, parse
from segue.files import write_text
from segue.labels import U8, load_space
from segue.policies import CorruptConfig

PAGE_BYTES = 5_000_000
THUMB_WIDTH_PX = 400
IMAGES = 12


def show(
    name: str,
    out: Path,
    root: Path | None = None,
    labels: str | None = None,
    corrupt: CorruptConfig | None = None,
) -> Path:
    """Write one self-contained page: images, labels, mapped labels, class shares, coverage; at most 5 MB.

    ``name``: catalog name, folder, archive or python: class, with ``:split`` (default: the first split that has
    images). ``labels``: label space to map to (a python: class must be given one). ``corrupt``: what the images are
    seen under. ``DataError`` names a file that cannot be read.
    """
    python = name.startswith(PYTHON)
    split, own = next(iter(open_splits(name, root, labels if python else None).items()))
    if corrupt is not None:
        own = Corrupted(own, corrupt)
    mapped = own
    if labels is not None and labels != own.space.name:
        config = DatasetConfig(dataset=parse(name)[0], root=root)
        mapped = open_dataset(own.name, config, split, load_space(labels))
    count = min(IMAGES, len(own))
    while True:
        page = _page(own, mapped, split, spread(range(len(own)), count), _seen(corrupt))
        if len(page.encode()) <= PAGE_BYTES or count == 1:
            break
        count //= 2
    write_text(out, page)
    return out


def _seen(corrupt: CorruptConfig | None) -> str:
    if corrupt is None:
        return ""
    given = corrupt.severity
    return f"{corrupt.name} {given}" if isinstance(given, int) else f"{corrupt.name} {given[0]} to {given[1]}"


def _page(own: Dataset, mapped: Dataset, split: str, indices: list[int], seen: str) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    shares, labelled, counted = class_shares(mapped)
    rows = zip(mapped.space.classes, mapped.space.colors, shares, strict=True)
    return environment.from_string(_TEMPLATE).render(
        name=own.name,
        split=split,
        seen=seen,
        number=len(own),
        shown=len(indices),
        columns=max(2, 1 + own.labelled + (mapped is not own)),
        unlabelled=len(own.unlabelled_ids) if own.labelled else len(own),
        native=own.space.name,
        target=mapped.space.name,
        coverage=[] if mapped.coverage is None else mapped.coverage.lines(),
        classes=[{"name": n, "color": _hex(c), "share": s} for n, c, s in rows],
        legend=[]
        if mapped is own
        else [{"name": n, "color": _hex(c)} for n, c in zip(own.space.classes, own.space.colors, strict=True)],
        most=max([*shares, 1e-9]),
        labelled=labelled,
        counted=counted,
        rows=[{"id": own.ids[i], "panels": list(_panels(own, mapped, i))} for i in indices],
    )


def _hex(color: tuple[int, int, int]) -> str:
    return "#" + bytes(color).hex()


def _panels(own: Dataset, mapped: Dataset, index: int) -> Iterator[dict[str, str]]:
    image = own.read_image(index)
    height, width = image.shape[:2]
    thumb_width = min(width, THUMB_WIDTH_PX)
    size = (max(1, round(height * thumb_width / width)), thumb_width)
    yield {"title": f"image {width}x{height}", "url": _url(resize_image(image, size), ".jpg")}
    if not own.labelled or own.ids[index] in own.unlabelled_ids:
        return
    for dataset in [own] if mapped is own else [own, mapped]:
        label = resize_label(dataset.read_label(index), size)
        yield {"title": f"label in {dataset.space.name}", "url": _url(dataset.colorize(label), ".png")}


def _url(image: U8, suffix: str) -> str:
    kind = "jpeg" if suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(encode(image, suffix, 85)).decode()}"


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ name }}: {{ split }}</title>
<style>
:root { color-scheme: light; --ink: #1d2430; --soft: #667085; --line: #e4e7ec; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; max-width: 1240px;
  padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 34px 0 10px; }
h3 { font: 13px ui-monospace, monospace; color: var(--soft); margin: 0 0 6px; overflow-wrap: anywhere; }
.facts { color: var(--soft); margin: 4px 0 0; } ul { margin: 0; padding-left: 20px; }
.shares { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 3px 28px; }
.share { display: grid; grid-template-columns: 16px 120px 1fr 58px; align-items: center; gap: 8px; font-size: 14px; }
.swatch { width: 14px; height: 14px; border-radius: 3px; border: 1px solid #0003; }
.track { background: #f2f4f7; border-radius: 3px; } .bar { height: 10px; border-radius: 3px; min-width: 1px; }
.number { text-align: right; font-variant-numeric: tabular-nums; } .none { color: #b42318; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; }
.legend .swatch { display: inline-block; margin-right: 6px; vertical-align: -2px; }
.row { border-top: 1px solid var(--line); padding: 12px 0 8px; }
.panels { display: grid; grid-template-columns: repeat({{ columns }}, minmax(0, 1fr)); gap: 10px; }
figure { margin: 0; } figcaption { font-size: 12px; color: var(--soft); margin-top: 2px; }
img { display: block; width: 100%; border-radius: 4px; }
</style></head><body>
<h1>{{ name }} <span style="color:var(--soft)">{{ split }}</span></h1>
<p class="facts">{{ number }} images{% if seen %} under {{ seen }}{% endif -%}
{% if unlabelled %}, {{ unlabelled }} without a label{% endif %}.
Files in label space <b>{{ native }}</b>{% if target != native %}, shown in <b>{{ target }}</b>{% endif %}.</p>
{% if coverage %}<h2>From {{ native }} to {{ target }}</h2>
<ul>{% for line in coverage %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% if counted %}<h2>Class shares</h2>
<p class="facts">Of the pixels that are labelled in {{ counted }} labels, which are
{{ "%.1f" | format(100 * labelled) }} %; bars are relative to the largest class.</p>
<div class="shares">{% for c in classes %}
<div class="share"><div class="swatch" style="background:{{ c.color }}"></div><div>{{ c.name }}</div>
<div class="track"><div class="bar" style="background:{{ c.color }};width:{{ "%.1f" | format(100 * c.share / most) }}%">
</div></div><div class="number{{ "" if c.share else " none" }}">{{ "%.2f" | format(100 * c.share) }} %</div></div>
{% endfor %}</div>{% endif %}
{% if legend %}<h2>Colours of {{ native }}</h2>
<div class="legend">{% for c in legend %}<span><span class="swatch" style="background:{{ c.color }}"></span>
{{ c.name }}</span>{% endfor %}</div>{% endif %}
<h2>{{ shown }} of {{ number }} images</h2>
{% for row in rows %}<div class="row"><h3>{{ row.id }}</h3><div class="panels">
{% for p in row.panels %}<figure><img src="{{ p.url }}" alt="{{ p.title }}">
<figcaption>{{ p.title }}</figcaption></figure>{% endfor %}</div></div>{% endfor %}
</body></html>
"""
