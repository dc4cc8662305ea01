"""Files that match a path pattern such as ``gtFine/{split}/{key}_gtFine_labelIds.png``.

``{split}`` is replaced before matching. ``{key}`` stands for any text, slashes included; every other ``{name}`` stands
for one path segment (``{condition}``, ``{drive}``), and a name that comes twice must match the same text. The id of a
file is its fields in the order of the image pattern, joined by ``/``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from segue.data.errors import DataError
from segue.data.store import Store

_FIELD = re.compile(r"\{(\w+)\}")


class Pattern:
    """A compiled path pattern, relative to the root of a data set, with forward slashes."""

    def __init__(self, text: str, split: str) -> None:
        self.text = text.replace("{split}", split)
        self.fields = tuple(dict.fromkeys(_FIELD.findall(self.text)))
        if "key" not in self.fields:
            raise DataError(f"path pattern {text!r} has no {{key}}: it stands for what differs between files")
        self._regex = re.compile(_to_regex(self.text))
        segments = self.text.split("/")
        deep = next(i for i, s in enumerate(segments) if "{key}" in s)
        self._folders = [re.compile(_to_regex(s, lone=True)) for s in segments[:deep]]
        static = next(i for i, s in enumerate(segments) if "{" in s)
        self._start = "/".join(segments[:static])

    def id_of(self, path: str, fields: Sequence[str]) -> str | None:
        """The id (``fields`` joined by "/") that a relative path stands for, None when it is not of this pattern."""
        match = self._regex.fullmatch(path)
        return "/".join(match[f] for f in fields) if match else None

    def find(self, store: Store, fields: Sequence[str], archives: bool) -> dict[str, str]:
        """Matching files: id -> relative path. ``archives``: as :meth:`Store.files`."""
        paths = store.files(self._start, self._folders, archives)
        return {i: path for path in paths if (i := self.id_of(path, fields)) is not None}


def find(store: Store, patterns: Sequence[Pattern], fields: Sequence[str], archives: bool) -> dict[str, str]:
    """Files of alternative patterns as :meth:`Pattern.find`; the pattern named first wins an id."""
    found: dict[str, str] = {}
    for pattern in reversed(patterns):
        found.update(pattern.find(store, fields, archives))
    return found


def first_id(path: str, patterns: Sequence[Pattern], fields: Sequence[str]) -> str | None:
    """The id that a path stands for by the first of the patterns that it is of."""
    return next((i for p in patterns if (i := p.id_of(path, fields)) is not None), None)


def read_list(store: Store, names: Sequence[str], patterns: Sequence[Pattern]) -> dict[str, str]:
    """A split's list file, the first of ``names`` that is there: id of each line's image -> its label's path, or "".

    A line holds an image, by id or by path, and perhaps its label's path; what follows (superpixels) is not read.
    ``DataError`` when there is no such file or it is not text; whether the images are there is not looked at.
    """
    name = next((n for archives in (False, True) for n in names if store.has(n, archives)), None)
    if name is None:
        raise DataError(f"no list file {' or '.join(names)} in {store.root}{store.closed()}")
    try:
        rows = [line.split() for line in store.read(name).decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{store.describe(name)} is not a text file (UTF-8)") from error
    fields = patterns[0].fields
    return {
        first_id(image.lstrip("/"), patterns, fields) or image: rest[0].lstrip("/") if rest else ""
        for image, *rest in rows
    }


def select(ids: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Ids that match one of ``include`` (empty: all) and none of ``exclude``; shell patterns, ``*`` crosses "/"."""
    return [
        i
        for i in ids
        if (not include or any(fnmatchcase(i, p) for p in include)) and not any(fnmatchcase(i, p) for p in exclude)
    ]


def _to_regex(text: str, lone: bool = False) -> str:
    out: list[str] = []
    seen: set[str] = set()
    for i, part in enumerate(_FIELD.split(text)):
        if i % 2 == 0:
            out.append(re.escape(part))
        elif part in seen and not lone:
            out.append(f"(?P={part})")
        else:
            kind = ".+" if part == "key" else "[^/]+"
            out.append(kind if lone else f"(?P<{part}>{kind})")
            seen.add(part)
    return "".join(out)
