"""``segue export`` and ``segue bench latency`` as a user types them."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import segue
from helpers.command import refused
from helpers.command import segue as command
from helpers.stored import stage
from segue.data.images import read_rgb
from segue.export import session


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("model") / "fresh", 3, 5)


def test_export_of_a_checkpoint_answers_as_predict(model: Path, scene_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.onnx"
    arguments = ("--size", "64x96", "--output", "both", "--input", "uint8", "--checkpoint", "3")
    done = command("export", model, "--out", file, *arguments)
    assert done.code == 0, done
    assert "2x3x49x73: largest logit difference" in done.out and str(file) in done.out
    assert "image: uint8 batch, height, width, 3" in done.out and "ids: uint8 batch, height, width" in done.out
    run = onnxruntime.InferenceSession(str(file))
    assert json.loads(run.get_modelmeta().custom_metadata_map["segue"])["from"]["iteration"] == 3
    pictures = sorted((scene_data / "city/leftImg8bit/val").rglob("*.png"))[:2]
    for path in pictures:
        logits, ids = run.run(None, {"image": read_rgb(path)[None]})
        np.testing.assert_array_equal(ids[0], segue.load(model, checkpoint="3", device="cpu").predict(path))
        assert logits.shape == (1, 19, 64, 96)


def test_latency_prints_and_stores(model: Path, tmp_path: Path) -> None:
    stored = tmp_path / "latency.json"
    short = ("--size", "64x96", "--size", "45x61", "--runs", "2", "--warmup", "1", "--device", "cpu")
    done = command("bench", "latency", "--model", model, "--forms", "eager,fp16", *short, "--json", stored)
    assert done.code == 0, done
    found = json.loads(stored.read_text())
    assert [[row["form"] for row in size["rows"]] for size in found["sizes"]] == [["eager", "fp16"]] * 2
    assert found["machine"]["threads"] == 1 and {"torch", "segue"} <= set(found["versions"])
    for words in ("45x61", "p99 ms", "fp16: measured on CUDA alone"):
        assert words in done.out


@pytest.mark.slow
def test_latency_prints_and_stores_all_forms(model: Path, scene_data: Path, tmp_path: Path) -> None:
    stored = tmp_path / "latency.json"
    forms = "eager,channels_last,fp16,onnx,int8"
    city = scene_data / "city"
    data = ("--data", "cityscapes:val", "--root", city, "--images", city / "leftImg8bit/val")
    short = ("--size", "64x96", "--size", "45x61", "--runs", "2", "--warmup", "1", "--device", "cpu")
    done = command("bench", "latency", "--model", model, "--forms", forms, *data, *short, "--json", stored)
    assert done.code == 0, done
    found = json.loads(stored.read_text())
    assert [row["form"] for row in found["sizes"][1]["rows"]] == forms.split(",")
    assert found["machine"]["threads"] == 1 and {"torch", "onnxruntime", "segue"} <= set(found["versions"])
    quality = found["quality"]
    scored = segue.evaluate(model, "cityscapes:val", root=city, device="cpu")
    assert quality["num_images"] == scored["num_images"] == 6
    assert quality["onnx"] == pytest.approx(scored["miou"], abs=1e-3)
    assert quality["cost_points"] == pytest.approx(100 * (quality["onnx"] - quality["int8"]))
    for words in ("45x61", "p99 ms", "fp16: measured on CUDA alone", "int8 calibrated with 6 pictures", "int8 costs"):
        assert words in done.out


def test_what_cannot_be_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(command("export", model, "--output", "colours"), "--output", "logits, ids, both")
    refused(command("export", model, "--input", "int4"), "--input", "float, uint8")
    refused(command("export", model, "--size", "16x16"), "too small")
    refused(command("export", tmp_path), "no model")
    refused(command("bench", "latency", "--model", model, "--forms", "eager,lazy"), "lazy", "channels_last")
    monkeypatch.setattr(session, "find_spec", lambda name: None if name == "onnx" else util.find_spec(name))
    refused(command("export", model, "--out", tmp_path / "m.onnx"), "onnx", "pip install 'segue[onnx]'")
    assert list(tmp_path.iterdir()) == []
