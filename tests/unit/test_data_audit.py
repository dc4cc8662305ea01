"""``segue data check`` and ``show``: every kind by name, exit codes, JSON, worker processes, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.command import refused, segue, start
from helpers.miniatures import SIZE, make, own, picture, save
from segue.data import audit, images
from segue.data.reference import open_splits
from segue.data.show import show


def damaged(root: Path) -> Path:
    """A data set with one fault of many kinds; returns its folder."""
    own(root, 12)
    train, labels = root / "images/train", root / "labels/train"
    (train / "0.png").write_bytes(b"<html>404</html>")
    (train / "1.png").write_bytes((train / "1.png").read_bytes()[:60])
    (train / "2.png").unlink()
    (train / "2.png").mkdir()
    (train / "3.png").write_bytes(b"")
    save(labels / "4.png", np.ones((SIZE[0], SIZE[1] - 1), np.uint8))
    save(labels / "5.png", np.full(SIZE, 9, np.uint8))
    (labels / "6.png").unlink()
    save(labels / "7.png", np.full(SIZE, 7, np.uint8))
    (train / "8.png").write_bytes((train / "9.png").read_bytes())
    images.write_image(root / "images/val/10.png", images.read_rgb(train / "10.png"))
    data = (train / "11.png").read_bytes()
    (train / "11.png").write_bytes(data[:33] + b"\0\0\0\x01tEXtx\0\0\0\0" + data[33:])
    return root


EXPECTED = {
    ("unreadable", "0.png"),
    ("unreadable", "1.png"),
    ("unreadable", "2.png"),
    ("no_image", "2.png"),
    ("unreadable", "3.png"),
    ("mismatch", "4.png"),
    ("values", "5.png"),
    ("no_label", "6.png"),
    ("empty", "7.png"),
    ("duplicate", "9.png"),
    ("damaged", "11.png"),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_each_kind_is_named_once(workers: int, tmp_path: Path) -> None:
    root = damaged(tmp_path / "data")
    found = list(audit.problems(open_splits(str(root)), workers=workers))
    kinds = {(p.kind, Path(p.file).name) for p in found if p.split == "train"}
    assert kinds == EXPECTED
    assert len(found) == len(EXPECTED) + 1
    # another encoder's file with the same picture, in another split
    (leak,) = [p for p in found if p.split == "val"]
    assert leak.kind == "duplicate" and "in split train" in leak.message
    assert all(Path(p.file).name in p.message for p in found)


def test_command_counts_by_kind_and_writes_json(tmp_path: Path) -> None:
    root = damaged(tmp_path / "data")
    out = tmp_path / "found.json"
    done = segue("data", "check", root, "--workers", 0, "--json", out)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "12 images; 11 problems (" in done.err and "1 warning (1 empty)" in done.err
    assert "4 unreadable" in done.err and "exclude" in done.err
    written = json.loads(out.read_text())
    assert len(written["problems"]) == 12 and written["images"] == written["total"] == 12
    assert {tuple(p) for p in written["problems"]} == {("kind", "split", "file", "message", "warning")}
    assert len(done.out.splitlines()) == 12


def test_a_flipped_bit_of_a_jpeg_that_the_decoder_notices(tmp_path: Path) -> None:
    root = own(tmp_path / "data", 1)
    yaml = root / "dataset.yaml"
    yaml.write_text(yaml.read_text().replace("{key}.png'\nlabels", "{key}.jpg'\nlabels"))
    path = root / "images/train/0.jpg"
    images.write_image(path, picture(0, (240, 320)))
    save(root / "labels/train/0.png", np.ones((240, 320), np.uint8))
    whole = path.read_bytes()
    assert audit.check(str(root)) == []
    counts = {"damaged": 0, "unreadable": 0, "": 0}
    for n in range(40):
        data = bytearray(whole)
        data[len(whole) // 2 + 7 * n] ^= 4
        path.write_bytes(bytes(data))
        found = audit.check(str(root))
        counts[found[0].kind if found else ""] += 1
    assert counts["damaged"] > 0, "the decoder's complaints count"


def test_decoders_do_not_write_to_standard_error(tmp_path: Path) -> None:
    root = own(tmp_path / "data", 1)
    path = root / "images/train/0.png"
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    code = f"from segue.data import audit; print(len(audit.check({str(root)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = own(tmp_path / "data")
    real = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name == "1.png" and "labels" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", denied)  # the superuser may read everything, whatever the mode says
    (problem,) = audit.check(str(root))
    assert problem.kind == "unreadable" and "labels/train/1.png: Permission denied" in problem.message


def test_ctrl_c_tells_what_was_found_so_far(tmp_path: Path) -> None:
    root = own(tmp_path / "data", 40)
    (root / "images/train/0.png").write_bytes(b"")
    slow = (
        "import time\n"
        "from segue.data import audit\n"
        "real = audit._check_one\n"
        "def check(*place):\n"
        "    time.sleep(0.2)\n"
        "    return real(*place)\n"
        "audit._check_one = check\n"
    )
    running = start("data", "check", root, "--workers", 0, "--json", tmp_path / "found.json", code=slow)
    assert running.stdout is not None
    first = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert "0.png" in first
    assert running.returncode == 130
    assert "stopped after" in err and "of 40 images; 1 problem (1 unreadable)" in err
    assert "Traceback" not in err
    assert len(json.loads((tmp_path / "found.json").read_text())["problems"]) == 1


MODULE = """
import numpy as np
class Frames:
    def __init__(self, split="train"):
        self.split = split
    def __len__(self):
        return 3
    def __getitem__(self, i):
        label = np.full((24, 32), i % 2)
        if self.split == "bad" and i == 1:
            label[0, 0] = 99
        return np.full((24, 32, 3), 50 * i, np.uint8), label
"""


def test_python_classes_are_checked_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audited_frames.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    name = "python:audited_frames:Frames"
    assert audit.check(f"{name}:val", labels="street7") == []
    done = segue("data", "check", f"{name}:bad", "--labels", "street7", "--workers", 0)
    assert done.code == 2
    assert "values     [bad] item 1 of audited_frames:Frames" in done.out
    page = show(f"{name}:val", tmp_path / "page.html", labels="street7").read_text()
    assert page.count("<img") == 6


def test_page_of_an_archive_is_small(tmp_path: Path) -> None:
    make("idd_lite", tmp_path / "idd_lite")
    archive = tmp_path / "a.zip"
    done = segue("data", "pack", tmp_path / "idd_lite", "--size", "16x24", "--out", archive)
    refused(done, "dataset.yaml")
    root = f"idd_lite={tmp_path / 'idd_lite'}"
    assert segue("data", "pack", "idd_lite", "--size", "16x24", "--out", archive, "--root", root).code == 0
    out = tmp_path / "page.html"
    assert segue("data", "show", archive / "idd_lite:val", "--out", out, "--labels", "camvid11").code == 0
    page = out.read_text()
    assert len(page) < 5_000_000 and page.count("<img") == 6
    assert "From street7 to camvid11" in page and "Colours of street7" in page and "http" not in page


def test_a_page_of_large_noise_stays_small(tmp_path: Path) -> None:
    root = own(tmp_path / "data", 12)
    for n in range(12):
        noise = np.random.default_rng(n).integers(0, 256, (1400, 400, 3), dtype=np.uint8)
        save(root / f"images/train/{n}.png", noise)
        save(root / f"labels/train/{n}.png", np.random.default_rng(n).integers(1, 3, (1400, 400), dtype=np.uint8))
    assert show(str(root), tmp_path / "page.html").stat().st_size <= 5_000_000
