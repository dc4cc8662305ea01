"""The report of synthetic run folders of every shape: what it says, what it escapes, how large it gets."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segue import report
from segue.errors import UserError
from segue.files import file_of, write_json
from segue.labels import LabelSpace, load_space
from segue.scoring.bootstrap import PerImage, write_per_image
from segue.scoring.matrix import Confusion
from segue.scoring.names import folder_of, per_image_file

TARGET = "city:val"
ROLES = {"source_only": "source", "adapted": "adapt", "target_supervised": "oracle"}
METHODS = {"source": "supervised", "adapt": "self_training", "oracle": "supervised"}
ERRORS = {"source": 0.55, "adapt": 0.3, "oracle": 0.2}


def street(index: int, size: tuple[int, int] = (128, 256)) -> np.ndarray:
    """A street of Cityscapes train ids: sky, buildings, trees, pavement, road, cars, people, poles."""
    rng = np.random.default_rng(index)
    h, w = size
    ids = np.full(size, 10, np.uint8)
    edges = [0, *sorted(rng.integers(0, w, 6)), w]
    for left, right in pairwise(edges):
        top = int(h * rng.uniform(0.08, 0.4))
        cv2.rectangle(ids, (int(left), top), (int(right), h), int(rng.choice([2, 2, 8])), -1)
    cv2.fillPoly(ids, [np.array([(0, h), (0, int(0.62 * h)), (w, int(0.62 * h)), (w, h)])], 1)
    cv2.fillPoly(ids, [np.array([(-w // 5, h), (int(0.42 * w), h // 2), (int(0.58 * w), h // 2), (6 * w // 5, h)])], 0)
    for _ in range(5):
        x, s = rng.integers(0, w), rng.uniform(0.08, 0.2)
        y = int(h * (0.5 + s))
        ids[y : y + int(s * h), x : x + int(1.1 * s * w)] = rng.choice([13, 13, 13, 14, 15])
    for _ in range(4):
        x, y = rng.integers(0, w), int(h * rng.uniform(0.48, 0.6))
        ids[y : y + int(0.18 * h), x : x + 5] = rng.choice([11, 12, 18])
        ids[int(0.25 * h) : int(0.62 * h), x + 20 : x + 22] = 5
        ids[int(0.25 * h) : int(0.3 * h), x + 18 : x + 26] = 7
    ids[-8:] = 255
    return ids


def guess(ids: np.ndarray, error: float, seed: int) -> np.ndarray:
    """The map with blobs of other classes on a share of it that is about ``error``."""
    rng = np.random.default_rng(seed)
    field = cv2.resize(rng.random((8, 16)).astype(np.float32), ids.shape[::-1], interpolation=cv2.INTER_CUBIC)
    other = cv2.resize(
        rng.choice([0, 1, 2, 4, 8, 10, 13, 17], (10, 20)).astype(np.uint8), ids.shape[::-1], interpolation=0
    )
    clean = np.where(ids == 255, 0, ids)
    return np.where(field < np.quantile(field, error), other, clean).astype(np.uint8)


def make_run(
    folder: Path, stages: tuple[str, ...] = ("source", "adapt", "oracle"), num: int = 64, seed: int = 0, **info: Any
) -> Path:
    """A finished run of the demo's shape; ``info`` replaces keys of run.json."""
    space = load_space("cityscapes19")
    write_json(
        folder / "run.json",
        {
            "name": "game-to-city",
            "recipe": "adapt/self_training",
            "created": "2025-05-06 09:12:44",
            "finished": "2025-05-06 09:31:02",
            "status": "finished",
            "seed": seed,
            "command": "segue run adapt/self_training train.iterations=600",
            "versions": {"segue": "0.1.0", "torch": "2.15.0", "numpy": "2.4.6"},
            "machine": {"platform": "Linux-6.1-x86_64", "python": "3.11.9", "cores": 8},
            "cpu_s": 1843.2,
            "labels": space.to_dict(),
            "roles": {r: s for r, s in ROLES.items() if s in stages},
        }
        | info,
    )
    (folder / "config.yaml").write_text(
        "name: game-to-city\nlabels: cityscapes19\nmodel: {name: bisenet, width: 0.25}\n"
    )
    for index, name in enumerate(stages):
        _make_stage(folder, index, name, num, seed, space)
    return folder


def _make_stage(folder: Path, index: int, name: str, num: int, seed: int, space: LabelSpace) -> None:
    stage, total, rows, ids = folder / "stages" / f"{index}_{name}", Confusion(19), [], []
    for k in range(num):
        label = street(k)
        prediction = guess(label, ERRORS[name] * (0.6 + 0.8 * (k * 37 % 64) / 64), 7 * k + seed)
        rows.append(total.add(label, prediction).sums())
        ids.append(f"zurich/{k:04d}")
        if k % 16 == 8:
            _store(folder, stage, ids[-1], label, prediction, space)
    right, truth, predicted = (np.stack(r).astype(np.uint32) for r in zip(*rows, strict=True))
    images = PerImage(tuple(ids), space.classes, right, truth, predicted, tuple(range(19)))
    write_per_image(images, stage / per_image_file(TARGET))
    worst = [{"id": i, "miou": m} for i, m in images.worst(8)]
    scores = total.scores(space).to_dict() | {"num_images": num, "confusion": total.counts.tolist(), "worst": worst}
    even = [i for i in ids if int(i[-4:]) % 16 == 8]
    write_json(folder / "samples" / folder_of(TARGET) / "evenly_spaced.json", even)
    for image_id, _ in images.worst(2):
        k = int(image_id[-4:])
        _store(folder, stage, image_id, street(k), guess(street(k), ERRORS[name], 7 * k + seed), space)
    prior = dict(zip(space.classes, (truth.sum(0) / truth.sum()).tolist(), strict=True)) if name == "adapt" else None
    write_json(
        stage / "stage.json",
        {
            "name": name,
            "method": {"name": METHODS[name]},
            "iterations": 600,
            "start": "source" if name == "adapt" else None,
            "status": "finished",
            "checkpoint": "last",
            "cpu_s": 612.0,
            "parameters": 536_000,
            "prior": prior,
            "evaluations": {TARGET: scores, "game:val": scores | {"miou": 0.61}},
        },
    )
    _metrics(stage / "metrics.jsonl", name, scores["miou"], predicted.sum(0) / predicted.sum())


def _store(folder: Path, stage: Path, image_id: str, label: np.ndarray, guessed: np.ndarray, space: LabelSpace) -> None:
    shared, own = folder / "samples" / folder_of(TARGET), stage / "images" / folder_of(TARGET)
    for path in (shared, own):
        path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tint = np.array([[0.55, 0.6, 0.62]]) * space.palette()[label] + 70
    photo = np.clip(tint + rng.normal(0, 6, (*label.shape, 1)), 0, 255).astype(np.uint8)
    name = file_of(image_id)
    Image.fromarray(cv2.GaussianBlur(photo, (3, 3), 0)).save(shared / f"{name}_image.jpg")
    Image.fromarray(label).save(shared / f"{name}_label.png")
    Image.fromarray(guessed).save(own / f"{name}.png")


def _metrics(path: Path, name: str, final: float, histogram: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    lines = []
    for t in range(0, 600, 5):
        row: dict[str, Any] = {"iteration": t, "loss/source": 2.2 * np.exp(-t / 150) + 0.3 + rng.normal(0, 0.05)}
        row["lr"] = 0.01 * (1 - t / 600) ** 0.9
        if name == "adapt":
            row["loss/mixed"] = 1.4 * np.exp(-t / 250) + 0.4 + rng.normal(0, 0.06)
            row["log/share_kept"] = 0.8 - 0.5 * np.exp(-t / 120)
            row["log/pseudo_histogram"] = (histogram * np.where(np.arange(19) == 5, 0.01, 1)).tolist()
        lines.append(json.dumps(row))
        if t % 100 == 95:
            done = 1 - np.exp(-t / 160)
            lines.append(json.dumps({"iteration": t, f"miou/{TARGET}": final * done, "miou/game:val": 0.61 * done}))
    path.write_text("\n".join(lines) + "\n")


def page(folder: Path) -> str:
    """The written report as text."""
    return report.write(folder).read_text("utf-8")


def headline(html: str) -> str:
    """The verdict sentence of a page, in plain spaces."""
    found = re.search(r"<h1[^>]*>(.*?)</h1>", html, re.S)
    assert found
    return found[1].replace("\N{NO-BREAK SPACE}", " ")


def evidence(html: str) -> str:
    """The evidence and caveats of a page, in plain spaces."""
    found = re.search(r'<p class="evidence">(.*?)(?:<div|<section|<svg)', html, re.S)
    assert found
    return re.sub(r"<[^>]+>", " ", found[1]).replace("\N{NO-BREAK SPACE}", " ")


def edit(path: Path, **values: Any) -> None:
    """Replace keys of a JSON file."""
    write_json(path, json.loads(path.read_text()) | values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished"))


def copy(source: Path, to: Path) -> Path:
    """A copy to damage."""
    import shutil

    return Path(shutil.copytree(source, to / "run"))


def test_finished_run_says_what_was_gained_and_on_what_evidence(finished: Path) -> None:
    html = page(finished)
    scores = {s: json.loads((finished / f"stages/{k}_{s}/stage.json").read_text()) for k, s in enumerate(METHODS)}
    source, adapted, oracle = (100 * s["evaluations"][TARGET]["miou"] for s in scores.values())
    share = round(100 * (adapted - source) / (oracle - source))
    assert headline(html) == f"Adaptation closes {share} % of the gap."
    assert f"+{adapted - source:.1f} points mIoU on {TARGET} (90 % interval" in evidence(html)
    assert "paired bootstrap over 64 images" in evidence(html) and "no target label was used" in evidence(html)
    assert "One training seed" in evidence(html)
    for value in (source, adapted, oracle):
        assert f'<span class="value">{value:.1f}</span>' in html
    assert "Starved: pole," in html and "Most frequent mistakes" in html
    assert html.count("<img") >= 4 + 3 * 5 + 2 * 3


def test_page_is_self_contained(finished: Path) -> None:
    html = page(finished)
    assert not re.search(r"<script|<link|@import|\son\w+=", html)
    assert all(src.startswith("data:image/") for src in re.findall(r'src="([^"]{5})', html) if src != "data:")
    assert "http" not in html and "url(" not in html


def test_everything_a_user_names_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"'&"
    run = make_run(tmp_path, num=24, name=bad, command=bad, recipe=bad, versions={bad: bad}, notes=[bad], seed=0)
    info = json.loads((run / "run.json").read_text())
    info["labels"]["classes"][0]["name"] = bad
    write_json(run / "run.json", info)
    (run / "config.yaml").write_text(bad)
    for stage in (run / "stages").iterdir():
        data = json.loads((stage / "stage.json").read_text())
        scores = data["evaluations"][TARGET]
        scores["iou"] = {bad: 0.5} | scores["iou"]
        scores["worst"][0]["id"] = bad
        extra = {
            "evaluations": {TARGET: scores, bad: scores},
            "method": bad,
            "start": bad,
            "status": bad,
            "checkpoint": bad,
        }
        write_json(stage / "stage.json", data | extra)
        with (stage / "metrics.jsonl").open("a") as file:
            file.write(
                "".join(json.dumps({"iteration": t, f"loss/{bad}": t, f"miou/{bad}": 0.1}) + "\n" for t in (1, 2))
            )
    html = page(run)
    assert "<script" not in html and html.count("&lt;script&gt;") > 20


def test_many_large_pictures_stay_below_five_megabytes(tmp_path: Path) -> None:
    run = make_run(tmp_path, num=24)
    rng = np.random.default_rng(0)
    names = [f"noise{k}" for k in range(12)]
    shared = run / "samples" / folder_of(TARGET)
    write_json(shared / "evenly_spaced.json", names)
    ids = rng.integers(0, 19, (1024, 2048)).astype(np.uint8)
    photo = rng.integers(0, 255, (1024, 2048, 3)).astype(np.uint8)
    for name in names:
        cv2.imwrite(str(shared / f"{name}_image.jpg"), photo)
        cv2.imwrite(str(shared / f"{name}_label.png"), ids, [cv2.IMWRITE_PNG_COMPRESSION, 0])
        for stage in (run / "stages").iterdir():
            link = stage / "images" / folder_of(TARGET) / f"{name}.png"
            link.symlink_to(shared / f"{name}_label.png")
    (run / "config.yaml").write_text("x: y\n" * 400_000)
    path = report.write(run)
    assert path.stat().st_size <= 5_000_000
    assert path.read_text().count("<img") >= 4


def test_many_classes_stages_and_metrics_stay_small(tmp_path: Path) -> None:
    count = 254
    space = LabelSpace("big", tuple(f"class {k}" for k in range(count)), ((1, 2, 3),) * count, tuple(range(count)))
    info = {"name": "big", "status": "running", "finished": None, "labels": space.to_dict(), "roles": {}}
    write_json(tmp_path / "run.json", info)
    scores = {
        "miou": 0.2,
        "iou": dict.fromkeys(space.classes, 0.2),
        "num_images": 3,
        "protocol": "native",
        "view": "all",
    }
    matrix = {"confusion": np.eye(count).tolist()}
    for k in range(120):
        stage = tmp_path / "stages" / f"{k}_step{k}"
        write_json(
            stage / "stage.json",
            {"name": f"step{k}", "evaluations": {f"d{k % 30}:val": scores | (matrix if k % 30 == 0 else {})}},
        )
        if k > 100:
            rows = [{"iteration": t} | {f"loss/{n}": float(t * n) for n in range(30)} for t in range(500)]
            (stage / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = report.write(tmp_path)
    html = path.read_text()
    assert path.stat().st_size < 3_000_000
    assert headline(html).startswith("Not finished:") and "Too many classes to draw" in html and "class 253" in html


def test_adaptation_that_hurts_is_said_so(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    edit(run / "run.json", roles={"source_only": "adapt", "adapted": "source", "target_supervised": "oracle"})
    html = page(run)
    assert headline(html).startswith("Adaptation hurts: \N{MINUS SIGN}") and '<h1 class="bad">' in html


def test_no_clear_effect_when_the_interval_holds_zero(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    images = run / "stages/0_source" / per_image_file(TARGET)
    counts = dict(np.load(images))
    counts["right"][::2] += np.minimum(9, counts["truth"][::2] - counts["right"][::2])
    same = json.loads((run / "stages/0_source/stage.json").read_text())["evaluations"][TARGET]["miou"]
    with (run / "stages/1_adapt" / per_image_file(TARGET)).open("wb") as file:
        np.savez(file, **{k: v[::-1] if k in ("right", "truth", "predicted") else v for k, v in counts.items()})
    stage = json.loads((run / "stages/1_adapt/stage.json").read_text())
    stage["evaluations"][TARGET]["miou"] = same + 0.001
    write_json(run / "stages/1_adapt/stage.json", stage)
    html = page(run)
    assert headline(html).startswith("No clear effect") and "includes zero" in evidence(html)


def test_weak_evidence_small_gap_and_oracle_checkpoints_are_named(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    for stage in (run / "stages").iterdir():
        (stage / per_image_file(TARGET)).unlink()
        data = json.loads((stage / "stage.json").read_text())
        data["evaluations"][TARGET] |= {"num_images": 7, "miou": 0.5 if "adapt" not in stage.name else 0.52}
        write_json(stage / "stage.json", data | {"checkpoint": "best"})
    text = evidence(page(run))
    assert "only 7 images" in text and "no interval" in text and "chosen with target labels (best)" in text
    assert "no gap to close" in headline(page(run)) and "only +0.0 points from source-only" in text


def test_single_stage_and_a_run_without_scores(tmp_path: Path) -> None:
    html = page(make_run(tmp_path / "a", ("source",), num=24, roles={}))
    assert re.match(r"source reaches \d+\.\d mIoU on city:val\.", headline(html)) and "bootstrap over images" in html
    run = make_run(tmp_path / "b", ("source",), num=24)
    edit(run / "stages/0_source/stage.json", evaluations={})
    html = page(run)
    assert headline(html) == "No scores: nothing was evaluated." and "Losses by iteration" in html
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html).lower()


def test_unfinished_failed_and_damaged_runs(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    edit(run / "run.json", status="running", finished=None, labels={"name": 3})
    (run / "stages/1_adapt/stage.json").write_text('{"name": "ada')
    (run / "stages/1_adapt/metrics.jsonl").write_text('{"iteration": 1, "loss/a": NaN}\n[1]\nnull\n{"iterat')
    (run / "stages/2_oracle" / per_image_file(TARGET)).write_bytes(b"PK")
    for path in (run / "samples" / folder_of(TARGET)).glob("*.jpg"):
        path.write_bytes(b"not a picture")
    html = page(run)
    assert headline(html).startswith("Not finished:") and "stage.json cannot be read" in html and "label space" in html
    edit(run / "run.json", status="failed")
    assert headline(page(run)).startswith("Failed:")
    write_json(tmp_path / "bare" / "run.json", {"name": "bare"})
    assert "Nothing has been trained yet" in page(tmp_path / "bare")
    with pytest.raises(UserError, match="no run folder"):
        report.write(tmp_path)


def test_alarms_and_what_was_watched_are_shown(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    assert "Watched without labels" not in page(run)
    look = {f"watch/target/{name}": 0.5 for name in ("entropy", "confidence", "agreement")}
    look |= {"watch/target/mass": [0.6, 0.4], "watch/target/share": [1.0, 0.0]}
    rows = [look | {"iteration": t, "watch/target/part": t % 4} for t in range(8)]
    broken = rows[0] | {"watch/target/mass": [0.1]}
    with (run / "stages/1_adapt/metrics.jsonl").open("a") as file:
        file.write("\n".join(map(json.dumps, [*rows, broken, {"iteration": 7, "alarm": "no"}])) + "\n")
    html = page(run)
    assert "No alarm was raised" in html and "target: mutual information" in html
    with (run / "stages/1_adapt/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 8, "alarm": {"kind": "collapse", "text": "all is <road>"}}) + "\n")
    html = page(run)
    assert "all is &lt;road&gt;" in html and "No alarm was raised" not in html


def test_seeds_show_the_median_and_agree_or_not(tmp_path: Path) -> None:
    run = make_run(tmp_path, (), seeds=[0, 1, 2], roles=ROLES)
    for seed, miou in ((0, 0.60), (1, 0.40), (2, 0.50)):
        folder = make_run(run / f"seed_{seed}", ("source", "adapt"), num=24, seed=seed)
        stage = json.loads((folder / "stages/1_adapt/stage.json").read_text())
        stage["evaluations"][TARGET]["miou"] = miou
        write_json(folder / "stages/1_adapt/stage.json", stage)
    html = page(run)
    assert "median seed 2 of 3" in html and "2 (median)" in html and "median of 3 seeds, which range from" in html
    edit(run / "seed_1/stages/1_adapt/stage.json", evaluations={TARGET: {"miou": 0.1, "num_images": 24}})
    html = page(run)
    assert "Seeds disagree" in evidence(html) and headline(html).startswith("No clear effect")
    write_json(run / "result.json", {"median_seed": 0, "data": TARGET})
    assert "median seed 0 of 3" in page(run)
    (run / "seed_1/run.json").write_text("{")
    assert "seed_1 is no run folder" in page(run)
