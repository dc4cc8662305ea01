"""``segue gap``: one number first, the files it writes, stored fingerprints, plans, classes, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from helpers.command import refused, segue
from segue.data.buckets import read_ranking
from segue.files import read_json

NETWORK = ("--network", "timm:test_resnet@random", "--layers", r"layer[13]\.0", "--size", "64x96", "--device", "cpu")


@pytest.fixture(scope="module")
def sides(scene_data: Path) -> list[object]:
    return ["gta5:train", "cityscapes:val", "--root-a", scene_data / "game", "--root-b", scene_data / "city"]


def said(*arguments: object) -> str:
    done = segue("gap", *arguments)
    assert done.code == 0, done
    return done.out


def test_one_number_first_then_layers_a_page_and_stored_fingerprints(sides: list[object], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("gap.json", "gap.html", "a.npz")]
    out = said(*sides, *NETWORK, "--json", files[0], "--picture", files[1], "--save", files[2])
    found = read_json(files[0])
    first, _, head, *rows = out.splitlines()
    assert first.startswith(f"{found['distance']:.4g} of 1000 bins")
    assert f"floor {found['floor']:.4g}" in first
    assert head.split() == ["layer", "gap", "floor"]
    for row, (layer, values) in zip(rows, found["layers"].items(), strict=True):
        assert row.split()[:3] == [layer, f"{values['distance']:.4g}", f"{values['floor']:.4g}"]
    assert found["share"] == found["distance"] / 1000 and found["size"] == [64, 96]
    assert found["a"] == {"name": "gta5:train", "images": 6} and found["b"]["images"] == 6
    page = files[1].read_text("utf-8")
    assert "<svg" in page and f"{found['distance']:.4g}" in page
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:http|//)""", page)
    again = said(files[2], *sides[1:2], *sides[4:], *NETWORK)
    assert again.startswith(f"{found['distance']:.4g} of 1000 bins") and "no floor" in again.splitlines()[0]
    with np.load(files[2], allow_pickle=False) as stored:
        assert "counts/layer1.0" in stored
    said(*sides, *NETWORK, "--save", tmp_path / "b.json")
    assert said(files[2], tmp_path / "b.json").startswith("0 of 1000 bins")


def test_a_stored_fingerprint_is_of_one_size_and_preparation(sides: list[object], tmp_path: Path) -> None:
    said(*sides, *NETWORK, "--save", tmp_path / "a.npz", "--bins", 20)
    other = [tmp_path / "a.npz", *sides[1:2], *sides[4:], *NETWORK]
    for changed in (["--size", "32x48"], ["--square"]):
        refused(segue("gap", *other, *changed), "store it again")


def test_names_are_escaped_in_the_page(scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "<b>x&y"
    odd.symlink_to(scene_data / "city/leftImg8bit/val")
    monkeypatch.chdir(tmp_path)
    said(odd.name, odd.name, *NETWORK, "--limit", 2, "--picture", "page.html", "--distance", "nfd")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<b>x" not in page and "&lt;b&gt;x&amp;y" in page


def test_a_plan_counts_nothing_and_says_the_bytes(
    sides: list[object], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segue.gap.fingerprint.add_counts", None)
    out = said(*sides, *NETWORK, "--plan", "--bins", 10)
    assert "2 layers" in out and "18 images through the network" in out
    neurons = int(re.search(r"(\d+) neurons", out)[1])  # type: ignore[index]
    assert f"fingerprints: {5 * 8 * neurons * 10} bytes" in out
    by_class = said(*sides, "--network", trained, "--plan", "--classes", "--device", "cpu").splitlines()[-1]
    size, classes, neurons, bins = map(
        int,
        re.search(r"(\d+) bytes .*?, (\d+) classes, (\d+) neurons .* (\d+) bins", by_class).groups(),  # type: ignore[union-attr]
    )
    assert size == 5 * 8 * classes * neurons * bins and bins == 64


def test_by_predicted_class(sides: list[object], trained: Path, tmp_path: Path) -> None:
    out = said(
        *sides, "--network", trained, "--classes", "--json", tmp_path / "gap.json", "--device", "cpu", "--bins", 50
    )
    classes = read_json(tmp_path / "gap.json")["classes"]
    assert any(c["distance"] for c in classes.values())
    for name, values in classes.items():
        assert (values["distance"] is None) == (0 in values["positions"])
        if values["distance"] is not None:
            assert re.search(rf"^{re.escape(name)} +{values['distance']:.4g} ", out, re.MULTILINE)
    one = re.findall(r"in one of the two only: (.*)", out)
    assert set(", ".join(one).split(", ")) - {""} == {
        name for name, values in classes.items() if sum(p > 0 for p in values["positions"]) == 1
    }


def test_rank_writes_a_published_ranking(sides: list[object], tmp_path: Path) -> None:
    out = said("rank", *sides, *NETWORK, "--out", tmp_path / "rank.json")
    ranking = read_ranking(tmp_path / "rank.json")
    assert len(ranking.images) == 6 and "6 images" in out.splitlines()[0]
    nearest = out.splitlines().index("nearest") + 1
    assert out.splitlines()[nearest].split()[1] == ranking.images[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--distance", "mmd"], ["mmd", "emd, nfd, fd"]),
        (["--size", "64"], ["HEIGHTxWIDTH"]),
        (["--network", "timm:nothing"], ["no model 'nothing'"]),
        (["--layers", "nowhere"], ["matches 'nowhere'"]),
        (["--classes"], ["trained model of ours"]),
        (["--save", "a.txt"], [".npz"]),
    ],
)
def test_what_is_refused(arguments: list[str], words: list[str], sides: list[object]) -> None:
    refused(segue("gap", *sides, *NETWORK, *arguments), *words)


def test_stored_fingerprints_have_no_images(sides: list[object], tmp_path: Path) -> None:
    said(*sides, *NETWORK, "--save", tmp_path / "a.npz", "--bins", 20)
    refused(
        segue("gap", "rank", tmp_path / "a.npz", tmp_path / "a.npz", *NETWORK, "--out", tmp_path / "r"), "no images"
    )
    (tmp_path / "b.npz").write_bytes(b"PK")
    refused(segue("gap", tmp_path / "a.npz", tmp_path / "b.npz"), "b.npz")
    refused(segue("gap", tmp_path / "a.npz", tmp_path / "gone.npz"), "no fingerprint", "gone.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--distance", "nfd"], ["nfd compares normal forms"]),
        (["--layers", "layer1.0", "--square"], ["store it again"]),
        (["--classes"], ["no images"]),
    ],
)
def test_what_a_stored_fingerprint_cannot_do_is_told_before_images_are_read(
    arguments: list[str], words: list[str], sides: list[object], trained: Path, tmp_path: Path
) -> None:
    said(*sides, *NETWORK, "--save", tmp_path / "a.npz", "--bins", 20)
    network = ["--network", trained, "--device", "cpu"] if "--classes" in arguments else NETWORK
    found = segue("gap", tmp_path / "a.npz", *sides[1:2], *sides[4:], *network, *arguments)
    refused(found, *words)
    assert "looking at" not in found.err


def test_a_home_folder_in_quotes(scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").symlink_to(scene_data / "city/leftImg8bit/val")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "(6 images)" in said("~/pictures", "~/pictures/**/*.png", *NETWORK, "--distance", "nfd").splitlines()[1]
