"""Labelling jobs, read by other programs than ours."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from helpers.labelling_jobs import IDS, NAMES, SPACE, Photos, make_round, truth, unpack
from segue.acquire.state import VOID, Round
from segue.labelling import LabellingError, export
from segue.labelling.job import colors, name_of, names
from segue.labels import IGNORE, U8, LabelSpace

TOOLS = ("label-studio", "cvat", "png")


def proposed(chosen: Round, image: str) -> U8:
    """Predicted classes of the regions, by hand."""
    out = np.full((24, 32), IGNORE, np.uint8)
    asked = chosen.asked(image)
    for row in chosen.rows:
        if row.image == image:
            out[asked == row.part] = row.predicted
    return out


def label_in(job: Path, tool: str, image: str) -> U8:
    """The proposal as another program sees it."""
    about = json.loads((job / "job.json").read_text())
    name = next(i["name"] for i in about["images"] if i["id"] == image)
    if tool == "label-studio":
        task = next(t for t in json.loads((job / "tasks.json").read_text()) if t["data"]["image_id"] == image)
        ids = {c["name"]: c["id"] for c in about["classes"]}
        out = np.full((24, 32), IGNORE, np.uint8)
        for brush in task["predictions"][0]["result"]:
            assert (brush["original_height"], brush["original_width"], brush["type"]) == (24, 32, "brushlabels")
            mask = unpack(brush["value"]["rle"]).reshape(24, 32, 4)[..., 3] == 255
            assert (out[mask] == IGNORE).all()  # brushes do not overlap
            out[mask] = ids[brush["value"]["brushlabels"][0]]
        return out
    if tool == "cvat":
        with zipfile.ZipFile(job / "annotations.zip") as archive:
            rgb = np.asarray(Image.open(io.BytesIO(archive.read(f"SegmentationClass/{name}.png"))))
        out = np.full((24, 32), IGNORE, np.uint8)
        for c in about["classes"]:
            out[(rgb == c["color"]).all(2)] = c["id"]
        assert ((rgb == 0).all(2) == (out == IGNORE)).all()
        return out
    return np.asarray(Image.open(job / "labels" / f"{name}.png"))


@pytest.mark.parametrize("tool", TOOLS)
def test_proposals_are_predicted_classes(tool: str, tmp_path: Path) -> None:
    chosen = make_round(tmp_path / "g")
    job = export(chosen, Photos(), tmp_path / "job", tool)
    assert [i.id for i in job.images] == sorted(IDS) and all(i.parts == (1, 2, 3) for i in job.images)
    for image in IDS:
        np.testing.assert_array_equal(label_in(tmp_path / "job", tool, image), proposed(chosen, image))


@pytest.mark.parametrize("tool", TOOLS)
def test_proposals_are_the_predicted_pixels_and_what_was_answered_before(tool: str, tmp_path: Path) -> None:
    chosen = make_round(tmp_path / "g", guess=True)
    image = IDS[1]
    asked = chosen.asked(image)
    half = np.full((24, 32), IGNORE, np.uint8)
    half[(asked > 0) & (np.arange(32) % 8 < 4)] = VOID  # half of each region
    whole = (asked == 2) & (half == IGNORE)
    half[whole] = 3  # and all of region 2
    answers = chosen.answers()
    answers.put(image, half)
    answers.save()
    job = export(chosen, Photos(), tmp_path / "job", tool)
    assert {i.id: i.parts for i in job.images} == {IDS[0]: (1, 2, 3), IDS[1]: (1, 3), IDS[2]: (1, 2, 3)}
    guess = truth(50 + 1, void=False)
    expected = np.where(np.isin(asked, (1, 3)), np.where(half != IGNORE, half, guess), IGNORE)
    np.testing.assert_array_equal(label_in(tmp_path / "job", tool, image), expected)

    everything = export(chosen, Photos(), tmp_path / "all", tool, everything=True)
    assert sum(len(i.parts) for i in everything.images) == 9
    expected = np.where(asked > 0, np.where(half != IGNORE, half, guess), IGNORE)
    np.testing.assert_array_equal(label_in(tmp_path / "all", tool, image), expected)


def test_label_studio_job(tmp_path: Path) -> None:
    chosen = make_round(tmp_path / "g")
    export(chosen, Photos(), tmp_path / "my job", "label-studio")
    view = ElementTree.parse(tmp_path / "my job" / "config.xml").getroot()
    labels = view.findall("BrushLabels/Label")
    assert [x.get("value") for x in labels] == [*NAMES, "void_"]
    assert len({x.get("background") for x in labels}) == len(labels)
    picture = view.find("Image")
    assert picture is not None and picture.get("value") == "$image"
    tasks = json.loads((tmp_path / "my job" / "tasks.json").read_text())
    for task in tasks:
        start, name = task["data"]["image"].rsplit("/", 1)
        assert start == "/data/local-files/?d=my job/images"
        assert (tmp_path / "my job" / "images" / name).is_file()
        assert task["data"]["round"] == 1 and task["data"]["group"] == "g"
        ids = [brush["id"] for brush in task["predictions"][0]["result"]]
        assert len(set(ids)) == len(ids) == 3
    export(chosen, Photos(), tmp_path / "web", "label-studio", image_url="https://x.org/a/")
    first = json.loads((tmp_path / "web" / "tasks.json").read_text())[0]
    assert first["data"]["image"] == f"https://x.org/a/{name_of(IDS[2])}.jpg"


def test_cvat_job(tmp_path: Path) -> None:
    chosen = make_round(tmp_path / "g", guess=True)
    export(chosen, Photos(), tmp_path / "job", "cvat")
    with zipfile.ZipFile(tmp_path / "job" / "annotations.zip") as archive:
        listed = archive.read("ImageSets/Segmentation/default.txt").decode().split()
        lines = archive.read("labelmap.txt").decode().splitlines()
        assert lines[1] == "background:0,0,0::"  # else CVAT takes the first class for it
        assert [line.split(":")[0] for line in lines[2:]] == [*NAMES, "void_"]
        assert listed == [name_of(i) for i in sorted(IDS)]
        voc = [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128)]
        for image, name in zip(sorted(IDS), listed, strict=True):
            assert Image.open(io.BytesIO(archive.read(f"JPEGImages/{name}.jpg"))).size == (32, 24)
            objects = np.asarray(Image.open(io.BytesIO(archive.read(f"SegmentationObject/{name}.png"))))
            label, asked = label_in(tmp_path / "job", "cvat", image), chosen.asked(image)
            pairs = np.unique(np.stack([asked, label])[:, asked > 0], axis=1).T
            found = np.unique(objects[asked > 0], axis=0)
            assert len(found) == len(pairs)  # an object for each class of each region
            assert {tuple(c) for c in found.tolist()[:1]} <= {*voc, *map(tuple, found.tolist())}
            for part, key in pairs:
                assert len(np.unique(objects[(asked == part) & (label == key)], axis=0)) == 1
            assert (objects[asked == 0] == 0).all()
    raw = json.loads((tmp_path / "job" / "labels.json").read_text())
    assert [x["name"] for x in raw] == [*NAMES, "void_"]


def test_colours_of_objects_are_pascals() -> None:
    from segue.labelling.cvat import _voc_color

    # the first colours of the VOC development kit's map, and two of its last
    first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert [_voc_color(n) for n in range(7)] == first
    assert (_voc_color(8), _voc_color(20), _voc_color(255)) == ((64, 0, 0), (0, 64, 128), (224, 224, 192))


def test_png_job_and_what_is_shown(tmp_path: Path) -> None:
    chosen, photos = make_round(tmp_path / "g"), Photos()
    export(chosen, photos, tmp_path / "job", "png")
    about = json.loads((tmp_path / "job" / "job.json").read_text())
    for n, image in enumerate(IDS):
        name = name_of(image)
        asked = np.asarray(Image.open(tmp_path / "job" / "asked" / f"{name}.png"))
        np.testing.assert_array_equal(asked, chosen.asked(image))
        label = Image.open(tmp_path / "job" / "labels" / f"{name}.png")
        palette = np.asarray(label.getpalette()).reshape(-1, 3)
        assert all(palette[c["id"]].tolist() == c["color"] for c in about["classes"])
        shown = np.asarray(Image.open(tmp_path / "job" / "images" / f"{name}.jpg")).astype(int)
        before = photos.read_image(n).astype(int)
        assert shown[asked > 0].mean() > 1.4 * shown[asked == 0][:, 2].mean()
        assert abs(shown[asked > 0].mean() - before[asked > 0].mean()) < 20


def test_shown_pixels_of_asked_regions_are_untouched() -> None:
    from segue.labelling.job import OUTLINE, marked

    rgb = Photos().read_image(0)
    asked = np.zeros((24, 32), np.uint16)
    asked[8:16, 8:16] = 1
    out = marked(rgb, asked)
    np.testing.assert_array_equal(out[asked > 0], rgb[asked > 0])
    assert (out[6:8, 6:18] == OUTLINE).all() and (out[8:16, 16:18] == OUTLINE).all()
    assert out[:6].mean() < 0.7 * rgb[:6].mean()


def test_a_folder_with_something_in_it_is_refused_and_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    chosen = make_round(tmp_path / "g")
    out = tmp_path / "out"
    out.mkdir()
    export(chosen, Photos(), out, "png")  # an empty folder is fine
    before = sorted(out.rglob("*"))
    with pytest.raises(LabellingError, match="already holds a labelling job"):
        export(chosen, Photos(), out, "png")
    assert sorted(out.rglob("*")) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").write_text("x")
    with pytest.raises(LabellingError, match="already holds something else: give a new folder"):
        export(chosen, Photos(), tmp_path / "mine", "cvat")
    with pytest.raises(LabellingError, match=r"'labelstudio' \(did you mean 'label-studio'"):
        export(chosen, Photos(), tmp_path / "new", "labelstudio")
    with pytest.raises(LabellingError, match=r"'town/b'.*no longer in 'photos'"):
        export(chosen, Photos(IDS[::2]), tmp_path / "new", "png")
    with pytest.raises(LabellingError, match="32x25 pixels, its chosen regions 32x24"):
        export(chosen, Photos(size=(25, 32)), tmp_path / "new", "png")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["g", "mine", "out"]


def test_a_round_with_all_its_answers_has_no_job(tmp_path: Path) -> None:
    chosen = make_round(tmp_path / "g")
    answers = chosen.answers()
    for image in IDS:
        answers.put(image, truth(1))
    answers.save()
    with pytest.raises(LabellingError, match="nothing to label"):
        export(chosen, Photos(), tmp_path / "job", "png")
    assert len(export(chosen, Photos(), tmp_path / "job", "png", everything=True).images) == 3


def test_names_that_a_label_map_cannot_hold(tmp_path: Path) -> None:
    space = LabelSpace("x", ("a:b", "c"), ((1, 1, 1), (2, 2, 2)), (0, 1))
    chosen = make_round(tmp_path / "g", labels=space.to_dict())
    with pytest.raises(LabellingError, match="cannot hold a class 'a:b'"):
        export(chosen, Photos(), tmp_path / "job", "cvat")


def test_more_regions_than_colours_of_objects(tmp_path: Path) -> None:
    from segue.labelling.cvat import _objects
    from segue.labelling.job import Picture

    asked = np.arange(1, 24 * 32 + 1, dtype=np.uint16).reshape(24, 32)
    label = truth(3)
    objects = _objects(Picture("i", "i", np.zeros((24, 32, 3), np.uint8), asked, label))
    assert len(np.unique(objects)) == len(np.unique(label)) and objects.min() == 1


def test_names_and_colours_are_told_apart() -> None:
    shades = colors(SPACE)
    assert len(set(shades.values())) == len(SPACE) + 1 and (0, 0, 0) not in shades.values()
    assert (shades[0], shades[1]) == (SPACE.colors[0], SPACE.colors[1])
    assert names(SPACE)[VOID] == "void_"
    ids = ["a/b", "a_b", "a b", "x" * 300, "x" * 301, "é", "plain-1"]
    files = [name_of(i) for i in ids]
    assert len(set(files)) == len(ids) and files[-1] == "plain-1"
    assert all(f.isascii() and len(f) < 120 and "/" not in f and "." not in f for f in files)
