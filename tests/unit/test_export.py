"""ONNX files: answers of onnxruntime against the network's own, what the metadata says, and what is refused."""

from __future__ import annotations

import json
import math
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from helpers.toys import SPACE, Toy
from segue.api import Predictor
from segue.errors import UserError
from segue.export import Export, ExportError, export, forms, latency, parity, session, write
from segue.export.quantise import quantise
from segue.export.session import OnnxNetwork, pictures
from segue.labels import U8, space_from_dict
from segue.models.base import Output
from segue.models.build import build_model

CPU = torch.device("cpu")
SIZE = (64, 96)


def toy(seed: int = 0, **settings: Any) -> Toy:
    """Six outputs, the last of which is no class and would win most pixels."""
    model = Toy(seed, classes=len(SPACE) + 1, **settings)
    model.num_classes = len(SPACE)
    model.weight.data[-1] *= 5
    model.notes = ("weights of nobody: not for sale",)
    return model.eval()  # type: ignore[return-value]


class Rigid(Toy):
    """Any size works, but a graph of it holds the height that it was traced with."""

    def decode(self, x: Tensor) -> Output:
        return super().decode(x + torch.linspace(0, 1, int(x.shape[2]))[:, None])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    out = {"both": folder / "both.onnx", "uint8": folder / "uint8.onnx", "fixed": folder / "fixed.onnx"}
    info = {"run": "/home/somebody/run", "stage": "adapted", "iteration": 7, "chosen": "last"}
    export(toy(), SPACE, out["both"], Export(gives="both", size=SIZE), info)
    export(toy(align_corners=True), SPACE, out["uint8"], Export("uint8", "ids", size=SIZE, opset=20), info)
    export(Rigid(), SPACE, out["fixed"], Export(size=SIZE, fixed_size=True), info)
    return out


def metadata(path: Path) -> dict[str, Any]:
    """As any consumer reads it."""
    entries = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    found: dict[str, Any] = json.loads(entries["segue"])
    return found


def floats(images: list[U8]) -> npt.NDArray[np.float32]:
    return np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(64, 96), (32, 32), (33, 47), (129, 40), (8 * 13, 200)])
def test_onnxruntime_answers_as_the_network(files: dict[str, Path], size: tuple[int, int], batch: int) -> None:
    image = floats(pictures(batch, size, seed=4))
    logits, ids = onnxruntime.InferenceSession(str(files["both"])).run(["logits", "ids"], {"image": image})
    with torch.no_grad():
        output = toy()(torch.from_numpy(image))
        wanted = output.upsample(output.to_classes()).numpy()
    assert logits.shape == (batch, len(SPACE), *size) and logits.dtype == np.float32
    assert ids.shape == (batch, *size) and ids.dtype == np.uint8
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    np.testing.assert_array_equal(ids, wanted.argmax(1))
    assert len(np.unique(ids)) > 2  # a constant answer would prove nothing


@pytest.mark.parametrize("size", [(64, 96), (45, 61)])
def test_bytes_in_and_ids_out_are_what_predict_says(files: dict[str, Path], size: tuple[int, int]) -> None:
    (picture,) = pictures(1, size, seed=5)
    (ids,) = onnxruntime.InferenceSession(str(files["uint8"])).run(None, {"image": picture[None]})
    np.testing.assert_array_equal(ids[0], Predictor(toy(align_corners=True), SPACE, {}).predict(picture))


def test_metadata_is_all_that_a_consumer_needs(files: dict[str, Path]) -> None:
    found = metadata(files["both"])
    assert space_from_dict(found["labels"]) == SPACE
    assert [row["train_id"] for row in found["labels"]["classes"]] == list(range(len(SPACE)))
    assert found["format"] == "segue-onnx-1" and found["segue"] and found["model"]["name"] == "toy"
    assert found["normalisation"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert found["notes"] == ["weights of nobody: not for sale"]
    assert found["from"] == {"stage": "adapted", "iteration": 7, "chosen": "last"}
    assert found["input"]["layout"] == "NCHW" and found["outputs"]["ids"]["type"] == "uint8"
    assert metadata(files["uint8"])["input"]["shape"] == ["batch", "height", "width", 3]
    assert [(row["batch"], row["size"]) for row in found["parity"]] == [
        (1, [64, 96]),
        (2, [64, 96]),
        (1, [49, 73]),
        (2, [49, 73]),
        (1, [32, 47]),
        (2, [32, 47]),
    ]
    assert all(
        row["max_difference"] < 1e-5 and row["equal_share"] == 1 and not row["different_share"]
        for row in found["parity"]
    )


def test_file_says_what_is_free_and_nothing_of_the_machine(files: dict[str, Path]) -> None:
    model = onnxruntime.InferenceSession(str(files["both"]))
    assert model.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert model.get_outputs()[1].shape == ["batch", "height", "width"]
    content = files["both"].read_bytes()
    for secret in (b"stack_trace", b".py", b"site-packages", b"/home/somebody"):
        assert secret not in content
    assert onnx.load_model(str(files["uint8"])).opset_import[0].version == 20


def test_fixed_size_takes_that_size_alone(files: dict[str, Path]) -> None:
    model = onnxruntime.InferenceSession(str(files["fixed"]))
    assert model.get_inputs()[0].shape == ["batch", 3, *SIZE]
    assert model.run(None, {"image": floats(pictures(3, SIZE))})[0].shape == (3, len(SPACE), *SIZE)
    with pytest.raises(Exception, match="Got: 32 Expected: 64"):
        model.run(None, {"image": floats(pictures(1, (32, 96)))})
    assert {tuple(row["size"]) for row in metadata(files["fixed"])["parity"]} == {SIZE}


def test_a_network_that_allows_one_size_only_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot run the file on an image \(1, 3, 49, 73\).*--fixed-size .* 64x96"):
        export(Rigid(), SPACE, tmp_path / "m.onnx", Export(size=SIZE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["weights", "mean", "ids"])
def test_a_wrong_graph_is_caught_and_not_kept(
    fault: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(model: Toy, how: Export) -> onnx.ModelProto:
        graph = onnx.load_model(str(files["both"]))
        del graph.metadata_props[:]
        if fault == "ids":
            next(node for node in graph.graph.node if node.op_type == "ArgMax").op_type = "ArgMin"
        else:
            tensor = next(t for t in graph.graph.initializer if t.name.endswith(fault.removesuffix("s")))
            values = onnx.numpy_helper.to_array(tensor) + np.float32(0.003)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return graph

    path = tmp_path / "m.onnx"
    path.write_bytes(b"an earlier file")
    monkeypatch.setattr(write, "to_graph", damaged)
    with pytest.raises(ExportError, match="does not answer as the model does, none was kept: 1x3x64x96"):
        export(toy(), SPACE, path, Export(gives="both", size=SIZE))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"] and path.read_bytes() == b"an earlier file"


def test_an_undamaged_graph_passes_that_test(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load_model(str(files["both"]))
    del graph.metadata_props[:]
    monkeypatch.setattr(write, "to_graph", lambda model, how: graph)
    export(toy(), SPACE, tmp_path / "m.onnx", Export(gives="both", size=SIZE))
    assert metadata(tmp_path / "m.onnx") == metadata(files["both"]) | {"from": {}}


def test_bounds_scale_with_the_logits_and_refuse_nan() -> None:
    assert parity.Check(1, SIZE, 9e-5, 0.5, 1.0, 0.0).holds
    assert not parity.Check(1, SIZE, 2e-4, 0.5, 1.0, 0.0).holds
    assert parity.Check(1, SIZE, 2e-4, 3.0, 1.0, 0.0).holds
    assert not parity.Check(1, SIZE, math.nan, 3.0, 1.0, 0.0).holds
    assert not parity.Check(1, SIZE, 0.0, 3.0, 0.9998, 2e-4).holds
    assert parity.Check(1, SIZE, None, 3.0, 0.9998, 5e-5).holds


def test_a_tie_within_rounding_is_no_difference() -> None:
    wanted = np.zeros((1, 3, 10, 10), np.float32)
    wanted[0, 0], wanted[0, 1] = 20.0, 19.0
    wanted[0, 1, 0] = 19.999  # a row where rounding may turn the answer
    ids = np.zeros((1, 10, 10), np.uint8)
    ids[0, 0] = 1
    tied = parity._check({"ids": ids}, wanted)
    assert tied.equal_share == pytest.approx(0.9) and tied.different_share == 0 and tied.holds
    ids[0, 1, 0] = 1
    assert parity._check({"ids": ids}, wanted).different_share == pytest.approx(0.01)
    assert not parity._check({"ids": ids}, wanted).holds
    assert not parity._check({"ids": ids[:, :9]}, wanted).holds


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="16x96 is too small"):
        Export(size=(16, 96))
    with pytest.raises(UserError, match="opset 9"):
        Export(opset=9)


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "find_spec", lambda name: None if name == "onnxscript" else util.find_spec(name))
    with pytest.raises(UserError, match=r"onnxscript; pip install 'segue\[onnx\]'"):
        export(toy(), SPACE, tmp_path / "m.onnx", Export(size=SIZE))
    plan = latency.Plan([SIZE], runs=1, warmup=1, forms=("eager", "onnx"))
    rows = latency.measure(toy(), SPACE, plan, CPU)["sizes"][0]["rows"]
    assert "p50_ms" in rows[0] and "pip install" in rows[1]["skipped"]


def test_file_as_a_network_is_scored_like_the_network(files: dict[str, Path]) -> None:
    wrapped = Predictor(OnnxNetwork(files["both"], len(SPACE)), SPACE, {})
    (picture,) = pictures(1, (70, 90), seed=6)
    np.testing.assert_array_equal(wrapped.predict(picture), Predictor(toy(), SPACE, {}).predict(picture))


def test_int8_stays_near_float(files: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    images = pictures(4, (90, 120), seed=7)
    quantise(files["both"], target, [partial(images.__getitem__, n) for n in range(4)], SIZE)
    operators = [node.op_type for node in onnx.load_model(str(target)).graph.node]
    assert "DequantizeLinear" in operators
    image = floats(pictures(2, (70, 90), seed=8))
    one, two = (
        onnxruntime.InferenceSession(str(p)).run(["logits"], {"image": image})[0] for p in (files["both"], target)
    )
    assert 0 < np.abs(one - two).max() < 0.1 * np.abs(one).max()
    assert (one.argmax(1) == two.argmax(1)).mean() > 0.9


class Folder:
    """Pictures in memory with what latency asks of a data set."""

    def __init__(self, number: int) -> None:
        self.images = pictures(number, (80, 100), seed=9)

    def __len__(self) -> int:
        return len(self.images)

    def read_image(self, index: int) -> U8:
        return self.images[index]


def test_latency_tells_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_compiler(*_: object, **__: object) -> object:
        def run(image: Tensor) -> Tensor:
            raise RuntimeError("no working compiler found\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", without_compiler)
    told: list[tuple[int, int]] = []
    plan = latency.Plan([SIZE, (40, 50)], batch=2, runs=3, warmup=1)
    calibration: Any = Folder(2)
    found = latency.measure(
        toy(), SPACE, plan, CPU, calibration=calibration, progress=lambda done, total: told.append((done, total))
    )
    assert json.loads(json.dumps(found)) == found
    assert [table["size"] for table in found["sizes"]] == [[64, 96], [40, 50]]
    assert told == [(number, 6) for number in range(1, 7)]
    assert found["calibration_pictures"] == 2 and found["quality"] is None
    for table in found["sizes"]:
        rows = {row["form"]: row for row in table["rows"]}
        assert tuple(rows) == forms.FORMS
        assert rows["compiled"]["skipped"] == "cannot run here (RuntimeError: no working compiler found)"
        assert "CUDA" in rows["fp16"]["skipped"] and "CUDA" in rows["bf16"]["skipped"]
        for form in ("eager", "channels_last", "onnx", "int8"):
            row = rows[form]
            numbers = [value for key, value in row.items() if key != "form"]
            assert all(math.isfinite(value) and value > 0 for value in numbers)
            assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
            assert row["fps"] == pytest.approx(2e3 / row["p50_ms"])
            assert row["ids_as_eager"] > (0.9 if form == "int8" else 0.9999)
        assert rows["eager"]["speed"] == rows["eager"]["speed_p95"] == 1


def test_int8_without_calibration_is_skipped_clearly() -> None:
    plan = latency.Plan([SIZE], runs=1, warmup=1, forms=("int8",))
    (row,) = latency.measure(toy(), SPACE, plan, CPU)["sizes"][0]["rows"]
    assert "give --data or --images" in row["skipped"]


@pytest.mark.slow
def test_compiled_form_answers_as_eager() -> None:
    model = build_model({"name": "bisenet", "width": 0.125}, len(SPACE))
    plan = latency.Plan([SIZE], runs=1, warmup=1, forms=("eager", "compiled"))
    rows = latency.measure(model, SPACE, plan, CPU)["sizes"][0]["rows"]
    assert rows[1].get("ids_as_eager", 0) > 0.999, rows[1]
