"""Entropy, confidence, quantiles and image rules against the definitions in float64, alone and together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.toys import SPACE, Pictures, Toy
from segue.data.dataset import Dataset
from segue.data.images import read_ids
from segue.errors import UserError
from segue.pseudo_labelling import ImageRules, PseudoLabelConfig
from segue.pseudo_labels import generate

SLACK = 1e-3  # of a confidence: the width of a code, and float32
ALL = {"quantile": 0.4, "quantiles": {"b": 0.7, "c": 0.0}, "cap": 0.95, "entropy_max": 0.9, "confidence_min": 0.5}


class Drawn(Dataset):
    """Smooth random pictures of three sizes, one of them of one colour."""

    def __init__(self) -> None:
        self.pictures = Pictures((90, 140), (70, 90), (60, 60), (45, 75))
        self.pictures.images[2][:] = 77
        super().__init__("drawn", SPACE, self.pictures.ids, None)

    def _image(self, index: int) -> Any:
        return self.pictures.images[index]


@pytest.fixture(scope="module")
def model() -> Toy:
    """Unsure at edges, sure within: entropies on both sides of every limit here."""
    toy = Toy(4, multiple=8)
    with torch.no_grad():
        toy.weight *= 1.5
    return toy.eval()


@pytest.fixture(scope="module")
def probabilities(model: Toy) -> list[np.ndarray]:
    """(C,H,W) float64 of every picture, from the network's logits and torch's own interpolation."""
    out = []
    for picture in Drawn().pictures.images:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            output = model(image)
            up = F.interpolate(output.logits, output.padded, mode="bilinear", align_corners=False)
        z = up[0, :, : picture.shape[0], : picture.shape[1]].double().numpy()
        e = np.exp(z - z.max(0))
        out.append(e / e.sum(0))
    return out


def made(model: Toy, folder: Path, **rules: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    dataset = Drawn()
    config = PseudoLabelConfig(models=("a",), **rules)
    index = generate([model], dataset, SPACE, folder, config, device="cpu", batch_size=2)
    return index, [read_ids(folder / index["images"][i]["file"]) for i in dataset.ids]


def entropy_of(p: np.ndarray) -> np.ndarray:
    """As published (DLL project)."""
    return -(p * np.log(p + 1e-10)).sum(0)


def test_the_published_rule(model: Toy, probabilities: list[np.ndarray], tmp_path: Path) -> None:
    index, labels = made(model, tmp_path / "a", quantile=0, entropy_max=0.3)
    dropped = 0
    for image_id, label, p in zip(Drawn().ids, labels, probabilities, strict=True):
        entropy, best = entropy_of(p), np.sort(p, 0)
        expected = np.where(entropy > 0.3, 255, p.argmax(0))
        clear = (np.abs(entropy - 0.3) > 1e-5) & (best[-1] - best[-2] > 1e-6)
        assert clear.mean() > 0.99 and (label == expected)[clear].all()
        dropped += int((expected == 255).sum())
        row = index["images"][image_id]
        assert row["entropy"] == pytest.approx(entropy.mean(), abs=1e-5)
        assert row["confidence"] == pytest.approx(p.max(0).mean(), abs=1e-5)
        assert row["class_count"] == len(np.unique(p.argmax(0)))
        assert row["kept"] == (label != 255).mean()
    assert 0.05 < dropped / sum(label.size for label in labels) < 0.95
    assert index["entropy_max"] == 0.3 and "weights" not in index


def expected_labels(probabilities: list[np.ndarray], rules: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels by all rules, thresholds from every pixel of every image; and which pixels are far from every limit."""
    classes = np.concatenate([p.argmax(0).ravel() for p in probabilities])
    sure = np.concatenate([p.max(0).ravel() for p in probabilities])
    quantiles = [rules["quantiles"].get(name, rules["quantile"]) for name in SPACE.classes]
    thresholds = np.zeros(len(SPACE))
    for c, share in enumerate(quantiles):
        x = np.sort(sure[classes == c])
        thresholds[c] = min(x[min(round(share * len(x)), len(x) - 1)], rules["cap"]) if len(x) else 0
    image = rules.get("image", ImageRules())
    out = []
    for p in probabilities:
        winner, confidence, entropy = p.argmax(0), p.max(0), entropy_of(p)
        good = (confidence >= thresholds[winner]) & (entropy <= rules["entropy_max"])
        good &= confidence >= rules["confidence_min"]
        good &= len(np.unique(winner)) >= (image.class_count_min or 0)
        good &= entropy.mean() <= (image.entropy_max or np.inf) and confidence.mean() >= (image.confidence_min or 0)
        near = np.abs(confidence - thresholds[winner]) < SLACK
        near |= (np.abs(entropy - rules["entropy_max"]) < SLACK) | (
            np.abs(confidence - rules["confidence_min"]) < SLACK
        )
        out.append((np.where(good, winner, 255), ~near))
    return out


@pytest.mark.parametrize("without", [None, "quantile", "entropy_max", "confidence_min"])
def test_a_pixel_passes_all_rules_that_are_set(
    without: str | None, model: Toy, probabilities: list[np.ndarray], tmp_path: Path
) -> None:
    off = {"quantile": {"quantile": 0.0, "quantiles": {}}, "entropy_max": {"entropy_max": 9.0}}.get(without or "", {})
    rules = {**ALL, **({"confidence_min": 0.0} if without == "confidence_min" else off)}
    index, labels = made(model, tmp_path / "a", **rules)
    wanted = expected_labels(probabilities, rules)
    for label, (expected, far) in zip(labels, wanted, strict=True):
        assert far.mean() > 0.9 and (label == expected)[far].all()
    kept = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)
    assert list(index["pixels_kept"].values()) == kept[: len(SPACE)].tolist()
    everything = expected_labels(probabilities, ALL)
    if without:  # each rule by itself takes pixels that the others leave
        assert sum((a != 255).sum() for a, _ in wanted) > sum((a != 255).sum() for a, _ in everything)


def test_an_image_that_fails_has_no_label_and_the_others_keep_theirs(
    model: Toy, probabilities: list[np.ndarray], tmp_path: Path
) -> None:
    counts = [len(np.unique(p.argmax(0))) for p in probabilities]
    entropies = [float(entropy_of(p).mean()) for p in probabilities]
    confidences = [float(p.max(0).mean()) for p in probabilities]
    assert min(counts) == counts[2] < sorted(counts)[1], "the picture of one colour shows fewer classes than the others"
    free = made(model, tmp_path / "free", **ALL)[1]
    tries: list[tuple[ImageRules, list[bool]]] = [
        (ImageRules(class_count_min=counts[2] + 1), [c > counts[2] for c in counts]),
        (ImageRules(entropy_max=np.median(entropies)), [e <= np.median(entropies) for e in entropies]),
        (ImageRules(confidence_min=np.median(confidences)), [c >= np.median(confidences) for c in confidences]),
    ]
    for number, (image, passes) in enumerate(tries):
        index, labels = made(model, tmp_path / str(number), **ALL, image=image)
        assert 0 < sum(passes) < 4
        for image_id, label, before, good in zip(Drawn().ids, labels, free, passes, strict=True):
            assert np.array_equal(label, before if good else np.full_like(before, 255))
            assert (index["images"][image_id]["kept"] > 0) == good
        wanted = expected_labels(probabilities, {**ALL, "image": image})
        assert [(label != 255).any() for label, _ in wanted] == passes


def test_settings_that_make_no_sense(model: Toy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no class 'bb' \(did you mean 'b'"):
        made(model, tmp_path / "a", quantiles={"bb": 0.5})
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="flip, or scales"):
        PseudoLabelConfig.model_validate({"models": ["a"], "trust": {"flip": False, "scales": []}})
