"""Recipes of ``follow``: all are sound, and all run on miniatures with a small network."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.miniatures import make
from segue import recipes
from segue.data import scenes
from segue.files import read_json
from segue.jobs.checks import check_settings
from segue.jobs.run import run

FOLDER = "follow/"
ALL = [name for name in recipes.shipped() if name.startswith(FOLDER)]
KITTI = [name for name in ALL if "kitti360" in name]
SHORT = [
    "train.batch_size=2",
    "train.workers=0",
    "train.precision=32",
    "train.iterations=1",
    "train.checkpoint_every=50",
    "evaluate.samples=1",
    "threads=1",
]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of 64x128 in the layouts of Cityscapes and KITTI-360 (train is drive 0000)."""
    root = tmp_path_factory.mktemp("trees")
    for layout, domain in (("cityscapes", "game"), ("kitti360", "city")):
        for split in ("train", "val"):
            look = scenes.domain(domain)
            scenes.write(root / layout, num=4, seed=1, domain=look, size=(64, 128), layout=layout, split=split)
    return root


def finished(folder: Path) -> list[str]:
    files = sorted(folder.glob("stages/*/stage.json"), key=lambda path: int(path.parent.name.partition("_")[0]))
    stages = [read_json(path) for path in files]
    assert stages and all(stage["status"] == "finished" for stage in stages)
    followed = [stage for stage in stages if stage.get("follow")]
    assert followed and all(stage["follow"]["images"] for stage in followed)
    return [stage["name"] for stage in stages]


def shortened(name: str, settings: list[str]) -> list[str]:
    """Overrides that make every stage one iteration long, and the stream two buckets at most."""
    given = recipes.load(name, environment={})
    names = dict.fromkeys(s.follow.group or s.name if s.follow else s.name for s in given.stages)
    out = [*settings, *SHORT, *(f"stages.{stage}.train.iterations=1" for stage in names)]
    many = {s.follow.group for s in given.stages if s.follow and s.follow.total > 2}
    return [*out, *(f"stages.{group}.rounds=2" for group in many)]


@pytest.mark.parametrize("name", ALL)
def test_settings_are_sound_and_the_first_line_is_the_command(name: str) -> None:
    check_settings(recipes.load(name, environment={}))
    first = recipes.shipped()[name].read_text("utf-8").splitlines()[0]
    assert first.split()[:4] == ["#", "segue", "run", name]


@pytest.mark.parametrize(
    "name",
    [n if n == f"{FOLDER}cityscapes_kitti360" else pytest.param(n, marks=pytest.mark.slow) for n in KITTI],
)
def test_cityscapes_to_kitti360(name: str, trees: Path, tmp_path: Path) -> None:
    roots = {"cityscapes": "cityscapes", "kitti360": "kitti360", "stream": "kitti360"}
    settings = [f"data.{data}.root={trees / folder}" for data, folder in roots.items()]
    settings += ["model.encoder=resnet18", "model.weights=null", "model.channels=8", "transform.crop=[64,64]"]
    settings += ["stages.source.transform.crop=[64,64]"]
    published = recipes.load(name, environment={})
    for group in {s.follow.group for s in published.stages if s.follow}:
        settings += [f"stages.{group}.follow.filters.class_count_min=1"]
        settings += [f"stages.{group}.pseudo_labels.target.entropy_max=3"]
        settings += [] if name == f"{FOLDER}cityscapes_kitti360" else [f"stages.{group}.follow.buckets=2"]
    given = recipes.load(name, shortened(name, settings), environment={})
    names = finished(run(given, tmp_path / "run", device="cpu").folder)
    assert names == [s.name for s in given.stages]


@pytest.mark.slow
def test_one_bucket(trees: Path, tmp_path: Path) -> None:
    kitti = f"data.kitti360.root={trees / 'kitti360'}"
    small = ["model.encoder=resnet18", "model.channels=8"]
    source = {
        "name": "source",
        "labels": "cityscapes19",
        "model": {"name": "deeplabv3plus", "encoder": "resnet18", "decoder_convs": 1, "channels": 8},
        "data": {"cityscapes": {"root": str(trees / "cityscapes")}},
        "train": {"iterations": 1, "batch_size": 2},
        "transform": {"crop": [64, 64]},
        "stages": [{"name": "source", "method": "supervised", "data": {"source": "cityscapes:train"}}],
    }
    start = run(recipes.load(source), tmp_path / "source", device="cpu").folder
    name, where = f"{FOLDER}one_bucket", "stages.bucket"
    settings = [kitti, *small, f"{where}.start={start}", f"{where}.references.source={start}"]
    settings += [f"{where}.pseudo_labels.target.models=[{start}]", f"{where}.pseudo_labels.target.entropy_max=3"]
    settings += ["transform.crop=[64,64]"]
    given = recipes.load(name, shortened(name, settings), environment={})
    assert finished(run(given, tmp_path / "run", device="cpu").folder) == ["bucket_1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if "scenes" in name])
def test_scenes_that_drift(name: str, tmp_path: Path) -> None:
    settings = ["model.width=0.125", "transform.crop=[64,64]"]
    for data, domain, to, split in (
        ("game", "game", None, "train"),
        ("game", "game", None, "val"),
        ("drift", "game", "city", "train"),
        ("city", "city", None, "val"),
    ):
        drifts = {} if to is None else {"to": scenes.domain(to)}
        root = tmp_path / data
        scenes.write(root, num=4, seed=1, domain=scenes.domain(domain), size=(64, 96), split=split, **drifts)
        settings.append(f"data.{data}.root={root}")
    given = recipes.load(name, shortened(name, settings), environment={})
    assert finished(run(given, tmp_path / "run", device="cpu").folder) == [s.name for s in given.stages]


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{FOLDER}camvid_idd", f"{FOLDER}corruptions"])
def test_real_streams(name: str, tmp_path: Path) -> None:
    make("camvid", tmp_path / "camvid")
    make("idd_lite", tmp_path / "idd_lite")
    published = recipes.load(name, environment={})
    settings = ["model.encoder=mobilenetv3_small_050", "model.weights=null", "transform.crop=[64,64]"]
    for data, config in published.data.items():
        folder = config.dataset or data
        settings += [f"data.{data}.root={tmp_path / folder}", f"data.{data}.size=[64,96]", f"data.{data}.include=[]"]
    settings.append("stages.followed.pseudo_labels.target.entropy_max=3")
    given = recipes.load(name, shortened(name, settings), environment={})
    assert finished(run(given, tmp_path / "run", device="cpu").folder) == [s.name for s in given.stages]
