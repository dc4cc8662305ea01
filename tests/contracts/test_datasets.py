"""Every entry of the catalog: a miniature in its published layout opens, reads, maps, streams, trains, audits clean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segue
from helpers.layouts import LAYOUTS
from helpers.miniatures import file_ids, make, pack, save
from helpers.recipes import recipe
from segue.config import DatasetConfig, TransformConfig
from segue.data import audit, catalog, show
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.loaders import Stream
from segue.labels import IGNORE, load_space

ENTRIES = catalog.catalog_names()
KINDS = [(name, kind) for name in ENTRIES for kind in range(len(catalog.load(name).labels))]
REAL = os.environ.get("SEGUE_REAL_DATA")


def opened(name: str, root: Path, split: str = "train", space: str | None = None) -> Dataset:
    target = load_space(space) if space else None
    return open_dataset(name, DatasetConfig(root=root), split, target)


def test_every_entry_has_a_published_layout_to_be_tested_against() -> None:
    assert set(LAYOUTS) == set(ENTRIES)
    assert all(len(LAYOUTS[n].depths) == len(catalog.load(n).labels) for n in ENTRIES)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_reads_images_and_maps_labels(name: str, kind: int, tmp_path: Path) -> None:
    spec, layout = make(name, tmp_path, kind), LAYOUTS[name]
    dataset = opened(name, tmp_path, layout.labelled)
    assert dataset.labelled and not dataset.unlabelled_ids
    image, label = dataset.read_image(1), dataset.read_label(1)
    assert image.shape == (*layout.size, 3) and image.dtype == np.uint8
    frames = list({f.image: f for frames in layout.splits.values() for f in frames}.values())
    seed = next(n for n, f in enumerate(frames) if str(dataset.files(1)[0]).endswith(f.image))
    raw = file_ids(spec, spec.labels[kind], seed, layout.size)
    native = spec.native()
    names = spec.labels[kind].names(native)
    expected = [IGNORE if names.get(int(v)) is None else native.index(str(names[int(v)])) for v in raw.ravel()]
    assert label.ravel().tolist() == expected
    assert (dataset.read_file_ids(1) == raw).all()  # type: ignore[attr-defined]
    assert set(label.ravel()) == {*range(len(native)), IGNORE} or name == "mapillary"


CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
SYNTHIA_IDS = [3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11]
MAPILLARY_IDS = {
    "road": [13, 24, 41],
    "sidewalk": [2, 15],
    "building": [17],
    "wall": [6],
    "fence": [3],
    "pole": [45, 47],
    "traffic_light": [48],
    "traffic_sign": [50],
    "vegetation": [30],
    "terrain": [29],
    "sky": [27],
    "person": [19],
    "rider": [20, 21, 22],
    "car": [55],
    "truck": [61],
    "bus": [54],
    "train": [58],
    "motorcycle": [57],
    "bicycle": [52],
}


@pytest.mark.parametrize(
    ("name", "kind", "valid", "known"),
    [
        ("cityscapes", 0, list(range(19)), range(19)),
        ("cityscapes", 1, CITYSCAPES_IDS, range(34)),
        ("gta5", 0, CITYSCAPES_IDS, range(35)),
        ("gta5", 1, list(range(19)), range(19)),
        ("synthia", 0, SYNTHIA_IDS, range(23)),
        ("synthia", 1, list(range(19)), range(19)),
        ("acdc", 0, list(range(19)), range(19)),
        ("acdc", 1, CITYSCAPES_IDS, range(34)),
        ("dark_zurich", 0, list(range(19)), range(19)),
        ("dark_zurich", 1, CITYSCAPES_IDS, range(34)),
        ("bdd100k", 0, list(range(19)), range(19)),
        ("camvid", 0, list(range(11)), range(12)),
        ("idd_lite", 0, list(range(7)), range(7)),
        ("voc2012", 0, list(range(21)), range(21)),
        ("voc2012", 1, list(range(21)), range(21)),
        ("ade20k", 0, list(range(1, 151)), range(151)),
    ],
)
def test_ids_are_the_published_ones(name: str, kind: int, valid: list[int], known: range) -> None:
    spec = catalog.load(name)
    names = spec.labels[kind].names(spec.native())
    assert [names[i] for i in valid] == list(spec.native().classes)
    assert {i for i in names if names[i] is not None} == set(valid)
    assert sorted(names) == list(known), "every id that official files hold is known, no other"


def test_ids_that_share_a_class_are_the_published_ones() -> None:
    kitti = catalog.load("kitti360").labels[0].names(load_space("cityscapes19"))
    classes = dict(zip(CITYSCAPES_IDS, load_space("cityscapes19").classes, strict=True))
    assert {i: n for i, n in kitti.items() if n} == classes | {34: "building", 35: "fence", 37: "pole"}
    assert sorted(kitti) == list(range(45))
    vistas = catalog.load("mapillary").labels[0].names(load_space("cityscapes19"))
    assert {i: n for i, n in vistas.items() if n} == {i: n for n, ids in MAPILLARY_IDS.items() for i in ids}
    assert sorted(vistas) == list(range(66))


@pytest.mark.parametrize("name", ENTRIES)
def test_every_split_opens_and_holds_its_images(name: str, tmp_path: Path) -> None:
    spec, layout = make(name, tmp_path), LAYOUTS[name]
    for split in spec.splits.keys() & layout.splits.keys():
        frames, dataset = layout.splits[split], opened(name, tmp_path, split)
        assert dataset.ids == sorted(f.id for f in frames), split
        labelled = [f.id for f in frames if any(f.labels)] if spec.split(split).labels else []
        assert dataset.labelled == bool(labelled), split
        assert not dataset.unlabelled_ids, split
    # CamVid's is as its train, KITTI-360's `every` as its `all`
    assert spec.splits.keys() - layout.splits.keys() <= {"test", "trainval", "every"}


def test_cityscapes_trainval_is_both(scene_data: Path) -> None:
    both, *parts = (opened("cityscapes", scene_data / "city", split) for split in ("trainval", "train", "val"))
    assert both.ids == sorted(i for part in parts for i in part.ids)
    for part in parts:
        index = both.ids.index(part.ids[0])
        assert (both.read_label(index) == part.read_label(0)).all()


@pytest.mark.parametrize("name", ENTRIES)
def test_archives_hold_the_same_samples_as_the_tree(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "tree")
    pack(name, tmp_path / "tree", tmp_path / "packed")
    for split in LAYOUTS[name].splits:
        tree, packed = opened(name, tmp_path / "tree", split), opened(name, tmp_path / "packed", split)
        assert packed.ids == tree.ids and packed.labelled == tree.labelled
        for index in range(len(tree)):
            wanted, got = tree.read_sample(index, tree.labelled), packed.read_sample(index, tree.labelled)
            assert (wanted.image == got.image).all()
            if tree.labelled:
                assert wanted.label is not None and got.label is not None and (wanted.label == got.label).all()
            assert ".zip:" in packed.describe(index) or ".tar:" in packed.describe(index)
    assert [str(p) for p in audit.check(f"{name}:{LAYOUTS[name].labelled}", root=tmp_path / "packed")] == []


@pytest.mark.parametrize("name", ENTRIES)
def test_streams_a_labelled_and_an_unlabelled_batch(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    dataset = opened(name, tmp_path, LAYOUTS[name].labelled)
    for labelled in (True, False):
        stream = Stream([dataset], None, TransformConfig(crop=(16, 16)), (0, "s", "x"), 2, labelled, workers=0)
        (batch,) = next(stream.iterate(0))
        assert batch.image.shape == (2, 3, 16, 16) and batch.label.shape == (2, 16, 16)
        assert bool((batch.label != IGNORE).any()) == labelled
        assert batch.pixel.all()
        assert [m.domain for m in batch.meta] == [name, name]


def trained(name: str, data: Path, out: Path) -> dict[str, Any]:
    """Two iterations on a labelled split; what scoring it found."""
    where = f"{name}:{LAYOUTS[name].labelled}"
    stage = {"name": "one", "role": "source_only", "method": "supervised", "data": {"source": where}}
    plan = recipe(data) | {
        "labels": catalog.load(name).native().name,
        "data": {name: {"root": str(data)}},
        "transform": {"crop": [32, 32]},
        "evaluate": {"data": [where], "samples": 1},
        "stages": [stage],
    }
    plan["train"] |= {"iterations": 2}
    found: dict[str, Any] = segue.run(plan, out, device="cpu").stages[0]["one"]["evaluations"][where]
    return found


@pytest.mark.parametrize("name", ENTRIES)
def test_trains_two_iterations_and_evaluates(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "tree")
    pack(name, tmp_path / "tree", tmp_path / "packed")
    scores = trained(name, tmp_path / "packed", tmp_path / "run")
    split = LAYOUTS[name].labelled
    assert scores["num_images"] == len(LAYOUTS[name].splits[split]) and scores["without_label"] == 0
    assert 0 <= scores["miou"] <= 1
    tree = opened(name, tmp_path / "tree", split)
    labelled = sum(int((tree.read_label(i) != IGNORE).sum()) for i in range(len(tree)))
    assert sum(map(sum, scores["confusion"])) == labelled, "scored at the resolution of the label files"


def test_scoring_refuses_a_label_of_another_size(tmp_path: Path) -> None:
    make("camvid", tmp_path / "data")
    trained("camvid", tmp_path / "data", tmp_path / "run")
    assert segue.evaluate(tmp_path / "run", "camvid:val", root=tmp_path / "data", size=(32, 64))["num_images"] == 2
    frame = LAYOUTS["camvid"].splits["val"][1]
    save(tmp_path / "data" / frame.labels[0], np.zeros((18, 24), np.uint8))
    with pytest.raises(DataError, match=r"0016E5_08640\.png is 48x36 pixels, but its label .* is 24x18"):
        segue.evaluate(tmp_path / "run", "camvid:val", root=tmp_path / "data", size=(32, 64))


@pytest.mark.parametrize("name", ENTRIES)
def test_audits_clean_and_shows(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "data")
    assert [str(p) for p in audit.check(name, root=tmp_path / "data")] == []
    split = LAYOUTS[name].labelled
    page = show.show(f"{name}:{split}", tmp_path / "page.html", root=tmp_path / "data").read_text()
    assert len(page) < 5_000_000 and page.count("<img") == 2 * len(LAYOUTS[name].splits[split])
    for label in catalog.load(name).native().classes:
        assert label in page


@pytest.mark.parametrize(("name", "mode"), [("gta5", "P"), ("voc2012", "P"), ("mapillary", "P")])
def test_palette_labels_are_stored_as_indices(name: str, mode: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    with Image.open(str(opened(name, tmp_path).files(0)[1])) as image:
        assert image.mode == mode


def test_gta5_leaves_out_the_known_62(tmp_path: Path) -> None:
    for number in (15187, 15188, 15189, 17705, *range(20798, 20864)):
        save(tmp_path / f"images/{number}.png", np.zeros((4, 4), np.uint8))
    everything, train = opened("gta5", tmp_path, "all").ids, opened("gta5", tmp_path).ids
    assert sorted(set(everything) - set(train)) == sorted(map(str, [15188, 17705, *range(20801, 20861)]))


def test_gta5_shares_are_disjoint_and_complete(tmp_path: Path) -> None:
    for number in range(120):
        save(tmp_path / f"images/{number:05d}.png", np.zeros((4, 4), np.uint8))
    train, val, fit = (opened("gta5", tmp_path, s).ids for s in ("train", "val", "fit"))
    assert sorted(val + fit) == train and val == train[::50]


def test_cityscapes_prefers_the_label_kind_that_covers_more(tmp_path: Path) -> None:
    make("cityscapes", tmp_path)
    assert str(opened("cityscapes", tmp_path).files(0)[1]).endswith("labelTrainIds.png")
    next((tmp_path / "gtFine/train").rglob("*_labelTrainIds.png")).unlink()
    dataset = opened("cityscapes", tmp_path)
    assert str(dataset.files(0)[1]).endswith("labelIds.png") and not dataset.unlabelled_ids


def test_idd_lite_instance_files_are_no_stray_labels(tmp_path: Path) -> None:
    make("idd_lite", tmp_path)
    label = tmp_path / LAYOUTS["idd_lite"].splits["train"][0].labels[0]
    label.with_name(label.name.replace("_label", "_inst_label")).write_bytes(label.read_bytes())
    assert audit.check("idd_lite", root=tmp_path) == []


def test_acdc_flattened_by_daformer(tmp_path: Path) -> None:
    make("acdc", tmp_path / "official")
    for split in ("train", "val"):
        for frame in LAYOUTS["acdc"].splits[split]:
            name = frame.id.replace("/", "_")
            for source, kind in ((frame.image, "rgb_anon"), (frame.labels[0], "gt")):
                target = tmp_path / f"flat/{kind}/{split}/{name}{source[len(kind) + 1 + len(frame.id) :]}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((tmp_path / "official" / source).read_bytes())
    train = opened("acdc", tmp_path / "flat")
    assert (
        len(train) == 4
        and not train.unlabelled_ids
        and train.ids[0] == "train/fog_train_GOPR0475_GOPR0475_frame_000041"
    )
    assert len(opened("acdc", tmp_path / "flat", "val")) == 4
    with pytest.raises(DataError, match="'train_fog' is empty"):
        opened("acdc", tmp_path / "flat", "train_fog")


def test_kitti360_some_drives_only(tmp_path: Path) -> None:
    make("kitti360", tmp_path)
    (tmp_path / LAYOUTS["kitti360"].splits["train"][2].image).unlink()
    with pytest.raises(DataError, match=r"1 of 3 images .* is 2013_05_28_drive_0002_sync/0000004391; .*'include'"):
        opened("kitti360", tmp_path)
    config = DatasetConfig(root=tmp_path, include=("2013_05_28_drive_0000_sync/*",))
    dataset = open_dataset("kitti360", config, "train")
    assert len(dataset) == 2 and not dataset.unlabelled_ids


def test_kitti360_first_release_and_archives_in_their_folder(tmp_path: Path) -> None:
    make("kitti360", tmp_path / "tree")
    for drive in (tmp_path / "tree/data_2d_semantics/train").iterdir():
        if drive.is_dir():
            (drive / "image_00/semantic").rename(drive / "semantic")
    pack("kitti360", tmp_path / "tree", tmp_path / "packed")
    (tmp_path / "packed/data_2d_raw").mkdir()
    for archive in (tmp_path / "packed").glob("*_image_00.zip"):
        archive.rename(tmp_path / "packed/data_2d_raw" / archive.name)
    for root in (tmp_path / "tree", tmp_path / "packed"):
        dataset = opened("kitti360", root)
        assert len(dataset) == 3 and dataset.read_sample(2, True).label is not None


def test_voc_lists_choose_images_and_labels(tmp_path: Path) -> None:
    make("voc2012", tmp_path)
    assert "SegmentationClass/" in str(opened("voc2012", tmp_path).files(0)[1])
    augmented = opened("voc2012", tmp_path, "train_aug")
    assert len(augmented) == 3 and "SegmentationClassAug/" in str(augmented.files(0)[1])
    lists = tmp_path / "ImageSets/Segmentation"
    pairs = (lists / "train_aug.txt").read_text().replace("2008_000002", "2007_000033").replace("Aug", "")
    (lists / "train_aug.txt").write_text(pairs)
    named = opened("voc2012", tmp_path, "train_aug")
    assert "SegmentationClass/" in str(named.files(0)[1]), "the list names the labels"
    (lists / "train_aug.txt").write_text("2007_000032\n\n2007_000039 \n")
    assert opened("voc2012", tmp_path, "train_aug").ids == ["2007_000032", "2007_000039"]
    (lists / "train.txt").write_text("2007_000032\n2007_999999\n")
    with pytest.raises(DataError, match=r"1 of 2 images .* is 2007_999999"):
        opened("voc2012", tmp_path)
    (lists / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"train\.txt is not a text file"):
        opened("voc2012", tmp_path)
    (lists / "train.txt").unlink()
    with pytest.raises(DataError, match=r"no list file ImageSets/Segmentation/train\.txt or"):
        opened("voc2012", tmp_path)


def test_the_official_synthia_archive_has_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "SYNTHIA_RAND_CITYSCAPES.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match=r"unpack .*SYNTHIA_RAND_CITYSCAPES\.rar"):
        opened("synthia", tmp_path)
    with pytest.raises(DataError, match=r"\.rar gives no access to single files: unpack it"):
        opened("synthia", tmp_path / "SYNTHIA_RAND_CITYSCAPES.rar")


def test_voc_and_ade_colours() -> None:
    voc, ade = load_space("voc21"), load_space("ade150")
    assert voc.colors[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)) and voc.colors[20] == (0, 64, 128)
    assert (ade.classes[0], ade.classes[12], ade.classes[149]) == ("wall", "person", "flag")
    assert (ade.colors[0], ade.colors[149]) == ((120, 120, 120), (92, 0, 255))


def test_camvid_covers_street7(tmp_path: Path) -> None:
    make("camvid", tmp_path)
    coverage = opened("camvid", tmp_path, space="street7").coverage
    assert coverage is not None
    assert coverage.merged == {
        "living": ("pedestrian", "bicyclist"),
        "roadside": ("pole", "sign", "fence"),
        "far": ("building", "tree"),
    }
    assert coverage.lost == () and coverage.missing == ()


def test_cityscapes_covers_street7(tmp_path: Path) -> None:
    make("cityscapes", tmp_path)
    dataset = opened("cityscapes", tmp_path, space="street7")
    coverage = dataset.coverage
    assert coverage is not None
    assert coverage.lost == () and coverage.missing == ()
    assert coverage.merged["sidewalk"] == ("sidewalk", "terrain")
    assert coverage.merged["living"] == ("person", "rider")
    assert coverage.merged["vehicle"] == ("car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert set(dataset.read_label(0).ravel()) == {*range(7), IGNORE}


def test_idd_lite_to_camvid_says_how_to_declare_a_map(tmp_path: Path) -> None:
    make("idd_lite", tmp_path)
    coverage = opened("idd_lite", tmp_path, space="camvid11").coverage
    assert coverage is not None and set(coverage.lost) == {"sidewalk", "living", "vehicle", "roadside", "far"}
    assert "car" in coverage.missing


@pytest.mark.skipif(not REAL, reason="SEGUE_REAL_DATA (folder with camvid and idd_lite) is not set")
@pytest.mark.parametrize(
    ("name", "split", "number"),
    [("camvid", "train", 367), ("camvid", "val", 101), ("idd_lite", "train", 1403), ("idd_lite", "val", 204)],
)
def test_real_data(name: str, split: str, number: int) -> None:
    dataset = opened(name, Path(str(REAL)) / name, split, "street7")
    assert len(dataset) == number and not dataset.unlabelled_ids
    shares, labelled, counted = audit.class_shares(dataset, limit=20)
    assert counted == 20 and labelled > 0.8 and min(shares) > 0


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'cityscapes'"):
        open_dataset("cityscape", DatasetConfig(), "train")
