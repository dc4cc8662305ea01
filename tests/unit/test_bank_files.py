"""Files of class instances: the published ones, damaged ones, and banks that are made from a labelled data set."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.command import segue
from helpers.memory import method
from helpers.toys import SPACE, Pictures, Toy
from segue.labels import load_space
from segue.methods.parts.banks import FEATURES, LABELS, BankError, absent, make_bank, read_bank, write_bank
from segue.models.base import Output
from segue.ops.bank import Bank

CITYSCAPES = load_space("cityscapes19")
SYNTHIA = "20 20 20 9 19 21 18 20 20 0 18 21 21 20 0 15 0 17 21"
PUBLISHED = {
    "balanced avg cache 50": "3 3 3 2 2 3 3 4 3 2 3 3 2 3 2 2 3 2 2",
    "balanced avg cache 100": "5 5 5 5 6 6 6 6 5 5 5 6 5 5 5 5 5 5 5",
    "balanced avg cache 200": "11 11 10 11 10 11 11 11 11 11 10 11 10 11 10 10 10 10 10",
    "balanced avg cache 300": "16 16 16 17 15 17 16 16 17 17 16 16 15 15 15 15 15 15 15",
    "balanced avg cache 500": "24 24 24 24 29 24 37 34 24 24 24 37 27 24 24 24 24 24 24",
    "Synthia2cs cache 300": SYNTHIA,
}
"""Folder -> instances of each class, as published: float32 K x 256, never negative, and int64 K."""
ORDER = (18, 12, 17, 16, 7, 6, 11, 15, 4, 5, 14, 3, 9, 13, 8, 1, 10, 2, 0)


def published(folder: Path, counts: str, dim: int = 256) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Files as the published ones are: labels in visiting order, class after class in rounds."""
    left = [int(word) for word in counts.split()]
    labels: list[int] = []
    while any(left):
        for c in ORDER:
            if left[c]:
                left[c] -= 1
                labels.append(c)
    vectors = np.random.default_rng(0).gamma(0.5, 1.0, (len(labels), dim)).astype(np.float32)
    folder.mkdir(parents=True)
    np.savez(folder / FEATURES, vectors)
    np.savez(folder / LABELS, np.array(labels, dtype=np.int64))
    return vectors, np.array(labels)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_folders(name: str, tmp_path: Path) -> None:
    vectors, labels = published(tmp_path / name, PUBLISHED[name])
    bank = read_bank(tmp_path / name, CITYSCAPES, 256)
    counts = [int(word) for word in PUBLISHED[name].split()]
    assert bank.labels.bincount(minlength=19).tolist() == counts and len(bank.labels) == sum(counts)
    assert bank.vectors.dtype == torch.float32 and bank.labels.dtype == torch.int64
    assert np.array_equal(bank.vectors.numpy(), vectors) and np.array_equal(bank.labels.numpy(), labels)
    assert absent(bank, CITYSCAPES) == (["terrain", "truck", "train"] if "Synthia" in name else [])
    other = read_bank(tmp_path / name / FEATURES, CITYSCAPES, 256)
    assert torch.equal(other.vectors, bank.vectors)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bank = Bank(torch.rand(7, 3, dtype=torch.float64) + 0.1, torch.tensor([4, 0, 0, 1, 2, 3, 4]))
    write_bank(tmp_path / "new/bank", bank)
    assert sorted(p.name for p in (tmp_path / "new/bank").iterdir()) == [FEATURES, LABELS]
    with np.load(tmp_path / "new/bank" / FEATURES) as content:
        assert content.files == ["arr_0"] and content["arr_0"].dtype == np.float32
    found = read_bank(tmp_path / "new/bank", SPACE, 3)
    assert torch.equal(found.vectors, bank.vectors.float()) and torch.equal(found.labels, bank.labels)
    with pytest.raises(BankError, match="exists"):
        write_bank(tmp_path / "new/bank", bank)


def damage(what: str) -> Callable[[Path], object]:
    """What is done to a folder of a good bank of 16 vectors."""

    def array(name: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
        def apply(folder: Path) -> None:
            with np.load(folder / name) as content:
                values = content["arr_0"]
            np.savez(folder / name, change(values))

        return apply

    def set_row(value: float) -> Callable[[Any], Any]:
        return lambda v: np.where(np.arange(len(v))[:, None] == 2, np.float32(value), v)

    def huge(folder: Path) -> None:
        with zipfile.ZipFile(folder / FEATURES, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("arr_0.npy", b"")
            archive.getinfo("arr_0.npy").file_size = 2**31

    return {
        "no labels": lambda f: (f / LABELS).unlink(),
        "no vectors": lambda f: (f / FEATURES).unlink(),
        "another width": array(FEATURES, lambda v: v[:, :5]),
        "flat": array(FEATURES, lambda v: v[:, 0]),
        "empty": array(FEATURES, lambda v: v[:0]),
        "whole numbers": array(FEATURES, lambda v: v.astype(np.int64)),
        "not finite": array(FEATURES, set_row(np.nan)),
        "a zero row": array(FEATURES, set_row(0)),
        "fewer labels": array(LABELS, lambda v: v[1:]),
        "fractions": array(LABELS, lambda v: v.astype(np.float32)),
        "a class too many": array(LABELS, lambda v: v + 15),
        "unlabelled": array(LABELS, lambda v: v - 1),
        "objects": lambda f: np.savez(f / FEATURES, np.array([{"a": 1}], dtype=object), allow_pickle=True),
        "another key": lambda f: np.savez(f / FEATURES, vectors=np.ones((16, 6), np.float32)),
        "two arrays": lambda f: np.savez(f / FEATURES, np.ones((16, 6)), np.ones(3)),
        "half a file": lambda f: (f / FEATURES).write_bytes((f / FEATURES).read_bytes()[:300]),
        "text": lambda f: (f / LABELS).write_text("<html>"),
        "huge": huge,
    }[what]


SAID = {
    "no labels": "classes is missing",
    "no vectors": "no bank at",
    "another width": "has vectors of 5 numbers, the model's embedding has 6",
    "flat": "float32 numbers in the shape 16: K rows",
    "empty": "0x6",
    "whole numbers": "int64 numbers",
    "not finite": r"row 2 is zero or not finite \(1",
    "a zero row": "row 2 is zero",
    "fewer labels": "16 whole numbers are needed",
    "fractions": "float32 numbers",
    "a class too many": "classes 15 to 19, label space 'cityscapes19' has 0 to 18",
    "unlabelled": "classes -1 to 3",
    "objects": "cannot read bank",
    "another key": "holds vectors.npy: one array 'arr_0'",
    "two arrays": "arr_0.npy, arr_1.npy",
    "half a file": "cannot read bank",
    "text": "cannot read bank",
    "huge": "more than 1 GB",
}


@pytest.mark.parametrize("what", SAID)
def test_a_damaged_bank_is_told(what: str, tmp_path: Path) -> None:
    published(tmp_path / "bank", "4 4 3 3 2" + 14 * " 0", 6)
    read_bank(tmp_path / "bank", CITYSCAPES, 6)
    damage(what)(tmp_path / "bank")
    with pytest.raises(BankError, match=SAID[what]):
        read_bank(tmp_path / "bank", CITYSCAPES, 6)


def test_a_file_without_classes_beside_it(tmp_path: Path) -> None:
    published(tmp_path / "bank", "4 4 3 3 2" + 14 * " 0", 6)
    for name in ("f_buffer.npz", "cache.npz"):
        shutil.copy(tmp_path / "bank" / FEATURES, tmp_path / name)
        with pytest.raises(BankError, match=r"classes is missing"):
            read_bank(tmp_path / name, CITYSCAPES, 6)


def test_a_part_starts_from_a_file_and_tells_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Toy(classes=19)
    vectors, _ = published(tmp_path / "bank", SYNTHIA, 19)
    settings = {"instance_similarity": {"start": str(tmp_path / "bank")}}
    method_class = type(method("self_training", Toy(classes=7)))
    config = method_class.Config.model_validate({"name": "self_training", "parts": settings})
    host = method_class(config, model, CITYSCAPES, {})
    host.prepare({})
    part = host.parts["instance_similarity"]
    assert np.array_equal(part.vectors.numpy(), vectors) and int(part.used) == 300
    said = capsys.readouterr().err
    assert "has no instance of terrain, truck, train; the instance loss leaves out" in said
    np.savez(tmp_path / "bank" / FEATURES, -vectors)
    settings["instance_similarity"]["published"] = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="negative numbers"):
        method_class(
            method_class.Config.model_validate({"name": "self_training", "parts": settings}), model, CITYSCAPES, {}
        )


def pictures() -> list[tuple[Any, Any]]:
    """Of three sizes, labels at another resolution than images; class 4 in one, class 3 in none."""
    source, coarse = Pictures((48, 64), (50, 41), (64, 48), (48, 64)), Pictures((24, 32), (100, 82), (64, 48), (48, 64))
    out = []
    for n in range(4):
        label = coarse.labels[n].copy()
        label[label == 3] = 255
        if n:
            label[label == 4] = 255
        out.append((source.images[n], label))
    return out


def test_a_bank_is_balanced_and_of_class_means() -> None:
    model, samples = Toy(multiple=16), pictures()
    means: list[dict[int, torch.Tensor]] = []
    for image, label in samples:
        with torch.inference_mode():
            output: Output = model.eval()(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
        height, width = (round(p * s / o) for p, s, o in zip(output.padded, label.shape, output.size, strict=True))
        large = F.interpolate(output.embedding, (height, width), mode="bilinear")[
            0, :, : label.shape[0], : label.shape[1]
        ]
        means.append({c: large[:, torch.from_numpy(label == c)].mean(1) for c in range(5) if (label == c).any()})
    counts = [sum(c in image for image in means) for c in range(5)]
    assert counts[4] == 1 and counts[3] == 0 and min(counts[:3]) == 4
    model.train()
    bank = make_bank(model, samples, 5, 9)
    assert model.training
    assert bank.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 4]
    for vector, c in zip(bank.vectors, bank.labels.tolist(), strict=True):
        near = [float((vector - image[c]).abs().max()) for image in means if c in image]
        assert min(near) < 1e-4
    assert len(bank.vectors.unique(dim=0)) == 9
    with pytest.raises(BankError, match="4 images have 13 instances of classes, the bank needs 14"):
        make_bank(model, samples, 5, 14)


def test_the_command_makes_a_bank_to_train_with(scene_data: Path, tmp_path: Path) -> None:
    from helpers.recipes import recipe
    from segue import api, checkpoint

    given = recipe(scene_data, iterations=1, evaluate_every=None)
    given["evaluate"] = {"data": []}
    given["stages"] = given["stages"][:1]
    api.run(given, tmp_path / "run", device="cpu")
    command = ["bank", str(tmp_path / "run"), "gta5:train", "--root", str(scene_data / "game"), "--size", "12"]
    done = segue(*command, "--images", "3", "--resize", "64x96", "--out", str(tmp_path / "bank"))
    assert done.code == 0 and "12 instances from 3 images" in done.out, done.err
    model, space, _ = checkpoint.load_model(checkpoint.find_model(tmp_path / "run"))
    with torch.no_grad():
        dim = model(torch.rand(1, 3, 64, 96)).embedding.shape[1]
    counts = read_bank(tmp_path / "bank", space, dim).labels.bincount(minlength=19)
    assert int(counts.sum()) == 12 and int(counts.max()) <= 3
    again = segue(*command, "--out", str(tmp_path / "bank"))
    assert again.code == 2 and "exists" in again.err
    large = segue(*command[:-1], "4000", "--images", "2", "--out", str(tmp_path / "large"))
    assert large.code == 2 and "the bank needs 4000" in large.err and not (tmp_path / "large").exists()
