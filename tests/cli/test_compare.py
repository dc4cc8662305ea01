"""``segue compare`` on runs that ``segue run`` made."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from helpers.command import process, refused, segue


def test_compare(trained: Path, tmp_path: Path) -> None:
    done = segue("compare", trained, "--csv", tmp_path / "c.csv", "--html", tmp_path / "c.html")
    assert done.code == 0, done
    assert "first" in done.out and "second" in done.out and "absent" in done.out and "protocol native" in done.out
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    stored = [json.loads(p.read_text()) for p in sorted((trained / "stages").glob("*/stage.json"))]
    assert [float(r["miou"]) for r in rows] == [float(f"{s['evaluations']['city:val']['miou']:.6g}") for s in stored]
    assert all(float(r["wall_s_per_100"]) > 0 and float(r["cpu_s_per_100"]) > 0 for r in rows)
    assert rows[1]["against"] == "1" and rows[1]["gain_low"]
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")
    refused(segue("compare", tmp_path), "run.json")
    refused(segue("compare", trained, "--data", "fog:val"), "fog:val")


def test_long_names_leave_room_for_the_numbers(trained: Path, tmp_path: Path) -> None:
    folders = [tmp_path / f"{'a_run_with_a_long_name_' * 5}{k}" for k in range(2)]
    for folder in folders:
        shutil.copytree(trained, folder)
    done = segue("compare", *folders)
    assert done.code == 0, done
    head = next(line for line in done.out.splitlines() if " stage " in line)
    assert all(f"┃ {name} ┃" in head for name in ("mIoU", "accuracy")), head


def test_compare_imports_no_torch(trained: Path, tmp_path: Path) -> None:
    code = "import atexit\natexit.register(lambda: print('torch', 'torch' in sys.modules))"
    done = process("compare", trained, "--html", tmp_path / "c.html", code=code)
    assert done.code == 0 and done.out.splitlines()[-1] == "torch False", done
