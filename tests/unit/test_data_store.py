"""Archives read in place: the same files as unpacked, nothing outside them, and each fault named."""

from __future__ import annotations

import pickle
import random
import stat
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from helpers.miniatures import make, own, pack
from segue.config import DatasetConfig, TransformConfig
from segue.data import store as store_module
from segue.data.dataset import open_dataset
from segue.data.errors import DataError
from segue.data.loaders import Stream
from segue.data.store import File, Store

FILES = {"images/a.png": b"\x89PNG a" * 40, "images/deep/b.png": b"b" * 1000, "labels/a.png": b"", "note.txt": b"hello"}


def tree(root: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path: Path, files: dict[str, bytes] = FILES, start: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(start + name, data)
    return path


def tarred(path: Path, files: dict[str, bytes] = FILES, start: str = "", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        file.add(tree(path.parent / "for_tar", files), start or ".")
    return path


def content(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.files() if not name.endswith(".zip")}


def test_every_kind_of_root_holds_the_same_files(tmp_path: Path) -> None:
    roots = [
        tree(tmp_path / "loose"),
        zipped(tmp_path / "a.zip"),
        zipped(tmp_path / "b.ZIP", method=zipfile.ZIP_STORED),
        zipped(tmp_path / "c.zip", start="real/camvid/") / "real/camvid",
        tarred(tmp_path / "d.tar"),
        tarred(tmp_path / "e.tar", start="inner") / "inner",
        zipped(tmp_path / "folder/images.zip").parent,
    ]
    for root in roots:
        store = Store(root)
        assert content(store) == FILES, root
        assert sorted(store.files("images")) == ["images/a.png", "images/deep/b.png"]
        assert store.has("note.txt") and not store.has("note") and not store.has("images")
        assert File(store, "note.txt").read() == b"hello" and File(store, "note.txt").size() == 5
        assert content(pickle.loads(pickle.dumps(store))) == FILES
    assert str(File(Store(roots[0]), "note.txt")) == f"{tmp_path}/loose/note.txt"
    assert str(File(Store(roots[3]), "note.txt")) == f"{tmp_path}/c.zip:real/camvid/note.txt"
    last = Store(roots[6])
    list(last.files())
    assert str(File(last, "note.txt")) == f"{tmp_path}/folder/images.zip:note.txt"


def test_archives_count_as_unpacked_where_they_lie_and_loose_files_win(tmp_path: Path) -> None:
    tree(tmp_path, {"images/a.png": b"loose", "raw/x.txt": b"x"})
    zipped(tmp_path / "1.zip", {"images/a.png": b"packed", "images/b.png": b"first"})
    zipped(tmp_path / "2.zip", {"images/b.png": b"second"})
    zipped(tmp_path / "raw/drive/3.zip", {"y.txt": b"y"})
    zipped(tmp_path / "raw/drive/deep/4.zip", {"z.txt": b"too deep"})
    store = Store(tmp_path)
    found = {"images/a.png": b"loose", "images/b.png": b"first", "raw/drive/y.txt": b"y", "raw/x.txt": b"x"}
    assert content(store) == found
    assert sorted(n for n in store.files(archives=False) if not n.endswith(".zip")) == ["images/a.png", "raw/x.txt"]


def test_archives_beside_an_unpacked_tree_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path)
    (tmp_path / "images.zip").write_bytes(b"half a download")

    def never(*_: object) -> None:
        raise AssertionError("an archive was listed")

    monkeypatch.setattr(store_module, "_archives", never)
    dataset = open_dataset("x", DatasetConfig(dataset=str(tmp_path)), "train")
    assert all(dataset.read_sample(i, True).label is not None for i in range(3))
    with pytest.raises(AssertionError):
        open_dataset("x", DatasetConfig(dataset=str(tmp_path)), "val")


def test_names_that_lead_out_and_links_are_ignored(tmp_path: Path) -> None:
    bad = {"../up.txt": b"1", "a/../../up.txt": b"2", "/etc/x": b"3", "C:/x": b"4"}
    path = zipped(tmp_path / "a.zip", {**bad, "good.txt": b"good", "back\\slash.txt": b"b"})
    with zipfile.ZipFile(path, "a") as file:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.mkdir("folder")
        file.writestr("nameless", b"5")
    path.write_bytes(path.read_bytes().replace(b"nameless", b"\0" * 8))
    assert content(Store(path)) == {"good.txt": b"good", "back/slash.txt": b"b"}
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("fifo", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
        tar.add(tree(tmp_path / "t", {"good.txt": b"good"}) / "good.txt", "../good.txt")
        tar.add(tmp_path / "t/good.txt", "./good.txt")
    assert content(Store(tmp_path / "b.tar")) == {"good.txt": b"good"}


def patched(path: Path, offset: int, value: bytes) -> Path:
    """Change bytes of the (one) entry of the central directory."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2") + offset
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path


CENTRAL_FLAGS, CENTRAL_METHOD, CENTRAL_SIZE = 8, 10, 24


def test_a_bomb_is_refused_by_what_it_declares_and_bounded_when_it_lies(tmp_path: Path) -> None:
    big = zipped(tmp_path / "big.zip", {"a.png": b"0" * 5_000_000})
    honest = patched(zipped(tmp_path / "huge.zip", {"a.png": b"0"}), CENTRAL_SIZE, struct.pack("<I", 2**30))
    with pytest.raises(DataError, match=r"huge\.zip:a\.png declares 1073741824 bytes"):
        Store(honest).read("a.png")
    patched(big, CENTRAL_SIZE, struct.pack("<I", 1000))
    with pytest.raises(DataError, match=r"big\.zip:a\.png is damaged"):
        Store(big).read("a.png")


def test_encrypted_and_unusual_members_say_so(tmp_path: Path) -> None:
    locked = patched(zipped(tmp_path / "a.zip", {"a.png": b"0"}), CENTRAL_FLAGS, b"\x01\x00")
    with pytest.raises(DataError, match=r"a\.zip:a\.png is encrypted: unpack"):
        Store(locked).read("a.png")
    odd = zipped(tmp_path / "b.zip", {"a.png": b"0" * 99}, method=zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match=r"b\.zip:a\.png is compressed by method 12, .*unpack"):
        Store(odd).read("a.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_and_a_cut_archive_are_named(tmp_path: Path, method: int) -> None:
    noise = np.random.default_rng(0).bytes(3000)
    path = zipped(tmp_path / "a.zip", {"a.png": noise}, method=method)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    with pytest.raises(DataError, match=r"a\.zip:a\.png (is damaged|cannot be read)"):
        Store(path).read("a.png")
    path.write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"a\.zip is not a readable \.zip archive"):
        Store(path).read("a.png")
    tar = tarred(tmp_path / "b.tar", {"a.png": noise})
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"b\.tar"):
        content(Store(tar))


def test_archives_without_access_to_single_files_say_unpack(tmp_path: Path) -> None:
    packed = tarred(tmp_path / "a.tar.gz", mode="w:gz")
    with pytest.raises(DataError, match=r"a\.tar\.gz gives no access to single files: unpack it"):
        Store(packed)
    packed.rename(tmp_path / "b.tar")
    with pytest.raises(DataError, match=r"b\.tar is not a readable \.tar archive"):
        Store(tmp_path / "b.tar")
    (tmp_path / "b.tar").rename(tmp_path / "c.tgz")
    with pytest.raises(DataError, match=r"split 'train' is empty.*unpack .*c\.tgz there"):
        open_dataset("gta5", DatasetConfig(root=tmp_path), "train")


def test_roots_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    zipped(tmp_path / "a.zip")
    for root, message in (
        ("no", "no folder or archive"),
        ("a.txt", "no folder"),
        ("a.zip/other", "holds no folder other"),
    ):
        with pytest.raises(DataError, match=message):
            Store(tmp_path / root)
    with pytest.raises(DataError, match=r"cannot read .*no\.png"):
        Store(tmp_path).read("no.png")
    for read in (Store(tmp_path / "a.zip").read, Store(tmp_path / "a.zip").size, Store(tmp_path).size):
        with pytest.raises(DataError, match=r"cannot read .*no\.png: No such file"):
            read("no.png")


def test_a_replaced_archive_is_listed_again(tmp_path: Path) -> None:
    assert content(Store(zipped(tmp_path / "a.zip"))) == FILES
    assert content(Store(zipped(tmp_path / "a.zip", {"new.txt": b"new"}))) == {"new.txt": b"new"}


def test_flipped_bytes_give_the_file_or_one_clear_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    for kind, whole in (("zip", zipped(tmp_path / "w.zip")), ("tar", tarred(tmp_path / "w.tar"))):
        data = whole.read_bytes()
        for number in range(150):
            damaged = bytearray(data[: rng.randrange(len(data))] if number % 3 == 0 else data)
            for _ in range(rng.randrange(1, 8) if damaged else 0):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path = tmp_path / f"{number}.{kind}"
            path.write_bytes(damaged)
            try:
                store = Store(path)
                names = list(store.files())
            except DataError as error:
                assert str(path) in str(error)
                continue
            for name in names:
                try:
                    found = store.read(name)
                except DataError as error:
                    assert str(path) in str(error)
                    continue
                assert kind == "tar" or found in FILES.values(), "a zip member has a checksum"


def test_workers_and_threads_read_archives(tmp_path: Path) -> None:
    make("cityscapes", tmp_path / "tree")
    pack("cityscapes", tmp_path / "tree", tmp_path / "packed")
    plain, packed = (open_dataset("cityscapes", DatasetConfig(root=tmp_path / n), "train") for n in ("tree", "packed"))
    batches = {}
    for workers in (0, 2):
        stream = Stream([packed], None, TransformConfig(crop=(16, 16)), (0, "s", "x"), 2, True, workers=workers)
        iterator = stream.iterate(0)
        batches[workers] = [next(iterator)[0] for _ in range(3)]
        iterator.close()  # type: ignore[attr-defined]
    assert all((a.image == b.image).all() for a, b in zip(batches[0], batches[2], strict=True))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(packed.read_image, [0, 1, 2] * 20))
    assert all((images[n] == plain.read_image(n % 3)).all() for n in range(60))


def test_a_description_in_the_root_comes_before_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path / "yard")
    for name in ("gta5", "other"):
        assert len(open_dataset(name, DatasetConfig(root=tmp_path / "yard"), "train")) == 3
    with zipfile.ZipFile(tmp_path / "gta5.zip", "w") as file:
        for path in (p for p in (tmp_path / "yard").rglob("*") if p.is_file()):
            file.write(path, path.relative_to(tmp_path).as_posix())
    inner = tmp_path / "gta5.zip/yard"
    for config in (DatasetConfig(root=inner), DatasetConfig(dataset=str(inner))):
        dataset = open_dataset("gta5", config, "train")
        assert len(dataset) == 3 and dataset.space.classes == ("road", "grass")
        assert dataset.describe(0) == f"{tmp_path}/gta5.zip:yard/images/train/0.png"
    monkeypatch.setenv("SEGUE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path / "yard")
    with pytest.raises(DataError, match=r"below .*gta5\.zip .which holds: yard;"):
        open_dataset("gta5", DatasetConfig(), "train")
    with zipfile.ZipFile(tmp_path / "gta5.zip", "a") as file:
        file.writestr("dataset.yaml", b"\xff")
    with pytest.raises(DataError, match=r"gta5\.zip:dataset\.yaml is not a text file"):
        open_dataset("gta5", DatasetConfig(), "train")
