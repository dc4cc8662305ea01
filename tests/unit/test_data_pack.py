"""``segue data pack``: one archive, equal bytes each time, opened in place and after any unzip."""

from __future__ import annotations

import resource
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.command import files, refused, segue
from helpers.miniatures import make, own
from segue.config import DatasetConfig
from segue.data import audit
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.pack import Options, pack
from segue.labels import load_space

SIZE = (16, 24)
NAMES = ("camvid", "idd_lite")


def opened(name: str, root: Path, split: str = "train", space: str | None = None, size: bool = False) -> Dataset:
    config = DatasetConfig(root=root, size=SIZE if size else None)
    return open_dataset(name, config, split, load_space(space) if space else None)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    for name in NAMES:
        make(name, tmp_path / name)
    return {name: tmp_path / name for name in NAMES}


def test_opens_in_place_and_unpacked(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "real.zip"
    packed = pack(NAMES, out, Options(SIZE, quality=95), roots=sources)
    assert [p.folder for p in packed] == list(NAMES)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked")
    for name in NAMES:
        for root in (out / name, tmp_path / "unpacked" / name):
            for split in ("train", "val") if name == "camvid" else ("train", "val", "test"):
                source, copy = opened(name, sources[name], split, "street7", True), opened(name, root, split, "street7")
                assert copy.ids == source.ids and copy.labelled == source.labelled
                assert cv2.PSNR(copy.read_image(1), source.read_image(1)) > 30
                if split == "val":
                    assert np.array_equal(copy.read_label(1), source.read_label(1)), (
                        "scored: the label's own resolution"
                    )
                elif split == "train":
                    assert copy.read_label(1).shape == SIZE
            assert audit.check(name, root=root) == []


def test_equal_input_gives_equal_bytes(sources: dict[str, Path], tmp_path: Path) -> None:
    outs = [tmp_path / f"{workers}.zip" for workers in (1, 3)]
    for workers, out in zip((1, 3), outs, strict=True):
        pack(NAMES[::-1] if workers == 3 else NAMES, out, Options(SIZE, workers=workers), roots=sources)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with zipfile.ZipFile(outs[0]) as archive:
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert len({i.filename for i in archive.infolist()}) == len(archive.infolist())


def test_lossless_limit_and_shared_images(tmp_path: Path) -> None:
    make("gta5", tmp_path / "gta5")
    out = tmp_path / "a.zip"
    pack(["gta5"], out, Options(SIZE, lossless=True), roots={"gta5": tmp_path / "gta5"}, splits=("train", "val"))
    source, copy = opened("gta5", tmp_path / "gta5", size=True), opened("gta5", out / "gta5")
    assert all(np.array_equal(copy.read_image(i), source.read_image(i)) for i in range(len(source)))
    with zipfile.ZipFile(out) as archive:
        assert sum(n.startswith("gta5/images/") for n in archive.namelist()) == len(source), "val is part of train"
    assert opened("gta5", out / "gta5", "val").ids == opened("gta5", tmp_path / "gta5", "val").ids
    pack(["gta5:train"], out, Options(SIZE), roots={"gta5": tmp_path / "gta5"}, limit=2)
    assert opened("gta5", out / "gta5").ids == source.ids[::2]


def test_faults_leave_the_old_archive(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "real.zip"
    pack(NAMES, out, Options(SIZE), roots=sources)
    before = out.read_bytes()
    command = ["data", "pack", *NAMES, "--size", "16x24", "--out", out]
    roots = [word for name, root in sources.items() for word in ("--root", f"{name}={root}")]
    refused(segue(*command, "--root", "camvid"), "NAME=PATH")
    refused(segue(*command, *roots, "--root", "cityscapes=x"), "'cityscapes'", "not packed")
    refused(segue(*command, *roots, "--split", "night"), "no split 'night'")
    refused(segue("data", "pack", "camvid", "camvid", "--size", "16x24", "--out", out, *roots[:2]), "the same folder")
    refused(segue("data", "pack", "camvid", "--size", "16x24", "--out", tmp_path / "a.tar", *roots[:2]), "FILE.zip")
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, kept[1]))
    try:
        with pytest.raises(DataError, match=r"disk is full: .*real\.zip was not written"):
            pack(NAMES, out, Options(SIZE), roots=sources)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    image = next(sources["camvid"].glob("train/**/*.png"))
    image.write_bytes(image.read_bytes()[:40])
    refused(segue(*command, *roots), str(image))
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_command_says_how_to_use_it(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "real.zip"
    done = segue("data", "pack", "camvid", "--size", "16x24", "--out", out, "--root", f"camvid={sources['camvid']}")
    assert done.code == 0, done
    assert f"data.NAME.root={out}/camvid" in done.out
    checked = segue("data", "check", "camvid", "--root", out / "camvid", "--workers", 0)
    assert checked.code == 0 and "0 problems" in checked.err


def test_an_archive_never_writes_outside(tmp_path: Path) -> None:
    root = own(tmp_path / "yard")
    before = files(tmp_path)
    out = tmp_path / "evil.zip"
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(path, f"yard/{path.relative_to(root)}")
        for name in ("../escaped.png", "/escaped.png", "yard/../../escaped.png", "yard/images/train/../../../x.png"):
            archive.writestr(name, b"x")
    dataset = opened("yard", out / "yard")
    assert dataset.ids == ["0", "1", "2"]
    assert audit.check(str(out / "yard")) == []
    out.unlink()
    assert files(tmp_path) == before
