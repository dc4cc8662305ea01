"""Damaged files through ``data check``, the training stream, prediction and evaluation.

For each: whoever cannot use the file says so in one ``UserError`` that names it; no other exception gets out, ``data
check`` names whatever any reader refuses, and what was done before stays. What is undetectable in principle, and
counted here: bits of JPEG data whose change decodes to another legal picture. A PNG has checksums: where no one
complains, it must show the same pixels.
"""

from __future__ import annotations

import resource
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from fuzz.damage import CHECKED, FAMILIES, LABEL, LEGAL, NAMED, PNG, SIZE, Damage, picture
from helpers.miniatures import picture as other_picture
from helpers.miniatures import save
from segue.config import DatasetConfig, TransformConfig
from segue.data import audit
from segue.data.dataset import Dataset, open_dataset
from segue.data.loaders import Stream
from segue.errors import UserError
from segue.models.base import ModelConfig, Output, SegModel
from segue.predict import predict_folder
from segue.scoring import score

SEEDS = {"cut": 25, "flip": 60, "overwrite": 12, "type": 1, "huge": 1, "label": 1, "legal": 1}
"""Drawings of each damage of a family."""

YAML = """name: yard
classes: [{name: road, color: [128, 64, 128], id: 1}, {name: grass, color: [0, 200, 0], id: 2}]
image: ["images/{split}/{key}.png", "images/{split}/{key}.jpg"]
labels: [{path: "labels/{split}/{key}.png", ids: {1: road, 2: grass, 7: null}}]
splits: {train: {}}
"""


class Tiny(SegModel):
    """One convolution: what is tested is everything around it."""

    multiple = 1

    def __init__(self) -> None:
        super().__init__(ModelConfig(name="tiny"), 2)
        self.classifier = nn.Conv2d(3, 2, 1)

    def decode(self, x: Tensor) -> Output:
        """Logits at full size."""
        return Output(logits=self.classifier(x), embedding=x)

    def classifiers(self) -> dict[str, nn.Conv2d]:
        """The one layer."""
        return {"classifier": self.classifier}


MODEL = Tiny()


def lay_out(root: Path, damage: Damage, content: bytes) -> Path:
    """Two images with labels, of which one file is the damaged one; returns its path."""
    files = {
        "images/train/a.png": PNG,
        "labels/train/a.png": LABEL,
        f"images/train/b{damage.suffix if damage.role == 'image' else '.png'}": PNG,
        "labels/train/b.png": LABEL,
    }
    root.mkdir()
    (root / "dataset.yaml").write_text(YAML)
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    save(root / "images/train/a.png", other_picture(3, SIZE))
    path = root / f"{damage.role}s/train/b{damage.suffix}"
    path.write_bytes(content)
    return path


def refusal(use: Callable[[], object], path: Path) -> str:
    """The message with which ``use`` refuses, "" when it works; any other exception gets out and fails the test."""
    try:
        use()
    except UserError as error:
        assert path.name in str(error), error
        assert str(path.parent) in str(error), error
        return str(error)
    return ""


def opened(root: Path) -> Dataset:
    return open_dataset("yard", DatasetConfig(root=root), "train")


def train(root: Path) -> None:
    """One batch of both images."""
    stream = Stream([opened(root)], None, TransformConfig(crop=(16, 16)), (0, "fuzz", "source"), 2, True, 0)
    next(stream.iterate())


def evaluate(root: Path) -> None:
    dataset = opened(root)
    score.evaluate(MODEL, dataset, dataset.space)


def predict(root: Path) -> None:
    """All images; whatever happens to the damaged one, the other is predicted."""
    written = root.parent / "predictions"
    try:
        predict_folder(MODEL, opened(root).space, root / "images", written, format="trainid")
    finally:
        assert (written / "train/a.png").is_file(), "the prediction of the whole picture is lost"


def try_out(root: Path, damage: Damage, seed: int) -> str:
    """Run everything on one damaged file, assert what must hold; "found", "legal" or "unseen"."""
    path = lay_out(root, damage, damage.make(np.random.default_rng([seed, len(damage.name)])))
    found = audit.check(str(root))
    named = [p for p in found if path.name in p.message and not p.warning]
    assert len(named) == len([p for p in found if not p.warning]), found
    uses = (train, evaluate, predict) if damage.role == "image" else (train, evaluate)
    refused = {use.__name__: refusal(lambda use=use: use(root), path) for use in uses}  # type: ignore[misc]
    context = f"{damage.name}, seed {seed}: check says {found}, refused by {refused}"
    if any(refused.values()):
        assert named, context
    if damage.expect == NAMED:
        assert all(refused.values()), context
    if damage.expect in (NAMED, CHECKED):
        assert named, context
    if damage.expect == LEGAL:
        assert not found, context
        return "legal"
    if named:
        return "found"
    if damage.role == "label" or path.suffix == ".png":
        whole = picture() if damage.role == "image" else audit_ids(root, 0)
        now = opened(root).read_image(1) if damage.role == "image" else audit_ids(root, 1)
        assert np.array_equal(now, whole), f"other pixels, and nobody complains: {context}"
    return "unseen"


def audit_ids(root: Path, index: int) -> np.ndarray:
    return opened(root).read_label(index)


def run_family(family: str, seeds: int, tmp_path: Path) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for damage in FAMILIES[family]:
        for seed in range(seeds):
            outcome = try_out(tmp_path / f"{damage.role}{sum(outcomes.values())}", damage, seed)
            outcomes[f"{damage.name}: {outcome}" if outcome == "unseen" else outcome] += 1
    return outcomes


@pytest.mark.parametrize("family", FAMILIES)
def test_damaged_files(family: str, tmp_path: Path) -> None:
    outcomes = run_family(family, SEEDS[family], tmp_path)
    unseen = {k: n for k, n in outcomes.items() if k.endswith("unseen")}
    if family not in ("flip", "overwrite"):
        assert not unseen
    jpeg = unseen.pop("flipped bit of a jpg image: unseen", 0)
    assert jpeg < SEEDS["flip"], "some flipped bits of JPEG data must be found"


def test_at_least_500_are_damaged() -> None:
    assert sum(SEEDS[f] * sum(d.expect != LEGAL for d in FAMILIES[f]) for f in FAMILIES) >= 500


def test_huge_headers_cost_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns, then refuses
        run_family("huge", 1, tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "in KB; the smallest asks for 300 MB"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cut", "flip", "overwrite"])
def test_many_more_damaged_files(family: str, tmp_path: Path) -> None:
    print(family, dict(run_family(family, 600, tmp_path)))
