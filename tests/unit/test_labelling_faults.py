"""Every mistake in what people hand in, told at once; marks that withdraw answers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.labelling_jobs import IDS, Photos, everything, labelled, make_round, png, same, stored, take, truth, wanted
from segue.acquire.state import Round
from segue.labelling import LabellingError, export, lines
from segue.labelling.job import name_of
from segue.labels import IGNORE, U8


@pytest.fixture
def chosen(tmp_path: Path) -> Round:
    return make_round(tmp_path / "g")


def damage(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    tasks = json.loads(path.read_text())
    change(tasks)
    path.write_text(json.dumps(tasks))
    return path


def value_of(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    first: dict[str, Any] = tasks[0]["annotations"][0]["result"][0]
    return first


FAULTS: dict[str, tuple[Callable[[list[dict[str, Any]]], None], str]] = {
    "image": (
        lambda t: t[0]["data"].update(image_id="town/bb"),
        r"'town/bb' was asked for \(did you mean 'town/b'\?\)",
    ),
    "group": (lambda t: t[0]["data"].update(group="h"), "another choice of regions"),
    "round": (lambda t: t[0]["data"].update(round=7), "another choice of regions"),
    "round as text": (lambda t: t[0]["data"].update(round=[1]), "another choice of regions"),
    "selection": (lambda t: t[0]["data"].update(selection="00000000"), "another choice of regions"),
    "class": (lambda t: value_of(t)["value"].update(brushlabels=["roda"]), "no class 'roda'.*did you mean 'road'"),
    "two classes": (lambda t: value_of(t)["value"].update(brushlabels=["road", "tree"]), "it must be one class"),
    "no class": (lambda t: value_of(t)["value"].update(brushlabels=3), "it must be one class"),
    "size": (lambda t: value_of(t).update(original_width=33), "a brush of a 33x24 image, this one is 32x24"),
    "rotation": (lambda t: value_of(t).update(image_rotation=90), "turned by 90 degrees"),
    "rle": (lambda t: value_of(t)["value"].update(rle=[1, 2, 3]), "cannot be read|mask that can be read"),
    "rle of another": (lambda t: value_of(t)["value"]["rle"].__setitem__(3, 9), "it is of another image"),
    "rle cut": (lambda t: value_of(t)["value"].update(rle=value_of(t)["value"]["rle"][:12]), "ends early"),
    "polygon": (
        lambda t: t[0]["annotations"][0]["result"].append({"type": "polygonlabels", "value": {"points": []}}),
        "'polygonlabels'.*brush alone",
    ),
    "annotation": (lambda t: t[0].update(annotations=3), "task 1: annotations is damaged"),
    "data": (lambda t: t[0].pop("data"), "task 1: data is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_label_studio_exports(fault: str, chosen: Round, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    path = damage(labelled(chosen, "label-studio", tmp_path, everything()), change)
    image = {"image": "c"}.get(fault, json.loads(path.read_text())[0].get("data", {}).get("image_id", "c"))
    with pytest.raises(LabellingError, match=message):
        take(chosen, path)
    assert stored(chosen) == {}
    report = take(chosen, path, skip_faulty=True)
    same(stored(chosen), {i: label for i, label in wanted(chosen, everything()).items() if i != image})
    assert len(report.missing) == 3 and any("left out" in note for note in report.notes)


def test_all_faults_are_told_at_once(chosen: Round, tmp_path: Path) -> None:
    def three(tasks: list[dict[str, Any]]) -> None:
        FAULTS["image"][0](tasks)
        tasks[1]["annotations"][0]["result"][0]["value"]["brushlabels"] = ["roda"]
        tasks[2]["annotations"][0]["result"][0]["original_width"] = 5

    path = damage(labelled(chosen, "label-studio", tmp_path, everything()), three)
    with pytest.raises(LabellingError) as told:
        take(chosen, path, tmp_path / "absent.zip")
    text = str(told.value)
    assert "faults: 4" in text
    for part in ("town/bb", "roda", "5x24", "absent.zip"):
        assert part in text
    assert "--skip-faulty" in text


def repaint(path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(png(pixels))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: png(np.zeros((24, 31), np.uint8)), "31x24 pixels, its image 32x24"),
        (lambda: png(np.full((24, 32), 77, np.uint8)), "numbers that no class has: 77"),
        (lambda: png(np.full((24, 32, 3), 77, np.uint8)), r"768 pixels of 1 colours that no class has: \(77, 77, 77\)"),
        (lambda: png(truth(0))[:-30], "truncated|ends early"),
        (lambda: b"GIF89a", "not an image"),
        (lambda: b"", "empty"),
    ],
    ids=["size", "number", "colour", "cut", "no image", "empty"],
)
def test_faults_of_masks(content: Callable[[], bytes], message: str, chosen: Round, tmp_path: Path) -> None:
    job = labelled(chosen, "png", tmp_path, everything())
    (job / "labels" / f"{name_of(IDS[0])}.png").write_bytes(content())
    with pytest.raises(LabellingError, match=message):
        take(chosen, job)
    assert stored(chosen) == {}
    take(chosen, job, skip_faulty=True)
    same(stored(chosen), {i: x for i, x in wanted(chosen, everything()).items() if i != IDS[0]})


def test_a_label_map_with_a_foreign_class(chosen: Round, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    rgb = np.zeros((24, 32, 3), np.uint8)
    rgb[:4] = (9, 8, 7)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labelmap.txt", "background:0,0,0::\nroad:1,1,1::\nroadd:9,8,7::\n")
        archive.writestr(f"SegmentationClass/{name_of(IDS[0])}.png", png(rgb))
    with pytest.raises(LabellingError, match=r"label 'roadd' \(did you mean 'road'"):
        take(chosen, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labelmap.txt", "background:0,0,0::\nroad:9,8,7::\nnobody uses it:3,3,3::\n")
        archive.writestr(f"SegmentationClass/{name_of(IDS[0])}.png", png(rgb))
    take(chosen, path)
    expected = np.where((chosen.asked(IDS[0]) > 0) & (np.arange(24)[:, None] < 4), 0, IGNORE)
    same(stored(chosen), {IDS[0]: expected.astype(np.uint8)} if (expected == 0).any() else {})


@pytest.mark.parametrize("text", ["road 1,2,3", "road:1,2::", "road:a,b,c::", "a:1,1,1::\nb:1,1,1::", "\xff"])
def test_damaged_label_maps(text: str, chosen: Round, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("labelmap.txt", text.encode("latin-1"))
        archive.writestr("SegmentationClass/c.png", png(np.zeros((24, 32, 3), np.uint8)))
    with pytest.raises(LabellingError, match=r"labelmap.txt( is damaged|: labels share a colour)"):
        take(chosen, tmp_path / "x.zip")


def test_archives_are_read_in_place_and_cannot_reach_out(chosen: Round, tmp_path: Path) -> None:
    good = labelled(chosen, "cvat", tmp_path, everything())
    before = sorted(tmp_path.rglob("*"))
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(evil, "w") as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
        for name in ("../../evil.txt", "/etc/evil", "SegmentationClass/../../../evil.png", "C:/evil.png"):
            out.writestr(name, b"x")
    take(chosen, evil)
    same(stored(chosen), wanted(chosen, everything()))
    new = {p for p in tmp_path.rglob("*") if p not in before}
    assert {p.relative_to(tmp_path).parts[0] for p in new} <= {"evil.zip", "g"}


def test_bombs_are_refused(chosen: Round, tmp_path: Path) -> None:
    name = name_of(IDS[0])
    header = bytearray(png(np.zeros((24, 32), np.uint8)))
    header[16:24] = (60000).to_bytes(4, "big") * 2
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"SegmentationClass/{name}.png", bytes(header))
    with pytest.raises(LabellingError, match="60000x60000"):
        take(chosen, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"SegmentationClass/{name}.png", png(truth(0)))
        archive.filelist[0].file_size = 2**31 - 1  # declares 2 GB
    with pytest.raises(LabellingError, match=r"y\.zip"):
        take(chosen, tmp_path / "y.zip")


def test_jobs_given_in_place_of_exports_and_other_files(chosen: Round, tmp_path: Path) -> None:
    for tool in ("label-studio", "cvat", "png"):
        export(chosen, Photos(), tmp_path / tool, tool)
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "x.zip").write_bytes(b"PK nothing")
    (tmp_path / "empty").mkdir()
    for path, message in {
        tmp_path / "label-studio" / "tasks.json": "no annotations at all",
        tmp_path / "label-studio": "no annotations at all|no list of tasks",
        tmp_path / "cvat": "no labels that can be read|no list of tasks",
        tmp_path / "png" / "job.json": "describes a job",
        tmp_path / "no.json": "not JSON",
        tmp_path / "deep.json": "not JSON",
        tmp_path / "list.json": "no list of tasks",
        tmp_path / "x.zip": "not a readable",
        tmp_path / "empty": r"no labels that can be read \(nothing\)",
        tmp_path / "absent": "no folder or archive",
    }.items():
        with pytest.raises(LabellingError, match=message):
            take(chosen, path)
    with pytest.raises(LabellingError, match=r"format 'cvta'.*did you mean 'cvat'"):
        take(chosen, tmp_path / "png", tool="cvta")
    with pytest.raises(LabellingError, match=r"--on-conflict cannot be 'kep'.*'keep'"):
        take(chosen, tmp_path / "png", policy="kep")
    (tmp_path / "png" / "job.json").write_text("{}")
    with pytest.raises(LabellingError, match="tool: Field required"):
        take(chosen, tmp_path / "png")


def marks(path: Path, rows: list[tuple[int, str, int]], group: str = "g") -> Path:
    given = [{"round": r, "image": i, "part": p, "note": "<b>"} for r, i, p in rows]
    path.write_text(json.dumps({"format": "segue-marks-1", "group": group, "marks": given}))
    return path


def test_marks_open_regions_again(chosen: Round, tmp_path: Path) -> None:
    take(chosen, labelled(chosen, "png", tmp_path, {IDS[0]: truth(0), IDS[1]: truth(1)}))
    file = marks(tmp_path / "marks.json", [(1, IDS[0], 2), (1, IDS[0], 3), (1, IDS[1], 1), (1, IDS[2], 1)])
    report = take(chosen, file)
    assert report.withdrawn == {1: 3} and report.not_answered == 1
    assert {(r.image, r.part) for r in report.missing} == {
        (IDS[0], 2), (IDS[0], 3), (IDS[1], 1), (IDS[2], 1), (IDS[2], 2), (IDS[2], 3)
    }  # fmt: skip
    expected = np.where(chosen.asked(IDS[0]) == 1, truth(0), IGNORE)
    np.testing.assert_array_equal(stored(chosen)[IDS[0]], expected)
    text = "\n".join(lines(report, "R"))
    assert "3 marked regions lost their answer" in text and "1 marked regions had no answer" in text
    again = take(chosen, file)
    assert again.withdrawn[1] == 0 and again.not_answered == 4
    described = export(chosen, Photos(), tmp_path / "rest", "png")
    assert {i.id: i.parts for i in described.images}[IDS[0]] == (2, 3)


def test_faults_of_marks(chosen: Round, tmp_path: Path) -> None:
    labels = labelled(chosen, "png", tmp_path, everything())
    take(chosen, labels)
    before = stored(chosen)
    file = tmp_path / "marks.json"
    for rows, group, message in (
        ([(2, IDS[0], 1), (1, IDS[0], 1)], "g", "round 2, which is not there"),
        ([(1, "x", 1), (1, IDS[0], 1)], "g", "of which round 1 bought nothing"),
        ([(1, IDS[0], 4), (1, IDS[0], 1)], "g", "region 4.*bought 3"),
        ([(1, IDS[0], 1)], "h", "group 'h', not 'g'"),
    ):
        with pytest.raises(LabellingError, match=message):
            take(chosen, marks(file, rows, group))
    with pytest.raises(LabellingError, match="import them alone"):
        take(chosen, marks(file, [(1, IDS[0], 1)]), labels)
    file.write_text(json.dumps({"format": "segue-marks-1", "group": "g", "marks": [{"round": "a"}]}))
    with pytest.raises(LabellingError, match=r"marks\.0\.round.*integer"):
        take(chosen, file)
    same(stored(chosen), before)


def test_nothing_is_written_when_a_later_image_is_faulty_and_a_killed_import_is_repeated(
    chosen: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segue.data.label_folder import LabelFolder

    path = labelled(chosen, "png", tmp_path, everything())
    put, calls = LabelFolder.put, []

    def dies(self: LabelFolder, image: str, label: U8) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(image)
        put(self, image, label)

    monkeypatch.setattr(LabelFolder, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        take(chosen, path)
    monkeypatch.undo()
    assert stored(chosen) == {}
    assert take(chosen, path).complete
    same(stored(chosen), wanted(chosen, everything()))
