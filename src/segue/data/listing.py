"""Files that match a path pattern such as ``gtFine/{split}/{key}_gtFine_labelIds.png``.

``{split}`` is replaced before matching. ``{key}`` stands for any text, slashes included; every other ``{name}`` stands
for one path segment (``{condition}``, ``{drive}``), and a name that comes twice must match the same text. The id of a
file is its fields in the order of the image pattern, joined by ``/``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from segue.data.errors import DataError

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
        self._static = segments[:static]

    def find(self, root: Path, fields: Sequence[str]) -> dict[str, str]:
        """Matching files below ``root``: id (``fields`` joined by "/") -> relative path. Opens no file."""
        found: dict[str, str] = {}
        start = "/".join(self._static)
        for path in _walk(root, start, len(self._static), self._folders):
            match = self._regex.fullmatch(path)
            if match:
                found["/".join(match[f] for f in fields)] = path
        return found


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


def _walk(root: Path, start: str, depth: int, folders: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """Relative paths of the files below ``root/start``; up to ``len(folders)`` levels are pruned by name."""
    # scandir answers is_dir() from the directory entry: 25,000 files cost tens of milliseconds, not a stat each.
    stack = [(start, depth)]
    while stack:
        here, level = stack.pop()
        try:
            entries = list(os.scandir(root / here))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DataError(f"cannot list folder {root / here}: {error.strerror}") from error
        for entry in entries:
            path = f"{here}/{entry.name}" if here else entry.name
            if not entry.is_dir():
                yield path
            elif level >= len(folders) or folders[level].fullmatch(entry.name):
                stack.append((path, level + 1))
