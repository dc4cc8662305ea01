"""``segue convert``: a table of every key, a model that every command accepts, and all or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from helpers import published
from helpers.command import files, refused, segue
from helpers.recipes import recipe
from segue import recipes
from segue.checkpoint import load_model
from segue.convert import ConvertError, plan, write
from segue.files import read_json
from segue.foreign.base import LAYOUTS
from segue.models.base import MODELS
from segue.models.build import build_model

STATE = published.erfnet(19)
Change = Callable[[dict[str, Tensor]], Any]


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def changed(**entries: Tensor) -> Change:
    return lambda state: {**state, **{key.replace("__", "."): value for key, value in entries.items()}}


def without(key: str) -> Change:
    return lambda state: {k: v for k, v in state.items() if k != key}


LAST = "decoder.output_conv.weight"
DAMAGES: dict[str, tuple[Change, str, str]] = {
    "one missing": (without("encoder.layers.3.bn1.bias"), "missing", "encoder.layers.3.bn1.bias"),
    "one extra": (changed(novel__weight=torch.ones(1)), "unexpected", "novel.weight"),
    "deeper": (
        changed(encoder__layers__15__conv3x1_1__bias=torch.ones(128)),
        "unexpected",
        "the network has no encoder.layers.15.conv3x1_1.bias",
    ),
    "wrong shape": (
        changed(encoder__layers__1__bn1__weight=torch.ones(63)),
        "wrong shape",
        "encoder.layers.1.bn1.weight  ((63,) instead of (64,))",
    ),
    "not a number": (
        changed(encoder__layers__1__bn1__weight=torch.full((64,), torch.nan)),
        "not finite",
        "encoder.layers.1.bn1.weight",
    ),
    "half": (lambda s: {k: v for k, v in s.items() if not k.startswith("decoder.layers")}, "missing", "decoder.layers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_does_not_fit_leaves_the_report_and_nothing_else(damage: str, tmp_path: Path) -> None:
    change, status, name = DAMAGES[damage]
    old, new = save(change(STATE), tmp_path / "model.pth"), tmp_path / "new"
    done = segue("convert", old, new, "--report", tmp_path / "report.json")
    refused(done, "model.pth", "layout erfnet_cil", "nothing is written", status, name)
    report = read_json(tmp_path / "report.json")
    assert report["counts"][status] >= 1
    told = {row["key"] or row["ours"] for row in report["keys"]}
    assert told >= set(change(STATE))
    if status == "missing":  # batch counters may be absent
        assert told >= {key for key in STATE if not key.endswith("num_batches_tracked")}
    lines = done.out.splitlines()
    assert sum(line.startswith(tuple(report["counts"])) for line in lines) == len(report["keys"])
    assert any(line.startswith(status) and name in line for line in lines)
    assert {p.name for p in tmp_path.iterdir()} == {"model.pth", "report.json"}
    with pytest.raises(ConvertError):
        write(plan(old), new)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "the state of an optimiser, not weights"),
        ({"stem.weight": torch.ones(2)}, "no known layout has these keys (1: stem.weight, …); tried: "),
        ([1, 2], "no state dict"),
    ],
)
def test_other_files_are_refused(content: Any, said: str, tmp_path: Path) -> None:
    refused(segue("convert", save(content, tmp_path / "w.pth"), tmp_path / "new"), "w.pth", said)
    assert not (tmp_path / "new").exists()


def test_another_architecture_by_name_is_refused(tmp_path: Path) -> None:
    old = save(STATE, tmp_path / "w.pth")
    refused(segue("convert", old, tmp_path / "new", "--layout", "bisenet_plain"), "w.pth", "conv_out.conv_out.weight")
    done = segue("convert", old, tmp_path / "e.safetensors", "--layout", "stdc_imagenet")
    refused(done, "missing", "unexpected", "nothing is written")
    refused(segue("convert", old, tmp_path / "new", "--layout", "erfnet"), "did you mean 'erfnet_cil'")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_the_table_of_a_file_that_fits(tmp_path: Path) -> None:
    old = save({f"module.{k}": v for k, v in published.erfnet(20, True).items()}, tmp_path / "erfnet_pretrained.pth")
    done = segue("convert", old, tmp_path / "new", "--report", tmp_path / "r.json")
    assert done.code == 0, done
    assert "model of layout erfnet_official: 343 matched, 2 dropped" in done.out
    assert "note: published ERFNet weights: CC BY-NC 4.0" in done.out
    assert "matched      encoder.layers.1.bn1.bias\n" in done.out
    assert done.out.endswith(f"{tmp_path / 'new'}\n")
    report = read_json(tmp_path / "r.json")
    assert report["layout"] == "erfnet_official"
    assert report["counts"] == {"matched": 343, "dropped": 2}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["model.json", "model.safetensors"]
    info = read_json(tmp_path / "new/model.json")
    assert info["source"]["file"] == "erfnet_pretrained.pth"
    assert any("CC BY-NC" in note for note in info["notes"])


def test_renamed_keys_name_both(tmp_path: Path) -> None:
    done = segue(
        "convert", save({"state_dict": published.stdc("stdc813")}, tmp_path / "w.tar"), tmp_path / "e.safetensors"
    )
    assert done.code == 0, done
    assert "renamed      features.2.conv_list.0.bn.bias -> features.2.convs.0.norm.bias\n" in done.out
    assert "dropped      x8.0.2.conv_list.0.bn.bias  (the same tensor as features.2.conv_list.0.bn.bias)\n" in done.out
    with safe_open(str(tmp_path / "e.safetensors"), "pt") as file:
        assert file.metadata()["layout"] == "stdc_imagenet"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    return write(plan(save(STATE, folder / "model.pth")), folder / "new")


def test_every_command_accepts_the_model(converted: Path, scene_data: Path, tmp_path: Path) -> None:
    data = ["--data", "cityscapes:val", "--root", scene_data / "city", "--device", "cpu"]
    done = segue("evaluate", "--model", converted, *data)
    assert done.code == 0, done
    assert "stage converted, iteration 0, checkpoint as published" in done.out
    images = scene_data / "city/leftImg8bit/val"
    one = next(images.rglob("*.png"))
    done = segue("predict", "--model", converted, "--input", one, "--out", tmp_path / "p", "--device", "cpu")
    assert done.code == 0, done
    given = recipe(scene_data) | {"model": {"name": "erfnet"}}
    given["stages"] = [{**given["stages"][0], "start": str(converted)}]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(given))
    assert recipes.load(tmp_path / "r.yaml").stages[0].start == str(converted)
    short = ["train.iterations=1", "stages.0.train.iterations=1", "--device", "cpu", "--out", tmp_path / "run"]
    done = segue("run", tmp_path / "r.yaml", *short)
    assert done.code == 0, done
    before, after = load_model(converted)[0].state_dict(), load_model(tmp_path / "run")[0].state_dict()
    moved = (before["encoder.layers.3.conv3x1_1.weight"] - after["encoder.layers.3.conv3x1_1.weight"]).abs().max()
    assert 0 < moved < 0.1, "training went on from the converted weights"


def test_a_model_of_ours_needs_nothing(converted: Path, tmp_path: Path) -> None:
    refused(segue("convert", converted / "model.safetensors", tmp_path / "new"), "a model of Segue already")


def test_nothing_that_exists_is_overwritten(converted: Path) -> None:
    before = files(converted)
    refused(segue("convert", converted.parent / "model.pth", converted), "exists; choose another name")
    with pytest.raises(ConvertError, match="exists"):
        write(plan(converted.parent / "model.pth"), converted)
    assert files(converted) == before


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segue import convert

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "save_model", fail)
    refused(segue("convert", save(STATE, tmp_path / "w.pth"), tmp_path / "new"), "No space left")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_labels_choose_classes_and_their_order(tmp_path: Path) -> None:
    unknown = published.erfnet(7)
    old = save(unknown, tmp_path / "w.pth")
    refused(segue("convert", old, tmp_path / "new"), "7 classes", "--labels", "segue list spaces")
    refused(segue("convert", old, tmp_path / "new", "--labels", "camvid11"), "camvid11 has 11 classes, the file has 7")
    refused(segue("convert", old, tmp_path / "new", "--labels", "street8"), "did you mean 'street7'")
    assert segue("convert", old, tmp_path / "new", "--labels", "street7").code == 0
    model, labels, info = load_model(tmp_path / "new")
    assert labels.name == "street7"
    assert info["source"]["outputs"] == list(range(7))
    assert torch.equal(model.state_dict()[LAST], unknown[LAST])
    five = save(published.erfnet(5), tmp_path / "five.pth")
    done = segue("convert", five, tmp_path / "five", "--labels", "cityscapes19")
    refused(done, "has no output for: building, wall", "it has road, sidewalk, vegetation, terrain, sky")


def test_names_of_new_files_fit_what_they_hold(tmp_path: Path) -> None:
    model = save(STATE, tmp_path / "w.pth")
    refused(segue("convert", model, tmp_path / "new.safetensors"), "name a folder")
    names = ("conv1", "conv2", "conv3", "conv4", "classifier")
    other = save(published.discriminator(names, 2), tmp_path / "d.pth")
    refused(segue("convert", other, tmp_path / "d"), "one discriminator", "NAME.safetensors")
    refused(segue("convert", other, tmp_path / "d.safetensors", "--labels", "street7"), "has no classes")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.pth", "w.pth"]


def test_settings_that_no_file_tells(tmp_path: Path) -> None:
    old = save(STATE, tmp_path / "w.pth")
    refused(segue("convert", old, tmp_path / "new", "train.iterations=3"), "only model.KEY=VALUE")
    refused(segue("convert", old, tmp_path / "new", "model.dropout=3"), "unknown key 'model.dropout'")
    assert segue("convert", old, tmp_path / "new", "model.dropout_deep=0.1").code == 0
    assert load_model(tmp_path / "new")[0].config.model_dump()["dropout_deep"] == 0.1


def test_every_model_has_outputs_that_can_be_reordered() -> None:
    from segue.convert import _reordered

    order = [2, 0, 1]
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in MODELS.names():
        model = build_model({"name": name, **MODELS.get(name).tiny()}, 3).eval()
        with torch.no_grad():
            before = model(image).logits
            model.load_state_dict(_reordered(model, order))
            torch.testing.assert_close(model(image).logits, before[:, order])


def test_the_layout_of_contributing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    block = re.search(r"## Add a layout.*?```python\n(.*?)```", text, re.DOTALL)
    assert block
    LAYOUTS.names()  # scanned before the copy that is thrown away
    monkeypatch.setattr(LAYOUTS, "_classes", dict(LAYOUTS._classes))
    exec(block[1], {"__name__": "some_lab"})
    student = build_model({"name": "bisenet"}, 3).state_dict()
    content = {f"student.{key}": value for key, value in student.items() if key not in ("mean", "std")}
    torch.save(content | {"teacher.head.bias": torch.ones(3)}, tmp_path / "distilled_1.pth")
    found = plan(tmp_path / "distilled_1.pth")
    assert (found.foreign.layout, found.faults) == ("some_lab", ())
    assert found.counts() == {"renamed": len(content), "dropped": 1}


def test_layouts_are_listed() -> None:
    done = segue("list", "layouts")
    assert done.code == 0
    assert "erfnet_official" in done.out
    assert all(len(line.split()) > 3 for line in done.out.splitlines()), "every layout says whose files it reads"
