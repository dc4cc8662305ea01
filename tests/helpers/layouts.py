"""The published folder trees, file names, size ratios, bit depths and archives of every data set of the catalog.

Written down a second time, on purpose not taken from the catalog's YAMLs: what they are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Depth = Literal["grey", "palette", "rgb16"]


@dataclass(frozen=True)
class Frame:
    """One picture: its id in Segue, its file, and its label file for each kind of label (none: withheld)."""

    id: str
    image: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Archive:
    """What lies in an archive: files of the tree that start with ``start``, with ``inside`` in its place."""

    name: str
    start: str
    inside: str


@dataclass(frozen=True)
class Layout:
    """``size`` (height, width) has the published ratio; ``depths``: one for each kind of label file."""

    size: tuple[int, int]
    depths: tuple[Depth, ...]
    splits: dict[str, tuple[Frame, ...]]
    archives: tuple[Archive, ...]
    texts: dict[str, str] = field(default_factory=dict)
    labelled: str = "train"
    """A split of which every picture has a label."""


def _frames(keys: tuple[str, ...], image: str, *labels: str, split: str = "") -> tuple[Frame, ...]:
    return tuple(
        Frame(k, image.format(k=k, split=split), tuple(p.format(k=k, split=split) for p in labels)) for k in keys
    )


def _cityscapes() -> Layout:
    keys = ("aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "bonn/bonn_000002_000019")
    image = "leftImg8bit/{split}/{k}_leftImg8bit.png"
    kinds = ("labelTrainIds", "labelIds")
    splits = {
        s: _frames(keys, image, *(f"{g}/{{split}}/{{k}}_{g}_{kind}.png" for kind in kinds), split=s)
        for s, g in (("train", "gtFine"), ("val", "gtFine"), ("train_extra", "gtCoarse"))
    }
    splits["test"] = _frames(("berlin/berlin_000000_000019",), image, split="test")
    archives = (
        Archive("leftImg8bit_trainextra.zip", "leftImg8bit/train_extra/", "leftImg8bit/train_extra/"),
        Archive("leftImg8bit_trainvaltest.zip", "leftImg8bit/", "leftImg8bit/"),
        Archive("gtFine_trainvaltest.zip", "gtFine/", "gtFine/"),
        Archive("gtCoarse.zip", "gtCoarse/", "gtCoarse/"),
    )
    return Layout((32, 64), ("grey", "grey"), splits, archives)


def _gta5() -> Layout:
    sound, odd = ("00001", "00002", "02501", "02502"), ("15188", "20809", "20860")
    paths = ("images/{k}.png", "labels/{k}.png", "labels/{k}_labelTrainIds.png")
    frames = _frames(sound, *paths)
    splits = {"train": frames, "val": frames[:1], "fit": frames[1:], "all": frames + _frames(odd, *paths)}
    archives = tuple(
        Archive(f"{part}_{what}.zip", f"{what}/{start}", f"{what}/{start}")
        for part, start in (("01", "00"), ("02", "02"), ("07", "15"), ("09", "20"))
        for what in ("images", "labels")
    )
    return Layout((32, 58), ("palette", "grey"), splits, archives)


def _synthia() -> Layout:
    frames = _frames(
        ("0000000", "0000001", "0009399"), "RGB/{k}.png", "GT/LABELS/{k}.png", "GT/LABELS/{k}_labelTrainIds.png"
    )
    archive = Archive("SYNTHIA_RAND_CITYSCAPES.zip", "", "RAND_CITYSCAPES/")
    return Layout((32, 54), ("rgb16", "grey"), {"train": frames, "val": frames[:1], "fit": frames[1:]}, (archive,))


def _kitti360() -> Layout:
    def frame(drive: str, number: int, labelled: bool = True) -> Frame:
        name = f"2013_05_28_drive_{drive}_sync"
        label = f"data_2d_semantics/train/{name}/image_00/semantic/{number:010d}.png"
        image = f"data_2d_raw/{name}/image_00/data_rect/{number:010d}.png"
        return Frame(f"{name}/{number:010d}", image, (label,) if labelled else ())

    train = tuple(frame(d, n) for d, n in (("0000", 250), ("0000", 251), ("0002", 4391)))
    val = (frame("0002", 250),)
    texts = {
        f"data_2d_semantics/train/2013_05_28_drive_{s}_frames.txt": "".join(
            f"{f.image} {f.labels[0]}\n" for f in frames
        )
        for s, frames in (("train", train), ("val", val))
    }
    archives = (
        *(
            Archive(f"2013_05_28_drive_{d}_sync_image_00.zip", f"data_2d_raw/2013_05_28_drive_{d}_sync/", f"{s}/")
            for d, s in (("0000", "2013_05_28_drive_0000_sync"), ("0002", "2013_05_28_drive_0002_sync"))
        ),
        Archive("data_2d_semantics.zip", "data_2d_semantics/", "data_2d_semantics/"),
    )
    splits = {"train": train, "val": val, "all": (*train, *val, frame("0002", 9, labelled=False))}
    return Layout((32, 120), ("grey",), splits, archives, texts)


def _acdc() -> Layout:
    def frames(split: str, *conditions: str, labels: bool = True, ref: str = "") -> tuple[Frame, ...]:
        keys = tuple(f"{c}/{split}/GOPR0475/GOPR0475_frame_000041" for c in conditions)
        kinds = ("labelTrainIds", "labelIds") if not ref else ("labelTrainIds",)
        return _frames(
            keys, f"rgb_anon/{{k}}_rgb{ref}_anon.png", *(f"gt/{{k}}_gt{ref}_{n}.png" for n in kinds if labels)
        )

    weathers = ("fog", "night", "rain", "snow")
    splits = {s: frames(s, *weathers) for s in ("train", "val")}
    splits |= {f"{s}_{w}": frames(s, w) for s in ("train", "val") for w in weathers}
    splits |= {s: frames(s, *weathers, ref="_ref") for s in ("train_ref", "val_ref")}
    splits["test"] = frames("test", *weathers, labels=False)
    archives = (
        Archive("rgb_anon_trainvaltest.zip", "rgb_anon/", "rgb_anon/"),
        Archive("gt_trainval.zip", "gt/", "gt/"),
    )
    return Layout((36, 64), ("grey", "grey"), splits, archives)


def _dark_zurich() -> Layout:
    image = "rgb_anon/{split}/{k}_rgb_anon.png"
    keys = ("GOPR0351/GOPR0351_frame_000001", "GOPR0351/GOPR0351_frame_000002")
    times = {"train": "train/night", "train_twilight": "train/twilight", "train_day": "train/day"}
    splits = {s: _frames(keys, image, split=folder) for s, folder in times.items()}
    kinds = (f"gt/{{split}}/{{k}}_gt_{n}.png" for n in ("labelTrainIds", "labelIds"))
    val = ("night/GOPR0356/GOPR0356_frame_000321", "night/GOPR0356/GOPR0356_frame_000324")
    splits["val"] = _frames(val, image, *kinds, split="val")
    splits["test"] = _frames(("night/GOPR0364/GOPR0364_frame_000001",), image, split="test")
    archives = (
        Archive("Dark_Zurich_train_anon.zip", "rgb_anon/train/", "rgb_anon/train/"),
        Archive("Dark_Zurich_val_anon.zip", "rgb_anon/val/", "rgb_anon/val/"),
        Archive("Dark_Zurich_val_anon.zip", "gt/", "gt/"),
        Archive("Dark_Zurich_test_anon_withoutGt.zip", "rgb_anon/test/", "rgb_anon/test/"),
    )
    return Layout((36, 64), ("grey", "grey"), splits, archives, labelled="val")


def _voc2012() -> Layout:
    kinds = ("SegmentationClass/{k}.png", "SegmentationClassAug/{k}.png")
    train = _frames(("2007_000032", "2007_000039"), "JPEGImages/{k}.jpg", *kinds)
    val = _frames(("2007_000033",), "JPEGImages/{k}.jpg", *kinds)
    extra = (Frame("2008_000002", "JPEGImages/2008_000002.jpg", ("", "SegmentationClassAug/2008_000002.png")),)
    splits = {"train": train, "val": val, "trainval": train + val, "train_aug": train + extra}
    texts = {
        f"ImageSets/Segmentation/{s}.txt": "".join(f"{f.id}\n" for f in splits[s]) for s in ("train", "val", "trainval")
    }
    pairs = (f"/{f.image} /{f.labels[1]}\n" for f in splits["train_aug"])
    texts["ImageSets/Segmentation/train_aug.txt"] = "".join(pairs)
    archives = (
        Archive("SegmentationClassAug.zip", "SegmentationClassAug/", "SegmentationClassAug/"),
        Archive("VOCtrainval_11-May-2012.tar", "", "VOCdevkit/VOC2012/"),
    )
    return Layout((33, 50), ("palette", "grey"), splits, archives, texts)


def _plain(
    size: tuple[int, int],
    depth: Depth,
    image: str,
    label: str,
    archives: tuple[Archive, ...],
    keys: tuple[str, ...],
    folders: dict[str, str],
) -> Layout:
    splits = {
        s: _frames(keys, image, *(() if s == "test" else (label,)), split=folder) for s, folder in folders.items()
    }
    return Layout(size, (depth,), splits, archives)


LAYOUTS: dict[str, Layout] = {
    "cityscapes": _cityscapes(),
    "gta5": _gta5(),
    "synthia": _synthia(),
    "kitti360": _kitti360(),
    "acdc": _acdc(),
    "dark_zurich": _dark_zurich(),
    "voc2012": _voc2012(),
    "ade20k": _plain(
        (34, 45),
        "grey",
        "images/{split}/{k}.jpg",
        "annotations/{split}/{k}.png",
        (Archive("ADEChallengeData2016.zip", "", "ADEChallengeData2016/"),),
        ("ADE_train_00000001", "ADE_train_00000002"),
        {"train": "training", "val": "validation"},
    ),
    "mapillary": _plain(
        (36, 48),
        "palette",
        "{split}/images/{k}.jpg",
        "{split}/labels/{k}.png",
        (Archive("mapillary-vistas-dataset_public_v1.1.zip", "", ""),),
        ("__CRyFzoDOXn6unQ6a3DnQ", "_0Zfz0zOJYdhnZMNCqIQqw"),
        {"train": "training", "val": "validation", "test": "testing"},
    ),
    "bdd100k": _plain(
        (36, 64),
        "grey",
        "images/10k/{split}/{k}.jpg",
        "labels/sem_seg/masks/{split}/{k}.png",
        (
            Archive("bdd100k_images_10k.zip", "images/", "bdd100k/images/"),
            Archive("bdd100k_sem_seg_labels_trainval.zip", "labels/", "bdd100k/labels/"),
        ),
        ("0004a4c0-d4dff0ad", "00054602-3bf57337"),
        {"train": "train", "val": "val", "test": "test"},
    ),
    "camvid": _plain(
        (36, 48),
        "grey",
        "{split}/{k}.png",
        "{split}annot/{k}.png",
        (Archive("CamVid.zip", "", ""),),
        ("0001TP_006690", "0016E5_08640"),
        {"train": "train", "val": "val"},
    ),
    "idd_lite": _plain(
        (32, 45),
        "grey",
        "leftImg8bit/{split}/{k}_image.jpg",
        "gtFine/{split}/{k}_label.png",
        (Archive("idd20k_lite.zip", "", ""),),
        ("0/024541", "1/005506"),
        {"train": "train", "val": "val", "test": "test"},
    ),
}
