"""Files of fingerprints, ours and those of the published library: round trips, damage, and nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segue.gap.distances import emd, image_distances
from segue.gap.errors import GapError
from segue.gap.files import FACTS, load, save
from segue.gap.fingerprint import Fingerprint, Gaussian, Histogram, count, gaussian
from segue.gap.layers import Probe
from segue.gap.ranges import Ranges, measure
from segue.gap.vdna_files import read_vdna, read_vdna_ranges, write_vdna

EXTRACTOR = "mugs_vit_base"


@pytest.fixture(scope="module")
def made() -> dict[str, Fingerprint | Ranges]:
    torch.manual_seed(0)
    probe = Probe(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)), ["0", "2"], EXTRACTOR)
    images = [torch.rand(3, 3, 9, 11), torch.rand(2, 3, 9, 11)]
    ranges = measure(probe, images)
    return {
        "histogram": count(probe, ranges, images, 30),
        "gaussian": gaussian(probe, images),
        "full": gaussian(probe, images, full=True),
        "ranges": ranges,
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(v.dtype == b[k].dtype and torch.equal(v, b[k]) for k, v in a.items())
    if isinstance(a, (Histogram, Gaussian, Ranges)):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("what", ["histogram", "gaussian", "full", "ranges"])
def test_our_files_hold_everything(made: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.b.npz"
    save(made[what], path)
    assert same(load(path), made[what])
    assert [file.name for file in path.parent.iterdir()] == ["a.b.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_large_counts_and_odd_names_survive(tmp_path: Path) -> None:
    counts = {"file": torch.tensor([[2**40, 0], [1, 2]]), "b/c.1": torch.tensor([[255, 256]])}
    save(Histogram("n", 3, counts), tmp_path / "a.npz")
    assert same(load(tmp_path / "a.npz"), Histogram("n", 3, counts))


@pytest.mark.parametrize("what", ["histogram", "full"])
def test_damaged_files_are_refused(made: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(made[what], path)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(GapError):
            load(path)
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 80)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert same(load(path), made[what])  # a byte that says nothing
        except GapError:
            refused += 1
    assert refused > 20
    with pytest.raises(GapError, match="no fingerprint"):
        load(tmp_path / "missing.npz")


def test_facts_that_do_not_fit(made: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(made["histogram"], path)
    whole = dict(np.load(path))
    facts = json.loads(str(whole[FACTS]))

    def faults(**changed: Any) -> str:
        np.savez(path, **{**whole, **changed})
        with pytest.raises(GapError) as caught:
            load(path)
        return str(caught.value)

    def told(**changed: Any) -> str:
        return faults(**{FACTS: np.array(json.dumps({**facts, **changed}))})

    assert "no array 'counts/9'" in told(layers=["0", "9"])
    assert "nothing is in it" in told(layers=[])
    assert "nothing is in it" in told(images=0)
    assert "format" in told(format="segue-fingerprint-9")
    assert "form" in told(form="new")
    assert "images" in told(images="many")
    assert "no array 'means/0'" in told(form="gaussian")
    counts, low = whole["counts/0"].astype(np.int64), whole["minima/0"]
    assert "bins" in faults(**{"counts/0": counts[:, 1:]})
    assert "neurons" in faults(**{"counts/0": counts[1:]})
    assert "below 0" in faults(**{"counts/0": -counts})
    assert "shape" in faults(**{"minima/0": low[None]})
    assert "numbers must be" in faults(**{"counts/0": counts.astype(str)})
    assert "not finite" in faults(**{"minima/0": low * np.nan})
    assert "end before they start" in faults(**{"minima/0": low + 1e9})


def test_objects_are_not_unpickled(made: dict[str, Any], tmp_path: Path) -> None:
    path, mark = tmp_path / "a.npz", tmp_path / "mark"
    save(made["gaussian"], path)
    whole = dict(np.load(path))
    bomb = np.array([Bomb(mark)], dtype=object)
    for name in (FACTS, "means/0"):
        np.savez(path, **{**whole, name: bomb})
        with pytest.raises(GapError):
            load(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(GapError):
        load(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it would have been seen


def test_a_member_that_claims_to_be_huge_is_not_read(made: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(made["gaussian"], path)
    content = members(path)
    header = content["means/0.npy"][:10] + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }\n"
    rewrite(path, {**content, "means/0.npy": header})
    with pytest.raises(GapError):
        load(path)


def library_file(folder: Path, form: str, mark: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the published library leaves, with its stray objects; returns the JSON and the arrays."""
    rng = np.random.default_rng(0)
    neurons = {"block_0": 3, "last_norm": 2}
    arrays: dict[str, Any] = {}
    for layer, n in neurons.items():
        if form == "histogram":
            arrays[layer] = rng.integers(1, 50, (n, 20)).astype(np.int32)
            continue
        values = rng.normal(size=(9, n))
        arrays[layer] = np.array({} if mark is None else Bomb(mark), dtype=object)
        arrays[f"mu-{layer}"] = values.mean(0).astype(np.float32 if form == "gaussian" else np.float64)
        if form == "gaussian":
            arrays[f"var-{layer}"] = values.var(0, ddof=1).astype(np.float32)
        else:
            arrays[f"sigma-{layer}"] = np.cov(values.T)
    facts = {
        "time_of_compute": "01:00PM on May 01, 2024",
        "vdna_version": "0.1.1",
        "distribution": {"hist_nb_bins": 20} if form == "histogram" else {},
        "type": form,
        "name": "histogram-20" if form == "histogram" else form,
        "data_settings": {"source": "images", "custom_fn_resize": None, "num_images": -1},
        "extraction_settings": {"hist_range": [-1.0, 1.0], "device": "cuda:0"},
        "num_images": 9,
        "feature_extractor_name": EXTRACTOR,
        "neurons_list": neurons,
    }
    np.savez_compressed(folder / "dna.npz", **arrays)
    (folder / "dna.json").write_text(json.dumps(facts, indent=4))
    return facts, arrays


@pytest.mark.parametrize("form", ["histogram", "gaussian", "layer-gaussian"])
def test_published_files_are_read_and_written(form: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    facts, arrays = library_file(tmp_path, form, mark)
    for name in ("dna", "dna.json", "dna.npz"):
        found = read_vdna(tmp_path / name)
        assert isinstance(found, (Histogram, Gaussian))
        assert (found.network, found.images) == (EXTRACTOR, 9)
    assert not mark.exists()
    if isinstance(found, Histogram):
        assert all(np.array_equal(v, arrays[k]) for k, v in found.counts.items())
    else:
        spread = "var" if form == "gaussian" else "sigma"
        for layer, mean in found.means.items():
            np.testing.assert_array_equal(mean, arrays[f"mu-{layer}"])
            np.testing.assert_allclose(found.spread(layer), arrays[f"{spread}-{layer}"], rtol=1e-12)
    write_vdna(found, tmp_path / "again.v2")
    written = json.loads((tmp_path / "again.v2.json").read_text())
    for key in ("type", "name", "distribution", "num_images", "feature_extractor_name", "neurons_list"):
        assert written[key] == facts[key]
    with np.load(tmp_path / "again.v2.npz", allow_pickle=False) as again:
        assert set(again.files) == {k for k, v in arrays.items() if v.dtype != object}
        for name in again.files:
            assert again[name].dtype == arrays[name].dtype
            np.testing.assert_allclose(again[name], arrays[name], rtol=1e-6)
    assert same(read_vdna(tmp_path / "again.v2"), found) or form != "histogram"


def test_published_ranges_make_a_reference(made: dict[str, Any], tmp_path: Path) -> None:
    ours: Ranges = made["ranges"]
    sides = {"mins_per_neuron": ours.minima, "maxs_per_neuron": ours.maxima}
    content = {
        side: {k: {str(n): x for n, x in enumerate(v.tolist())} for k, v in table.items()}
        for side, table in sides.items()
    }
    path = tmp_path / "activation_ranges.json"
    path.write_text(json.dumps(content))
    ranges = read_vdna_ranges(path, EXTRACTOR)
    assert same(ranges.minima, ours.minima) and ranges.rule == "published"
    save(ranges, tmp_path / "ranges.npz")
    assert same(load(tmp_path / "ranges.npz"), ranges)
    torch.manual_seed(0)
    probe = Probe(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)), ["0", "2"], EXTRACTOR)
    images = [torch.rand(2, 3, 9, 11)]
    own = count(probe, ranges, images, 20)
    write_vdna(own, tmp_path / "dna")
    bare, full = read_vdna(tmp_path / "dna"), read_vdna(tmp_path / "dna", ranges)
    assert isinstance(bare, Histogram) and isinstance(full, Histogram)
    assert emd(bare, own).number == emd(full, own).number == 0
    assert image_distances(probe, full, images).numbers.shape == (2,)
    for side, layer, neuron, message in (
        ("mins_per_neuron", "0", "1", "lacks neuron"),
        ("maxs_per_neuron", "0", "3", "do not fit"),
        ("maxs_per_neuron", "0", None, "different layers"),
    ):
        damaged = json.loads(json.dumps(content))
        damaged[side].pop(layer) if neuron is None else damaged[side][layer].pop(neuron)
        path.write_text(json.dumps(damaged))
        with pytest.raises(GapError, match=message):
            read_vdna_ranges(path, EXTRACTOR)
    with pytest.raises(GapError, match="ranges are of other"):
        read_vdna(tmp_path / "dna", Ranges("other", 0, ranges.minima, ranges.maxima))
    with pytest.raises(GapError, match="other neurons"):
        read_vdna(tmp_path / "dna", Ranges(EXTRACTOR, 0, {**ranges.minima, "0": torch.zeros(9)}, ranges.maxima))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "feats"}, "type"),
        ({"num_images": 0}, "num_images"),
        ({"neurons_list": {"block_0": 4, "last_norm": 2}}, "shape"),
        ({"neurons_list": {"block_9": 3}}, "no array 'block_9'"),
        ({"neurons_list": {}}, "neurons_list"),
        ({"distribution": {}}, "number of bins"),
        ({"distribution": {"hist_nb_bins": 21}}, "shape"),
    ],
)
def test_a_published_json_that_does_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    facts, _ = library_file(tmp_path, "histogram")
    (tmp_path / "dna.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(GapError, match=message):
        read_vdna(tmp_path / "dna")


def test_damaged_published_files(tmp_path: Path) -> None:
    _, arrays = library_file(tmp_path, "histogram")
    data, text = tmp_path / "dna.npz", tmp_path / "dna.json"
    np.savez(data, **{**arrays, "block_0": -arrays["block_0"]})
    with pytest.raises(GapError, match="below 0"):
        read_vdna(data)
    np.savez(data, **{**arrays, "block_0": np.array({"a": 1}, dtype=object)})
    with pytest.raises(GapError, match="cannot read"):
        read_vdna(data)
    data.write_bytes(b"PK")
    with pytest.raises(GapError, match="cannot read"):
        read_vdna(data)
    text.write_text("{")
    with pytest.raises(GapError, match="no JSON"):
        read_vdna(data)
    text.unlink()
    with pytest.raises(GapError, match="cannot read"):
        read_vdna(data)


def test_counts_that_int32_cannot_hold_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="save it in ours"):
        write_vdna(Histogram("n", 1, {"a": torch.tensor([[2**31, 1]])}), tmp_path / "dna")
    assert not list(tmp_path.iterdir())
