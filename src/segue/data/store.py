"""Read-only files below a root: a folder, an archive, or a folder inside an archive (``real.zip/camvid``).

Official archives need no unpacking: one that lies in the folder (at most two levels down) counts as if it were unpacked
where it lies, and a loose file wins over a member of the same name. An archive is opened only when the loose tree does
not answer. Zip members are stored or deflated; a tar is not compressed: both can be read in any order. Nothing is ever
extracted to disk, and every read opens the file anew, so a store may be shared by threads and forked or pickled freely.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from segue.data.errors import DataError

ARCHIVES = (".zip", ".tar")
CLOSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".rar", ".7z")
"""Archives without access to single members: the user has to unpack them."""
ARCHIVE_DEPTH = 2
MAX_MEMBER_BYTES = 512 * 2**20
"""A member that declares more is refused: the largest published image file has about a tenth of it."""
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_LOCAL_HEADER = 30


class Member(NamedTuple):
    """Where a file lies in an archive. ``method`` and ``crc`` are None in a tar, which has neither."""

    archive: Path
    name: str
    offset: int
    packed_bytes: int
    bytes: int
    method: int | None = None
    crc: int | None = None
    encrypted: bool = False


class Store:
    """The files below ``root``; ``DataError`` when there is no such folder or archive that can be read in place."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser()
        self._packed: dict[str, Member] | None = None
        self.is_folder = self.root.is_dir()
        if self.is_folder:
            return
        archive = find_archive(self.root)
        if archive is None:
            raise DataError(f"no folder or archive {root} (from {Path.cwd()})")
        if archive.name.lower().endswith(CLOSED):
            raise DataError(f"{archive} gives no access to single files: unpack it, and give the folder")
        inner = self.root.relative_to(archive).as_posix()
        start = "" if inner == "." else f"{inner}/"
        self._packed = {n[len(start) :]: m for n, m in _members(archive).items() if n.startswith(start)}
        if not self._packed:
            raise DataError(f"{archive} holds no {'file' if inner == '.' else f'folder {inner}'}")

    def files(self, start: str = "", folders: Sequence[re.Pattern[str]] = (), archives: bool = True) -> Iterator[str]:
        """Paths of all files below ``root/start``, relative to the root, with forward slashes; opens no file.

        ``folders``: one pattern for each of the first levels below the root; other folders are not entered there.
        ``archives``: look into archives that lie in the folder, too. Not sorted; no path comes twice.
        """
        seen: set[str] = set()
        if self.is_folder:
            for path in _walk(self.root, start, folders):
                seen.add(path)
                yield path
        if archives or not self.is_folder:
            prefix = f"{start}/" if start else ""
            yield from (p for p in self._members() if p.startswith(prefix) and p not in seen)

    def read(self, path: str) -> bytes:
        """Bytes of a file; ``DataError`` names the file, or the archive and its member."""
        if self.is_folder:
            try:
                return (self.root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                pass  # a member of an archive, or nothing
            except OSError as error:
                raise DataError(f"cannot read {self.root / path}: {error.strerror}") from error
        return _read(self._member(path))

    def size(self, path: str) -> int:
        """Number of bytes of a file, unpacked; it is not opened. ``DataError`` as :meth:`read`."""
        loose = self.root / path
        return loose.stat().st_size if self.is_folder and loose.is_file() else self._member(path).bytes

    def stamp(self, path: str) -> str:
        """What differs after a file was changed: size and time; of a member size and checksum, or archive's time."""
        try:
            status = os.stat(f"{self.root}/{path}")  # noqa: PTH116 (25,000 of them: Path.stat takes 5 times longer)
            return f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            member = self._member(path)
        if member.crc is not None:
            return f"{member.bytes} {member.crc}"
        return f"{member.bytes} {member.offset} {member.archive.stat().st_mtime_ns}"

    def has(self, path: str, archives: bool = True) -> bool:
        """Whether there is such a file."""
        if self.is_folder and (self.root / path).is_file():
            return True
        return (archives or not self.is_folder) and path in self._members()

    def describe(self, path: str) -> str:
        """The file for messages: ``/root/a.png`` or ``/root/x.zip:a.png``."""
        member = self._packed.get(path) if self._packed else None
        if member is None or (self.is_folder and (self.root / path).is_file()):
            return str(self.root / path)
        return f"{member.archive}:{member.name}"

    def top(self) -> list[str]:
        """Names directly below the root, sorted, for messages."""
        if self.is_folder:
            return sorted(p.name for p in self.root.iterdir())
        return sorted({p.split("/")[0] for p in self._members()})

    def has_archives(self) -> bool:
        """Whether archives with files lie in the folder."""
        return self.is_folder and bool(self._members())

    def closed(self) -> str:
        """A sentence on archives in the folder that have to be unpacked before their files can be read, or nothing."""
        found = _archives(self.root, CLOSED) if self.is_folder else []
        return f"; unpack {', '.join(map(str, found[:4]))} there: it gives no access to single files" if found else ""

    def _member(self, path: str) -> Member:
        member = self._members().get(path)
        if member is None:
            raise DataError(f"cannot read {self.root / path}: No such file")
        return member

    def _members(self) -> dict[str, Member]:
        if self._packed is None:
            packed: dict[str, Member] = {}
            for archive in _archives(self.root, ARCHIVES):
                where = archive.parent.relative_to(self.root).as_posix()
                start = "" if where == "." else f"{where}/"
                for name, member in _members(archive).items():
                    packed.setdefault(start + name, member)
            self._packed = packed
        return self._packed


@dataclass(frozen=True)
class File:
    """One file of a store; ``str()`` names it, with its archive when it lies in one."""

    store: Store
    path: str

    def read(self) -> bytes:
        """Its bytes; ``DataError`` names the file."""
        return self.store.read(self.path)

    def size(self) -> int:
        """Number of bytes, without opening the file; ``DataError`` names it."""
        return self.store.size(self.path)

    def stamp(self) -> str:
        """What differs after the file was changed, without opening it; ``DataError`` names it."""
        return self.store.stamp(self.path)

    def __str__(self) -> str:
        return self.store.describe(self.path)


def find_archive(path: Path) -> Path | None:
    """The archive that ``path`` is or lies in, by its name; None when it is or lies in none."""
    file = next((p for p in (path, *path.parents) if p.is_file()), None)
    return file if file is not None and file.name.lower().endswith(ARCHIVES + CLOSED) else None


def _walk(root: Path, start: str, folders: Sequence[re.Pattern[str]]) -> Iterator[str]:
    # scandir answers is_dir() from the directory entry: 25,000 files cost tens of milliseconds, not a stat each.
    stack = [(start, start.count("/") + 1 if start else 0)]
    while stack:
        here, level = stack.pop()
        for entry in _entries(root / here):
            path = f"{here}/{entry.name}" if here else entry.name
            if not entry.is_dir():
                yield path
            elif level >= len(folders) or folders[level].fullmatch(entry.name):
                stack.append((path, level + 1))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"cannot list folder {folder}: {error.strerror}") from error


def _archives(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    level = [root]
    for _ in range(ARCHIVE_DEPTH + 1):
        entries = [e for folder in level for e in _entries(folder)]
        found += [Path(e.path) for e in entries if e.name.lower().endswith(suffixes) and e.is_file()]
        level = [Path(e.path) for e in entries if e.is_dir()]
    return sorted(found)


def _members(archive: Path) -> dict[str, Member]:
    status = archive.stat()
    return _list_archive(archive, status.st_size, status.st_mtime_ns)


@cache
def _list_archive(archive: Path, size: int, changed_ns: int) -> dict[str, Member]:
    # size and time are part of the key: an archive that was replaced is listed again
    list_members = _list_zip if archive.suffix.lower() == ".zip" else _list_tar
    try:
        return {m.name: m for m in list_members(archive) if _inside(m.name)}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{archive} is not a readable {archive.suffix} archive ({error}; {size} bytes): fetch it again, or move it "
            f"away"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror}") from error


def _list_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for i in file.infolist():
            if i.filename and not (i.is_dir() or stat.S_ISLNK(i.external_attr >> 16)):
                name = i.filename.replace("\\", "/")
                coded = bool(i.flag_bits & 1)
                yield Member(
                    archive, name, i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC, coded
                )


def _list_tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r:") as file:
        for i in file:
            if i.isreg() and not i.issparse():
                yield Member(archive, i.name.removeprefix("./"), i.offset_data, i.size, i.size)


def _inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ":" not in name.split("/")[0] and ".." not in name.split("/")


def _read(member: Member) -> bytes:
    where = f"{member.archive}:{member.name}"
    if member.encrypted:
        raise DataError(f"{where} is encrypted: unpack the archive with its password, and give the folder")
    if member.method not in (None, _STORED, _DEFLATED):
        raise DataError(f"{where} is compressed by method {member.method}, which cannot be read in place: unpack it")
    if max(member.bytes, member.packed_bytes) > MAX_MEMBER_BYTES:
        raise DataError(f"{where} declares {member.bytes} bytes; more than {MAX_MEMBER_BYTES} is no image file")
    try:
        data = _raw(member)
        if member.method == _DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.bytes + 1)
    except (OSError, zlib.error) as error:
        raise DataError(f"{where} cannot be read ({error}): fetch the archive again") from error
    if len(data) != member.bytes or (member.crc is not None and zlib.crc32(data) != member.crc):
        raise DataError(f"{where} is damaged or ends early: fetch the archive again")
    return data


def _raw(member: Member) -> bytes:
    with member.archive.open("rb") as file:
        file.seek(member.offset)
        if member.method is not None:
            header = file.read(_LOCAL_HEADER)
            if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\3\4"):
                return b""
            # the local header's own lengths count: its extra field may differ from the central directory's
            name_bytes, extra_bytes = struct.unpack("<HH", header[26:])
            file.seek(name_bytes + extra_bytes, 1)
        return file.read(member.packed_bytes)
