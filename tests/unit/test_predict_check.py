"""Faults of a submission folder, each planted and each named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segue import api
from segue.errors import UserError
from segue.labels import load_space

CITY = load_space("cityscapes19")
NAMES = ("ulm/ulm_000000_000019", "ulm/ulm_000001_000019", "bonn/bonn_000000_000019")
SIZE = (20, 30)


def _save(path: Path, values: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """``in`` with three images and ``out`` with the predictions a server wants."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        _save(tmp_path / f"in/{name}_leftImg8bit.png", rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8))
        _save(tmp_path / f"out/{name}.png", CITY.to_label_ids(rng.integers(0, 19, SIZE).astype(np.uint8)))
    return tmp_path


def test_a_good_folder_passes_nested_flat_and_as_train_ids(made: Path) -> None:
    assert api.check_predictions(made / "out", made / "in") == 3
    for path in sorted((made / "out").rglob("*.png")):
        ids = np.asarray(Image.open(path))
        _save(made / "flat" / path.name, ids)
        _save(made / "train" / path.name, np.searchsorted(CITY.ids, ids).astype(np.uint8))
    assert api.check_predictions(made / "flat", made / "in") == 3
    assert api.check_predictions(made / "train", made / "in", encoding="trainid") == 3
    with pytest.raises(UserError, match="these are train ids, the server wants label ids"):
        api.check_predictions(made / "train", made / "in")
    with pytest.raises(UserError, match="hold label ids, train ids are wanted"):
        api.check_predictions(made / "out", made / "in", encoding="trainid")


FIRST = f"{NAMES[0]}.png"
PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda out: (out / FIRST).unlink(), r"no prediction for .*ulm_000000_000019_leftImg8bit\.png"),
    "extra": (lambda out: _save(out / "paris_000000_000019.png", np.zeros(SIZE, np.uint8)), "paris.* no image"),
    "other": (lambda out: (out / "notes.txt").write_text("x"), r"notes\.txt is no PNG"),
    "size": (lambda out: _save(out / FIRST, np.zeros((10, 15), np.uint8)), "is 15x10 pixels, the image 30x20"),
    "colour": (lambda out: _save(out / FIRST, np.zeros((*SIZE, 3), np.uint8)), "holds colours"),
    "16 bits": (lambda out: _save(out / FIRST, np.zeros(SIZE, np.uint16)), "holds 16-bit numbers"),
    "alpha": (lambda out: _save(out / FIRST, np.zeros(SIZE, np.uint8), "LA"), "grey with transparency"),
    "ids": (lambda out: _save(out / FIRST, np.full(SIZE, 77, np.uint8)), "holds 77: no labelid"),
    "void": (lambda out: _save(out / FIRST, np.full(SIZE, 255, np.uint8)), "holds 255: no labelid"),
    "cut": (lambda out: (out / FIRST).write_bytes((out / FIRST).read_bytes()[:60]), "ends early"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_each_fault_is_named(made: Path, fault: str) -> None:
    plant, words = PLANTED[fault]
    plant(made / "out")
    with pytest.raises(UserError, match=rf"a fault in .*out\n.*{words}") as caught:
        api.check_predictions(made / "out", made / "in")
    assert len(str(caught.value).splitlines()) == 2


def test_all_faults_at_once(made: Path) -> None:
    PLANTED["size"][0](made / "out")
    PLANTED["other"][0](made / "out")
    (made / f"out/{NAMES[1]}.png").unlink()
    with pytest.raises(UserError, match="3 faults") as caught:
        api.check_predictions(made / "out", made / "in")
    assert len(str(caught.value).splitlines()) == 4


def test_two_files_for_one_image_and_what_to_compare_with(made: Path) -> None:
    _save(made / f"out/{NAMES[0]}_old.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(UserError, match="could both be the prediction"):
        api.check_predictions(made / "out", made / "in")
    with pytest.raises(UserError, match="say which images"):
        api.check_predictions(made / "out")
    with pytest.raises(UserError, match="no folder"):
        api.check_predictions(made / "none", made / "in")
