"""Trust: views, calibration on labelled images against counting by hand, weights in files, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.command import files
from helpers.labelling import Flags, Reader, killed
from helpers.toys import SPACE, Pictures, Toy
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.images import read_ids
from segue.errors import UserError
from segue.labels import IGNORE, U8, LabelSpace
from segue.pseudo_labelling import PseudoLabelConfig
from segue.pseudo_labels import generate
from segue.pseudo_labels.thresholds import encode
from segue.pseudo_labels.trust import OCTAVES, PRIOR_PX, Trust, agreement
from segue.scoring.inference import ask
from segue.scoring.protocols import NATIVE

C, VIEWS = 4, 3
SHOWN = [3, 0, 1, 4, 2, 0, 3]
VIEWED = {"models": ("a",), "quantile": 0.0, "trust": {"source": "own:val", "scales": (1.5,), "images": None}}


def drawn(seed: int, pixels: int) -> tuple[U8, np.ndarray, U8, U8]:
    """Classes, confidences, agreements and labels whose rate of being right is a known function of them."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, (pixels // 100, 100), p=[0.7, 0.2, 0.1]).astype(np.uint8)  # class 3 is never predicted
    confidence = (1 - rng.uniform(0, 0.7, classes.shape) ** 3).astype(np.float32)
    agree = rng.integers(0, VIEWS + 1, classes.shape).astype(np.uint8)
    right = rng.random(classes.shape) < rate(classes, octave(confidence), agree)
    label = np.where(right, classes, (classes + 1) % C).astype(np.uint8)
    label[rng.random(classes.shape) < 0.1] = IGNORE
    return classes, confidence, agree, label


def octave(confidence: np.ndarray) -> np.ndarray:
    unsure = np.maximum(1 - confidence.astype(np.float64), 2.0**-20)
    return np.minimum(np.floor(-np.log2(unsure)), OCTAVES - 1).astype(int)


def rate(classes: Any, octaves: Any, agree: Any) -> Any:
    z = 0.4 * octaves + agree - np.array([0.5, 1.5, 3, 2])[classes]
    return 1 / (1 + np.exp(-z))


def learnt(seed: int, pixels: int) -> Trust:
    trust = Trust(C, VIEWS)
    classes, confidence, agree, label = drawn(seed, pixels)
    trust.add(classes, encode(confidence), agree, label)
    return trust


def test_agreement_counts_the_views_that_say_the_same() -> None:
    classes = np.array([[0, 1, 2]], np.uint8)
    views = [np.array([[0, 1, 1]], np.uint8), np.array([[0, 2, 2]], np.uint8), np.array([[0, 0, 0]], np.uint8)]
    assert agreement(classes, views).tolist() == [[3, 1, 1]]


def test_counts_and_table_are_those_of_counting_by_hand() -> None:
    trust = learnt(0, 20_000)
    classes, confidence, agree, label = drawn(0, 20_000)
    right, pixels = np.zeros((C, VIEWS + 1, OCTAVES)), np.zeros((C, VIEWS + 1, OCTAVES))
    edge = np.isclose(-np.log2(np.maximum(1 - confidence.astype(np.float64), 1e-9)) % 1, [[0]], atol=1e-3)
    for c, o, a, y in zip(classes.flat, octave(confidence).flat, agree.flat, label.flat, strict=True):
        if y != IGNORE:
            pixels[c, a, o] += 1
            right[c, a, o] += y == c
    moved = np.abs(trust.counts.sum(0) - pixels).sum() / 2
    assert moved <= edge.sum() and moved < 40, "only confidences on an edge of an octave"
    right, pixels = trust.counts[1].astype(float), trust.counts.sum(0).astype(float)
    table, overall = trust.table(), (right.sum() + PRIOR_PX / 2) / (pixels.sum() + PRIOR_PX)
    for c in range(C):
        for a in range(VIEWS + 1):
            for o in range(OCTAVES):
                alike = (right[:, a, o].sum() + PRIOR_PX * overall) / (pixels[:, a, o].sum() + PRIOR_PX)
                own = (right[c].sum() + PRIOR_PX * overall) / (pixels[c].sum() + PRIOR_PX)
                log_odds = sum(s * np.log(p / (1 - p)) for s, p in ((1, alike), (1, own), (-1, overall)))
                prior = 1 / (1 + np.exp(-log_odds))
                expected = (right[c, a, o] + PRIOR_PX * prior) / (pixels[c, a, o] + PRIOR_PX)
                assert table[c, a, o] == pytest.approx(expected, rel=1e-9)
    told = trust.told(("a", "b", "c", "d"))
    assert told["right"]["b"] == right[1].sum() / pixels[1].sum() and told["right"]["d"] is None
    assert told["pixels"]["a"] == pixels[0].sum()
    assert told["right_by_agreement"] == pytest.approx((right.sum((0, 2)) / pixels.sum((0, 2))).tolist())


def test_trust_is_the_rate_of_being_right_on_other_pixels() -> None:
    trust = learnt(1, 2_000_000)
    classes, confidence, agree, label = drawn(2, 400_000)
    weight = trust.weights(classes, encode(confidence), agree) / 255
    known = label != IGNORE
    order = np.argsort(weight[known])
    for part in np.array_split(order, 12):
        assert (label == classes)[known][part].mean() == pytest.approx(weight[known][part].mean(), abs=0.02)
    assert np.abs(weight - rate(classes, octave(confidence), agree)).mean() < 0.02
    table = trust.table()[:3, :, 2:8]
    assert (np.diff(table, axis=1) > -0.03).all() and (np.diff(table, axis=2) > -0.03).all(), "agreement and confidence"
    alike = trust.counts[1].sum(0)[:, 2:] / trust.counts.sum((0, 1))[:, 2:]
    assert np.abs(trust.table()[3, :, 2:] - alike).max() < 0.02, "a class that is never predicted is as all are"


def test_without_a_source_weights_are_shares_of_views() -> None:
    trust = Trust(C, VIEWS)
    classes, confidence, agree, _ = drawn(0, 1000)
    weight = trust.weights(classes, encode(confidence), agree)
    assert np.array_equal(weight, np.rint(255 * (agree + 1.0) / (VIEWS + 1)))


class Labelled(Dataset):
    """Smooth random pictures, and labels of another resolution: what ``model`` says, mostly where its views agree."""

    def __init__(self, split: str, model: Toy | None = None, seed: int = 0) -> None:
        self.pictures = Pictures((60, 90), (70, 50), (80, 64), (64, 96), seed=seed)
        super().__init__("own", SPACE, self.pictures.ids, None)
        self.split, self.labelled, self.own_label_size = split, model is not None, True
        if model is not None:
            rng = np.random.default_rng(seed)
            for n, picture in enumerate(self.pictures.images):
                said, _, agree = by_hand(model, picture, (40 + n, 50), 1.5)
                noise = rng.integers(0, len(SPACE), said.shape).astype(np.uint8)
                wrong = rng.random(said.shape) < np.array([0.9, 0.6, 0.3, 0.05])[agree]
                self.pictures.labels[n] = np.where(wrong, noise, said).astype(np.uint8)
                self.pictures.labels[n][:5] = IGNORE

    def _image(self, index: int) -> Any:
        return self.pictures.images[index]

    def read_label(self, index: int) -> U8:
        return self.pictures.labels[index]


def by_hand(model: Toy, picture: U8, size: tuple[int, int], scale: float) -> tuple[U8, np.ndarray, U8]:
    """Classes, confidences, and how many of: mirrored, scaled, scaled and mirrored, say the same."""
    (plain,) = ask(model, [picture], NATIVE, size)
    p = torch.zeros(len(SPACE), *size)
    for tile in plain.tiles():
        p[(slice(None), *tile.place)] = tile.values.softmax(0)
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    scaled = NATIVE.varied(scales=(scale,))
    others = [
        ask(model, [mirrored], NATIVE, size)[0].ids()[:, ::-1],
        ask(model, [picture], scaled, size)[0].ids(),
        ask(model, [mirrored], scaled, size)[0].ids()[:, ::-1],
    ]
    classes = plain.ids()
    return classes, p.max(0).values.numpy(), sum((o == classes).astype(np.uint8) for o in others)  # type: ignore[return-value]


def test_weights_in_files_are_what_views_and_source_labels_say(tmp_path: Path) -> None:
    model = Toy(3).eval()
    with torch.inference_mode():
        source, target = Labelled("val", model), Labelled("train", seed=5)
        config = PseudoLabelConfig(**{**VIEWED, "confidence_min": 0.5})
        index = generate([model], target, SPACE, tmp_path / "a", config, device="cpu", batch_size=2, source=source)
        trust = Trust(len(SPACE), 3)
        for n in range(4):
            label = source.read_label(n)
            classes, confidence, agree = by_hand(model, source.pictures.images[n], label.shape, 1.5)
            trust.add(classes, encode(confidence), agree, label)
        share, mean = [], np.zeros((2, len(SPACE)))
        for n, image_id in enumerate(target.ids):
            row, picture = index["images"][image_id], target.pictures.images[n]
            classes, confidence, agree = by_hand(model, picture, picture.shape[:2], 1.5)
            label, weight = read_ids(tmp_path / "a" / row["file"]), read_ids(tmp_path / "a" / row["weight"])
            expected = np.where(label == IGNORE, 0, trust.weights(classes, encode(confidence), agree))
            share.append((np.abs(weight.astype(int) - expected) <= 1).mean())
            mean += [np.bincount(label.ravel(), w, 256)[:5] for w in (weight.ravel() / 255, np.ones(label.size))]
            assert len(np.unique(weight)) > 10 and (label == IGNORE).any()
    assert min(share) > 0.99, "pixels whose views are equally sure of two classes may differ"
    found = [v for v in index["weights"].values() if v is not None]
    assert found == pytest.approx((mean[0][mean[1] > 0] / mean[1][mean[1] > 0]).tolist(), rel=1e-6)
    told = index["source_labels"]
    assert (told["data"], told["split"], index["trust"]["ids"]) == ("own", "val", source.ids)
    assert sum(told["pixels"].values()) == sum((label != IGNORE).sum() for label in source.pictures.labels)
    assert told["right_by_agreement"] == sorted(told["right_by_agreement"])


def test_labels_are_the_same_with_and_without_trust(tmp_path: Path) -> None:
    plain = PseudoLabelConfig(models=("a",), quantile=0.5)
    trusted = PseudoLabelConfig(**{**VIEWED, "quantile": 0.5})
    with torch.inference_mode():
        labelled = Labelled("val", Toy(3).eval())
    for name, config, source in (("a", plain, None), ("b", trusted, labelled)):
        generate([Toy(3)], Labelled("train"), SPACE, tmp_path / name, config, device="cpu", source=source)
    without, withal = files(tmp_path / "a"), files(tmp_path / "b")
    assert {k: v for k, v in withal.items() if k in without and k != "index.json"} == {
        k: v for k, v in without.items() if k != "index.json"
    }
    assert len(withal) == len(without) + 4


class Known(Flags):
    """Flags that are labelled with what they show."""

    labelled = True

    def __init__(self) -> None:
        super().__init__([1, 2, 3], "val")
        self.labelled = True

    def read_label(self, index: int) -> U8:
        image_id = self.ids[index]
        return np.full(self.size_of(image_id), self.shown[image_id], np.uint8)


def weighed(folder: Path, **changes: Any) -> tuple[dict[str, Any], Reader]:
    model, config = Reader(), PseudoLabelConfig(**{**VIEWED, "quantile": 0.5, "entropy_max": 1.0, **changes})
    source = Known() if config.trust and config.trust.source else None
    return generate([model], Flags(SHOWN), SPACE, folder, config, device="cpu", source=source), model


@pytest.mark.parametrize("when", ["half", "after"])
@pytest.mark.parametrize("at", [1, 7, 8, 9, 21])  # of 7 images: a file each in the first pass, two in the second
def test_killed_and_resumed_ends_with_the_same_bytes(at: int, when: str, tmp_path: Path) -> None:
    weighed(tmp_path / "whole")
    out = tmp_path / "out"
    killed(lambda: weighed(out), at, when)
    _, model = weighed(out)
    predicted, views = min(7, at - (when == "half")), 4
    settled = at > 7
    assert model.seen == views * (7 - predicted) + (0 if settled else 3 * views), "the source is asked while it matters"
    assert files(out) == files(tmp_path / "whole")
    assert sum(name.endswith("+weight.png") for name in files(out)) == 7


def test_other_trust_is_another_folder(tmp_path: Path) -> None:
    weighed(tmp_path / "a")
    for trust in (None, {"scales": (1.5,)}, {**VIEWED["trust"], "scales": (2.0,)}, {**VIEWED["trust"], "images": 2}):
        with pytest.raises(DataError, match="other settings or images of trust"):
            weighed(tmp_path / "a", trust=trust)
    with pytest.raises(DataError, match=r"entropy_max 1\.0, not 0\.5"):
        weighed(tmp_path / "a", entropy_max=0.5)
    weighed(tmp_path / "b", trust={"scales": (1.5,)})
    assert "source_labels" not in weighed(tmp_path / "b", trust={"scales": (1.5,)})[0]


def test_a_source_must_be_given_and_labelled(tmp_path: Path) -> None:
    config = PseudoLabelConfig(**VIEWED)
    given = ([Reader()], Flags(SHOWN), SPACE, tmp_path / "a", config)
    with pytest.raises(ValueError, match=r"trust\.source is 'own:val'"):
        generate(*given, device="cpu")
    with pytest.raises(DataError, match="no labels"):
        generate(*given, device="cpu", source=Flags([1, 2]))
    other = Known()
    other.space = LabelSpace("four", SPACE.classes[:4], SPACE.colors[:4], SPACE.ids[:4], {})
    with pytest.raises(UserError, match=r"trust\.source 'own:val' is read in 'four', the model's is 'five'"):
        generate(*given, device="cpu", source=other)
    assert not (tmp_path / "a").exists()
