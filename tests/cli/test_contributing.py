"""The examples of CONTRIBUTING.md, executed as they stand: one file each, and nothing else is edited."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.recipes import recipe
from segue import recipes
from segue.config import DatasetConfig
from segue.data import audit
from segue.data.dataset import open_dataset
from segue.jobs.run import run
from segue.labels import load_space
from segue.tasks import load_task

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")


def block(kind: str, after: str) -> str:
    """The first fenced block of a kind after a heading."""
    found = re.search(rf"## {after}.*?```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert found, f"CONTRIBUTING.md has no {kind} block under {after!r}"
    return found[1]


SCRIPT = """
import segue.methods, segue.models
segue.methods.__path__.append("methods")
segue.models.__path__.append("models")
from segue.cli import app
for name in ("method", "model"):
    app(["run", f"{name}.yaml", "--out", name, "--device", "cpu"], standalone_mode=False)
"""


def test_add_a_method_and_a_model(scene_data: Path, tmp_path: Path) -> None:
    """In a process of its own, in which the examples are part of the packages."""
    method = recipe(scene_data, "fda")  # the same streams
    method["stages"][1]["method"] = "target_entropy"
    model = recipe(scene_data) | {"model": {"name": "plain"}}
    for kind, file, given in (("method", "target_entropy", method), ("model", "plain", model)):
        (tmp_path / f"{kind}s").mkdir()
        (tmp_path / f"{kind}s/{file}.py").write_text(block("python", f"Add a {kind}"))
        (tmp_path / f"{kind}.yaml").write_text(recipes.yaml.safe_dump(given))
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert '"loss/entropy"' in (tmp_path / "method/stages/1_second/metrics.jsonl").read_text()
    assert (tmp_path / "model/report.html").exists()


def test_add_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(block("yaml", "Add a data set"))
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            for folder, shape, top in (("photos", (40, 60, 3), 256), ("masks", (40, 60), 3)):
                path = tmp_path / folder / split / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, top, shape, np.uint8)).save(path)
    assert audit.check(str(tmp_path)) == []
    dataset = open_dataset(str(tmp_path), DatasetConfig(), "train", load_space("cityscapes19"))
    assert set(np.unique(dataset.read_label(0))) == {8, 9, 255}


def test_the_added_method_would_be_found_missing(scene_data: Path, tmp_path: Path) -> None:
    given = recipe(scene_data, "fda")
    given["stages"][1]["method"] = "target_entropy"
    with pytest.raises(recipes.ConfigError, match="target_entropy"):
        run(recipes.load(given), tmp_path, device="cpu")


RANKED = """
import numpy as np
import segue.acquire as package
package.__path__.append({folder!r})
from segue.acquire import ACQUISITIONS, RegionTable, build_acquisition
keys = dict(image=[0, 0, 0], region=[0, 1, 2], area_px=[9, 9, 9], predicted=[0, 0, 1])
pool = RegionTable.build(["a"], 2, **keys, statistics={{"prob": np.array([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]])}})
none = pool.take([])
print(*build_acquisition({{"name": "surprise"}}).rank(pool, none, none, 27, np.random.default_rng(0)))
"""


def test_add_an_acquisition(tmp_path: Path) -> None:
    (tmp_path / "surprise.py").write_text(block("python", "Add an acquisition"))
    done = subprocess.run(
        [sys.executable, "-c", RANKED.format(folder=str(tmp_path))], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1", "2", "0"], done.stderr


def test_add_a_task(tmp_path: Path) -> None:
    (tmp_path / "street.yaml").write_text(block("yaml", "Add a task"))
    task = load_task(tmp_path / "street.yaml")
    assert task.steps == 2 and len(task.space(1)) == 11 and len(task.space(None)) == 19
