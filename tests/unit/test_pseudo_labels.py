"""Label files: names, both passes, resuming, full disks, and how models are asked."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.command import files
from helpers.labelling import SURE_PX, Flags, Reader, killed
from helpers.toys import SPACE, Pictures, Toy
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.images import read_ids
from segue.data.relabelled import Relabelled
from segue.errors import UserError
from segue.files import file_of, read_json
from segue.pseudo_labelling import PseudoLabelConfig
from segue.pseudo_labels import Histogram, Writer, generate, published, write
from segue.scoring.inference import TILE_PX

SHOWN = [3, 0, 1, 4, 2, 0, 3]
HALF = PseudoLabelConfig(models=("a",), quantile=0.5, cap=0.9)


def labels_of(folder: Path, config: PseudoLabelConfig = HALF, **options: Any) -> tuple[dict[str, Any], Reader]:
    dataset, model = options.pop("dataset", None) or Flags(SHOWN), Reader()
    return generate([model], dataset, SPACE, folder, config, device="cpu", **options), model


def test_every_file_belongs_to_its_image_whatever_the_order(tmp_path: Path) -> None:
    shuffled = Flags(SHOWN)
    random.Random(1).shuffle(shuffled.ids)
    assert shuffled.ids != sorted(shuffled.ids)
    index, _ = labels_of(tmp_path / "a", dataset=shuffled, batch_size=2)
    for image_id, shown in shuffled.shown.items():
        label = read_ids(tmp_path / "a" / f"{file_of(image_id)}.png")
        assert label.shape == shuffled.size_of(image_id) == tuple(index["images"][image_id]["size"])
        assert index["images"][image_id]["file"] == f"{file_of(image_id)}.png"
        assert set(np.unique(label)) == {shown, 255}, "a part is kept, and nothing is called otherwise"
        assert ((label == shown) == (np.arange(label.shape[1]) < SURE_PX)).all()
    labels_of(tmp_path / "b")
    labels_of(tmp_path / "c", batch_size=3)
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_the_index_tells_what_was_done(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    index, model = labels_of(
        tmp_path / "a", dataset=Flags(SHOWN, "extra"), info={"stage": "x"}, progress=lambda *n: told.append(n)
    )
    assert index == read_json(tmp_path / "a/index.json")
    assert told == [(n, 7) for n in range(1, 8)] and model.seen == 7
    assert (index["data"], index["split"], index["stage"], index["model_paths"]) == ("flags", "extra", "x", ["a"])
    assert (index["quantile"], index["cap"], index["size"], len(index["models"])) == (0.5, 0.9, None, 1)
    assert list(index["thresholds"]) == list(SPACE.classes) == list(index["pixels"]) == list(index["pixels_kept"])
    counted = np.zeros(256, int)
    for row in index["images"].values():
        counted += np.bincount(read_ids(tmp_path / "a" / row["file"]).ravel(), minlength=256)
    assert list(index["pixels_kept"].values()) == counted[:5].tolist()
    assert sum(index["pixels"].values()) == counted.sum()
    assert index["share_kept"] == pytest.approx(counted[:5].sum() / counted.sum())
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "index.json",
        *(row["file"] for row in index["images"].values()),
    }


class Drawn(Dataset):
    """Smooth random pictures, larger than a tile."""

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.pictures = Pictures((TILE_PX + 30, TILE_PX + 61), (70, 90))
        super().__init__("drawn", SPACE, self.pictures.ids, size)

    def _image(self, index: int) -> Any:
        return self.pictures.images[index]


@pytest.mark.parametrize("size", [None, (64, 80)])
@pytest.mark.parametrize("seeds", [(0,), (1, 2, 3)])
def test_several_models_are_the_mean_of_their_probabilities(
    seeds: tuple[int, ...], size: tuple[int, int] | None, tmp_path: Path
) -> None:
    dataset = Drawn(size)
    models = [Toy(seed, align_corners=seed == 2, multiple=8) for seed in seeds]
    config = PseudoLabelConfig(models=tuple(map(str, seeds)), cap=0.6)
    index = generate(models, dataset, SPACE, tmp_path / "a", config, device="cpu")
    classes, confidence = [], []
    for number in range(2):
        image = torch.from_numpy(dataset.read_image(number)).permute(2, 0, 1)[None].float() / 255
        full = []
        for model in models:
            output = model.eval()(image)
            up = F.interpolate(output.logits, output.padded, mode="bilinear", align_corners=output.align_corners)
            full.append(up[..., : output.size[0], : output.size[1]].softmax(1))
        p, c = torch.stack(full).mean(0)[0].max(0)
        classes.append(c.numpy().astype(np.uint8))
        confidence.append(p.detach().numpy())
    histogram = Histogram(5)
    for c, p in zip(classes, confidence, strict=True):
        histogram.add(c, p)
    thresholds = published(histogram, config.quantile, config.cap)
    assert np.abs(list(index["thresholds"].values()) - thresholds).max() < 1e-3
    differ = pixels = 0
    for image_id, c, p in zip(dataset.ids, classes, confidence, strict=True):
        label = read_ids(tmp_path / "a" / index["images"][image_id]["file"])
        expected = np.where(p < thresholds[c], 255, c)
        differ, pixels = differ + int((label != expected).sum()), pixels + label.size
    assert differ <= 0.003 * pixels, "only pixels within a code of the threshold, or with two equal winners"


def test_models_keep_their_modes_and_gradients_work_after_a_failure(tmp_path: Path) -> None:
    model = Reader().train()
    broken = Flags(SHOWN)
    with (
        mock.patch.object(broken, "_image", side_effect=DataError("gone.png is damaged")),
        pytest.raises(DataError, match="gone"),
    ):
        generate([model], broken, SPACE, tmp_path / "a", HALF, device="cpu")
    assert model.training and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("when", ["half", "after"])
@pytest.mark.parametrize("at", [1, 4, 7, 8, 11, 14])  # of 7 images: a file each in both passes
def test_killed_and_resumed_ends_with_the_same_bytes(at: int, when: str, tmp_path: Path) -> None:
    labels_of(tmp_path / "whole")
    out = tmp_path / "out"
    killed(lambda: labels_of(out), at, when)
    assert not (out / "index.json").exists()
    with pytest.raises(DataError, match=r"no index\.json"):
        Relabelled(Flags(SHOWN), out)
    _, model = labels_of(out)
    predicted = min(7, at - (when == "half"))
    assert model.seen == 7 - predicted, "what was predicted is not predicted again"
    assert files(out) == files(tmp_path / "whole")


def test_killed_twice_and_after_a_change_of_order(tmp_path: Path) -> None:
    labels_of(tmp_path / "whole")
    out = tmp_path / "out"
    backwards = Flags(SHOWN)
    backwards.ids.reverse()
    killed(lambda: labels_of(out), 3, "half")
    killed(lambda: labels_of(out, dataset=backwards), 2, "after")
    _, model = labels_of(out)
    assert model.seen == 3
    assert files(out) == files(tmp_path / "whole")


def test_a_part_of_a_first_pass_file_never_counts(tmp_path: Path) -> None:
    labels_of(tmp_path / "whole")
    out = tmp_path / "out"
    killed(lambda: labels_of(out), 6, "half")
    spools = sorted((out / write.PASS_1).glob("*.raw"))
    assert len(spools) == 5
    spools[0].write_bytes(spools[0].read_bytes()[:-1])
    spools[1].write_bytes(b"")
    assert labels_of(out)[1].seen == 4
    assert files(out) == files(tmp_path / "whole")


def test_a_finished_folder_stays_and_no_image_is_read(tmp_path: Path) -> None:
    first, _ = labels_of(tmp_path / "a")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    again = Flags(SHOWN)
    second, model = labels_of(tmp_path / "a", dataset=again)
    assert second == first and not again.read and not model.seen
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    moved = PseudoLabelConfig(models=("elsewhere",), quantile=0.5)
    assert labels_of(tmp_path / "a", moved)[0] == first, "the same weights under another name"


@pytest.mark.parametrize("begun", [False, True])
def test_another_setting_is_refused(begun: bool, tmp_path: Path) -> None:
    out = tmp_path / "a"
    if begun:
        killed(lambda: labels_of(out), 3, "after")
    else:
        labels_of(out)
    before = files(out)
    for change, words in (
        ({"quantile": 0.6}, r"quantile 0\.5, not 0\.6"),
        ({"cap": 0.8}, r"cap 0\.9, not 0\.8"),
    ):
        with pytest.raises(DataError, match=f"{words}: choose another folder, or delete it"):
            labels_of(out, HALF.model_copy(update=change))
    with pytest.raises(DataError, match="other images"):
        labels_of(out, dataset=Flags(SHOWN[:-1]))
    with pytest.raises(DataError, match="split 'train', not 'val'"):
        labels_of(out, dataset=Flags(SHOWN, "val"))
    with pytest.raises(DataError, match="other models"):
        generate([Reader(), Reader()], Flags(SHOWN), SPACE, out, HALF, device="cpu")
    assert files(out) == before


def test_other_folders_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/photo.png").touch()
    with pytest.raises(DataError, match="holds other files"):
        labels_of(tmp_path / "a")
    for name, text in (("b", "{"), ("c", "[]"), ("d", '{"images": 3}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text(text)
        with pytest.raises(DataError, match="damaged: delete the folder"):
            labels_of(tmp_path / name)
    killed(lambda: labels_of(tmp_path / "e"), 9, "after")
    next((tmp_path / "e" / write.PASS_1).glob("*.raw")).unlink()
    with pytest.raises(DataError, match="damaged or gone: delete"):
        labels_of(tmp_path / "e")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        Writer(tmp_path / "a", SPACE, ["x"], {}),
        pytest.raises(DataError, match="another process"),
        Writer(tmp_path / "a", SPACE, ["x"], {}),
    ):
        pass


@contextmanager
def largest_file(number: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing_half_in_either_pass(tmp_path: Path) -> None:
    """Writes really fail here: the kernel refuses them, as it does when the disk is full."""
    labels_of(tmp_path / "whole")
    out = tmp_path / "out"
    with largest_file(2500), pytest.raises(DataError, match=r"disk is full, 0 of 7 images.*goes on"):
        labels_of(out)
    real, count = write._png, [0]

    def png(*arguments: Any) -> bytes:
        count[0] += 1
        if count[0] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        return real(*arguments)

    full = pytest.raises(DataError, match="disk is full, 7 of 7 images are predicted")
    with largest_file(100_000), mock.patch.object(write, "_png", png), full:
        labels_of(out)
    there = files(out)
    assert len([n for n in there if n.endswith(".raw")]) == 5, "room is made as labels are written"
    assert len([n for n in there if n.endswith(".png")]) == 2 and not [n for n in there if n.endswith(".tmp")]
    assert labels_of(out)[1].seen == 0
    assert files(out) == files(tmp_path / "whole")


def test_too_little_space_is_told_before_anything_is_predicted(tmp_path: Path) -> None:
    dataset = Flags([1, 2], "train")
    pixels = sum(h * w for h, w in map(dataset.size_of, dataset.ids))
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * pixels - 1)
    with mock.patch.object(shutil, "disk_usage", return_value=usage):
        with pytest.raises(
            DataError, match=r"/a needs .* MB while labels are made, .* are free: free space, choose another folder"
        ):
            labels_of(tmp_path / "a", dataset=dataset)
        dataset = Flags([1, 2])
        dataset.size = (32, 32)
        labels_of(tmp_path / "b", dataset=dataset)


def test_models_that_cannot_answer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model has 4 classes, label space 'five' has 5"):
        generate([Reader(4)], Flags(SHOWN), SPACE, tmp_path / "a", HALF, device="cpu")
    diverged = Toy()
    torch.nn.init.constant_(diverged.weight, float("nan"))
    with pytest.raises(UserError, match=r"image 'n/0': confidences lie between 0 and 1.*diverged"):
        generate([diverged], Flags(SHOWN), SPACE, tmp_path / "a", HALF, device="cpu")


def test_given_predictions_and_another_rule(tmp_path: Path) -> None:
    """What others build on: arrays instead of models, thresholds of one's own."""
    rng = np.random.default_rng(0)
    given = {f"x{n}": (rng.integers(0, 5, (9, 7), np.uint8), rng.random((9, 7), np.float32)) for n in range(3)}
    thresholds = np.array([0.5, 0.25, 0, 0.75, 1])
    with Writer(tmp_path / "a", SPACE, list(given), {"rule": "mine"}) as writer:
        assert writer.todo == ["x0", "x1", "x2"]
        for name in ("x2", "x0"):
            writer.add(name, *given[name])
        assert writer.todo == ["x1"]
        with pytest.raises(ValueError, match="1 of 3 images"):
            writer.finish(lambda _: thresholds)
        with pytest.raises(ValueError, match="no prediction of 'x0'"):
            writer.add("x0", *given["x0"])
        writer.add("x1", *given["x1"])
        index = writer.finish(lambda _: thresholds)
    assert index["rule"] == "mine" and list(index["thresholds"].values()) == thresholds.tolist()
    for name, (classes, confidence) in given.items():
        unsure = confidence < thresholds[classes]
        near = np.abs(confidence - thresholds[classes]) < 1e-3
        label = read_ids(tmp_path / "a" / f"{name}.png")
        assert ((label == np.where(unsure, 255, classes)) | near).all()
