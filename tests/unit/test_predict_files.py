"""Folders, globs and comparisons: which files are written, what is drawn and scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.toys import SPACE, Pictures, Toy
from segue.errors import UserError
from segue.labels import LabelSpace, load_space
from segue.predict import Incomplete, Look, Network, Outcome, predict_folder
from segue.scoring.protocols import NATIVE, Window
from segue.scoring.score import Measure, measure_models

SIZE = (40, 60)


def _images(folder: Path, *names: str) -> dict[str, np.ndarray]:
    made = Pictures(*[SIZE] * len(names)).images
    for name, image in zip(names, made, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return dict(zip(names, made, strict=True))


def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def _relative(outcome: Outcome, out: Path) -> list[str]:
    return [p.relative_to(out).as_posix() for p in outcome.written]


@pytest.mark.parametrize("number", [1, 2])
def test_a_prediction_is_what_scoring_counts(number: int) -> None:
    """Mirrored, at two scales, in windows, of chosen classes: the same confusion as the evaluation's."""
    data = Pictures((64, 80), (57, 71))
    models = tuple(Toy(seed) for seed in range(number))
    rule = NATIVE.varied(scales=(0.75, 1), flip=True, window=Window((32, 40), (16, 20)))
    names = ("a", "c", "d")
    kept = tuple(SPACE.index(name) for name in names)
    network = Network(models, rule=rule, kept=kept)
    result = measure_models(models, data, SPACE, Measure(protocol=rule, classes=names))[0]
    expected = np.zeros((5, 6), np.int64)
    for image, label in zip(data.images, data.labels, strict=True):
        ids = network.predict(image)
        assert set(np.unique(ids)) <= set(kept)
        np.add.at(expected, (label[label < 5], ids[label < 5]), 1)
    assert np.array_equal(result.confusion.counts, expected)
    assert expected[:, list(kept)].any(0).all()


def test_equal_names_in_two_folders_stay_apart_also_by_a_glob(tmp_path: Path) -> None:
    pictures = _images(tmp_path / "in", "a/x.png", "b/x.png", "b/deep/y.png")
    model = Toy()
    for source, expected in {
        str(tmp_path / "in"): ["a/x.png", "b/deep/y.png", "b/x.png"],
        str(tmp_path / "in/*/x.png"): ["a/x.png", "b/x.png"],
        str(tmp_path / "in/**/*.png"): ["a/x.png", "b/deep/y.png", "b/x.png"],
        str(tmp_path / "in/b/x.png"): ["x.png"],
    }.items():
        out = tmp_path / "out" / str(len(source))
        outcome = predict_folder(model, SPACE, source, out, format="trainid")
        assert _relative(outcome, out) == expected
        for path in outcome.written:
            image = pictures["b/x.png" if path.name == path.relative_to(out).as_posix() else str(path.relative_to(out))]
            assert np.array_equal(_read(path), Network((model,)).predict(image))
    with pytest.raises(UserError, match="no image below"):
        predict_folder(model, SPACE, str(tmp_path / "in/*.jpg"), tmp_path / "none")


def test_official_names(tmp_path: Path) -> None:
    space, model = load_space("cityscapes19"), Toy(classes=19)
    _images(tmp_path / "in", "ulm/ulm_000001_000019_leftImg8bit.png", "bonn/bonn_000000_000019_leftImg8bit.png")
    out = tmp_path / "out"
    outcome = predict_folder(model, space, tmp_path / "in", out, format="cityscapes")
    assert _relative(outcome, out) == ["bonn/bonn_000000_000019.png", "ulm/ulm_000001_000019.png"]
    with Image.open(outcome.written[0]) as image:
        assert image.mode == "L" and image.size == SIZE[::-1]
        assert set(np.unique(np.asarray(image))) <= set(space.ids)
    _images(tmp_path / "twice", "ulm_000001_000019.png", "x/ulm_000001_000019_leftImg8bit.png")
    with pytest.raises(UserError, match="both be written"):
        predict_folder(model, space, tmp_path / "twice", out, format="cityscapes")
    _images(tmp_path / "other", "street.png")
    with pytest.raises(UserError, match=r"street\.png has no Cityscapes name"):
        predict_folder(model, space, tmp_path / "other", out, format="cityscapes")
    with pytest.raises(UserError, match="other ids"):
        predict_folder(Toy(), SPACE, tmp_path / "other", out, format="cityscapes")


def test_overlay_weight_and_legend(tmp_path: Path) -> None:
    picture = _images(tmp_path / "in", "a.png")["a.png"]
    model = Toy()
    colors = SPACE.colorize(Network((model,)).predict(picture)).astype(float)
    for alpha in (0.0, 0.3, 1.0):
        look = Look(alpha=alpha)
        page = _read(
            predict_folder(model, SPACE, tmp_path / "in", tmp_path / "o", format="overlay", look=look).written[0]
        )
        assert np.abs(page - (alpha * colors + (1 - alpha) * picture)).max() <= 0.51
    page = _read(predict_folder(model, SPACE, tmp_path / "in", tmp_path / "o", look=Look(legend=True)).written[0])
    assert np.array_equal(page[: SIZE[0]], colors) and page.shape[1] == SIZE[1]
    below = {tuple(c) for c in page[SIZE[0] :].reshape(-1, 3).tolist()}
    assert set(SPACE.colors) <= below


def test_side_by_side_is_deterministic_and_even(tmp_path: Path) -> None:
    picture = _images(tmp_path / "in", "a/x.png")["a/x.png"]
    models = Toy(0), Toy(1)
    networks = [Network((m,), f"model {n}") for n, m in enumerate(models)]
    pages = []
    for out in ("one", "two"):
        outcome = predict_folder(networks, SPACE, tmp_path / "in", tmp_path / out, look=Look(side_by_side=True))
        pages.append(outcome.written[0].read_bytes())
    assert pages[0] == pages[1]
    page = _read(outcome.written[0])
    assert page.shape[0] % 2 == page.shape[1] % 2 == 0 and page.shape[1] >= 2 * SIZE[1]
    top = next(
        t
        for t in range(page.shape[0])
        if np.array_equal(page[t : t + SIZE[0], : SIZE[1]], _colors(networks[0], picture))
    )
    right = page[top : top + SIZE[0], SIZE[1] + 4 : 2 * SIZE[1] + 4]
    assert np.array_equal(right, _colors(networks[1], picture)) and top > 0
    single = predict_folder(networks[:1], SPACE, tmp_path / "in", tmp_path / "s", look=Look(side_by_side=True))
    assert np.array_equal(_read(single.written[0])[top : top + SIZE[0], : SIZE[1]], picture)


def _colors(network: Network, picture: np.ndarray) -> np.ndarray:
    return SPACE.colorize(network.predict(picture))


def test_damaged_images_are_named_and_the_others_predicted_and_scored(tmp_path: Path) -> None:
    pictures = _images(tmp_path / "in", "a.png", "b.png", "c.png")
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/b.png").read_bytes()[:90])
    network = Network((Toy(),))
    for name in "abc":
        _save(tmp_path / f"gt/{name}.png", network.predict(pictures[f"{name}.png"]))
    _save(tmp_path / "gt/c.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(Incomplete, match=r"2 of 3 images(.|\n)*b\.png(.|\n)*c\.png is 60x40.*label is 8x8") as caught:
        predict_folder(
            [network], SPACE, tmp_path / "in", tmp_path / "out", ground_truth=tmp_path / "gt", encoding="trainid"
        )
    outcome = caught.value.outcome
    assert _relative(outcome, tmp_path / "out") == ["a.png"]
    assert outcome.scores[0]["miou"] == 1 and outcome.scores[0]["num_images"] == 1


def test_ground_truth_is_drawn_and_scored(tmp_path: Path) -> None:
    pictures = _images(tmp_path / "in", "x/a.png", "x/b.png", "x/c.png")
    network = Network((Toy(),))
    right, wrong = (network.predict(pictures[f"x/{n}.png"]).copy() for n in "ab")
    right[:4] = 255
    wrong[:] = (wrong + 1) % 5
    _save(tmp_path / "gt/a.png", SPACE.to_label_ids(right))
    _save(tmp_path / "gt/b.png", SPACE.to_label_ids(wrong))
    out = tmp_path / "out"
    outcome = predict_folder([network], SPACE, tmp_path / "in", out, format="overlay", ground_truth=tmp_path / "gt")
    stored = json.loads((out / "scores.json").read_text())["networks"]
    per_image = {row["id"]: row["miou"] for row in stored[0]["per_image"]}
    assert per_image == {"x/a": 1.0, "x/b": 0.0} and stored[0]["without_label"] == 1
    assert outcome.scores[0]["miou"] == pytest.approx(stored[0]["miou"]) and 0 < stored[0]["miou"] < 1
    page = _read(out / "x/a.png")
    drawn = page[:, SIZE[1] + 4 : 2 * SIZE[1] + 4]
    top = page.shape[0] - SIZE[0] - page.shape[0] % 2
    assert (drawn[top : top + 4] == 0).all() and (drawn[top + 4 : top + SIZE[0]] > 0).any()
    assert (page[top : top + 4, : SIZE[1]] > 0).any()


def _save(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def test_skip_existing(tmp_path: Path) -> None:
    _images(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_text("mine")
    outcome = predict_folder(Toy(), SPACE, tmp_path / "in", tmp_path / "out", skip_existing=True)
    assert _relative(outcome, tmp_path / "out") == ["b.png"] and outcome.skipped == 1
    assert (tmp_path / "out/a.png").read_text() == "mine"
    predict_folder(Toy(), SPACE, tmp_path / "in", tmp_path / "out")
    assert _read(tmp_path / "out/a.png").shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": "labelid", "look": Look(side_by_side=True)}, "numbers, not a picture"),
        ({"format": "trainid", "look": Look(film="gif")}, "numbers, not a picture"),
        ({"look": Look(film="mp3")}, "did you mean 'mp4'"),
        ({"look": Look(alpha=1.5)}, "alpha"),
        ({"skip_existing": True, "ground_truth": Path("gt")}, "--skip-existing"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    _images(tmp_path / "in", "a.png")
    with pytest.raises(UserError, match=words):
        predict_folder(Toy(), SPACE, tmp_path / "in", tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_model_of_another_label_space(tmp_path: Path) -> None:
    space = LabelSpace("one", ("all",), ((1, 2, 3),), (0,))
    with pytest.raises(UserError, match="5 classes, label space 'one' has 1"):
        predict_folder(Toy(), space, tmp_path, tmp_path / "out")
