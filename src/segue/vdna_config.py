"""The JSON settings of "Unsupervised Incremental Learning using vDNA" (DLL project, 2024) as recipes.

Training becomes a stream that is followed, scored on both data sets before it and after every bucket; testing a scoring
of every checkpoint; weak labels what ``segue pseudo-label`` is asked. The files themselves: :mod:`segue.vdna_files`.
Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.vdna_files import (
    MEAN,
    MODELS,
    STD,
    Testing,
    Training,
    VdnaConfigError,
    WeakLabels,
    read_object,
    read_settings,
)

ORDERS = {"asc": "ascending", "desc": "descending", "rand": "random"}
SCORES = ("emd_block_11", "emd")
"""Columns of a ranking file to sort by; the code's own ``emd`` is in none of the files that it ships."""
PUBLISHED_LISTS = {"json_file1": "tests/cityscapes_val_set.json", "json_file2": "tests/kitti-360_val_set_v3.json"}
WEAK_LABELS = "weak_label_kitti_360.json"
TESTING = "testing_pipeline.json"


@dataclass
class Translated:
    """A JSON file in our terms. ``notes``: what was not read, filled in or found elsewhere, a line each.

    ``recipe``: plain containers, of training and testing. ``checkpoints``: files of another project that it names, to
    be converted with ``settings``. ``labelling``: of weak labels, what ``segue pseudo-label`` is asked.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    labelling: dict[str, Any] = field(default_factory=dict)


def translate(path: Path, overrides: Sequence[str] = (), *, strict: bool = True) -> tuple[Translated, list[str]]:
    """The file in our terms, and the overrides that are not of its own keys, hence the recipe's.

    ``strict=False``: files that are not there are told of only. ``VdnaConfigError`` with every fault.
    """
    settings, notes, rest = read_settings(path, overrides)
    out = Translated(type(settings).__name__, notes=notes)
    places = _Places(path, out.notes, strict)
    if isinstance(settings, Training):
        _training(settings, places, out)
    elif isinstance(settings, Testing):
        _testing(settings, places, out)
    elif isinstance(settings, WeakLabels):
        _weak_labels(settings, places, out)
    if places.faults:
        raise VdnaConfigError("\n".join(places.faults))
    return out, rest


class _Places:
    """Paths of a file: from the current folder as in the published commands, else from the file's or the one above."""

    def __init__(self, path: Path, notes: list[str], strict: bool) -> None:
        self.path, self.notes, self.strict = path, notes, strict
        self.bases = list(dict.fromkeys((Path(), path.parent, path.parent.parent)))
        self.faults: list[str] = []

    def find(self, text: str) -> str | None:
        text = text.replace("\\", "/")
        found = next((base for base in self.bases if (base / Path(text).expanduser()).exists()), None)
        return None if found is None else (found / Path(text).expanduser()).as_posix()

    def need(self, key: str, text: str | None, also: str = "") -> str:
        found = self.find(text) if text else None
        if found is not None and text:
            if Path(found) != Path(text):
                self.notes.append(f"{key}: {found}")
            return found
        told = f"{key} is not given"
        if text:
            looked = ", ".join(str(base.absolute()) for base in self.bases)
            told = f"{key} is {text}, which is not there (looked from {looked})"
        told += f"; add {key}=PATH{also}"
        if self.strict:
            self.faults.append(f"{self.path}: {told}")
        else:
            self.notes.append(told)
        return text or "PATH"

    def beside(self, name: str) -> Path | None:
        """A file of the published tree, by its name: the one in the file's own folder first."""
        bases = dict.fromkeys((self.path.parent, *self.bases))
        tried = (place / name for base in bases for place in (base, base / "configs"))
        return next((path for path in tried if path.is_file()), None)


def _training(given: Training, places: _Places, out: Translated) -> None:
    processor = given.data_processor
    ranking = places.need("data_processor.json_file", processor.json_file)
    ckpt = places.need("ckpt", given.ckpt)
    teacher = places.need("teacher_ckpt", given.teacher_ckpt) if given.teacher_ckpt else ckpt
    rounds = given.buckets_num or processor.num_buckets
    if rounds > processor.num_buckets:
        out.notes.append(f"buckets_num {rounds}: there are {processor.num_buckets}, all are visited (it stopped there)")
        rounds = processor.num_buckets
    rank = {"by": _score(given, ranking, out), "file": ranking}
    pictures = _images(ranking)
    data, evaluate = _scored(_lists(places), places, None, pictures)
    data["kitti360"] = _rooted("kitti360", pictures, places)
    if given.loss_type == "focal_loss":
        out.notes.append("loss_type focal_loss: its gamma is 0 there, which is cross-entropy")
    if "resnet" not in MODELS[given.model]["encoder"]:
        out.notes.append(f"model {given.model}: it has no layer1, so the head alone is trained")
    name = given.buckets_order
    follow = {"order": ORDERS[name], "rank": rank, "images": given.labelgenerator.num_samples}
    out.notes.append("num_samples: a bucket of fewer images is used whole (it stopped there)")
    out.settings = {"output_stride": given.output_stride}
    out.checkpoints = _foreign(ckpt, teacher)
    out.recipe = {
        "name": f"vdna_{name}",
        "labels": "cityscapes19",
        "seed": given.random_seed,
        "model": MODELS[given.model] | {"output_stride": given.output_stride, "weights": None, "head_lr_factor": 10},
        "data": data,
        "train": {"iterations": given.total_itrs, "batch_size": given.batch_size},
        "optim": _optim(given),
        "transform": {
            "crop": [given.crop_size, given.crop_size],
            "flip": 0.5,
            **dict.fromkeys(("brightness", "contrast", "saturation"), 0.5),
        },
        "evaluate": {"data": evaluate, "batch_size": 4},
        "stages": [
            {"name": "source", "role": "source_only", "method": "evaluation", "references": {"model": ckpt}},
            {
                "name": name,
                "role": "adapted",
                "rounds": rounds,
                "preset": "vdna",
                "data": {"target": "kitti360:all"},
                "start": ckpt,
                "references": {"source": teacher},
                "pseudo_labels": {"target": {"models": [ckpt], "quantile": 0, "entropy_max": _entropy(places)}},
                "follow": {"data": "kitti360:all", "buckets": processor.num_buckets, **follow},
                "model": {
                    "train_only": _trained(given.model),
                    "frozen_norm": "train",
                    "norm_momentum": {r"^encoder\.": 0.01},
                },
            },
        ],
    }


def _testing(given: Testing, places: _Places, out: Translated) -> None:
    folder = Path(places.need("checkpoint_dir", given.checkpoint_dir))
    files = _checkpoints(folder)
    if not files and places.strict and not places.faults:
        places.faults.append(f"{places.path}: checkpoint_dir {folder} holds no .pth file and no stage of a run")
    lists = {key: text for key in PUBLISHED_LISTS if (text := getattr(given, key)) is not None}
    found = {key: places.need(key, text) for key, text in lists.items()}
    data, evaluate = _scored(found, places, given.num_test)
    out.settings = {"output_stride": given.output_stride}
    out.checkpoints = _foreign(*files.values())
    out.recipe = {
        "name": "vdna_test",
        "labels": "cityscapes19",
        "seed": given.random_seed,
        "model": MODELS[given.model] | {"output_stride": given.output_stride, "weights": None},
        "data": data,
        "evaluate": {"data": evaluate, "batch_size": given.val_batch_size},
        "stages": [
            {"name": name, "method": "evaluation", "references": {"model": file}} for name, file in files.items()
        ],
    }
    out.notes.append(f"num_test: {given.num_test} images evenly spaced, where a list has more (drawn at random there)")


def _weak_labels(given: WeakLabels, places: _Places, out: Translated) -> None:
    if tuple(given.normalization.mean) != MEAN or tuple(given.normalization.std) != STD:
        places.faults.append(
            f"{places.path}: normalization other than ImageNet's is a model's own; convert it with that"
        )
    ckpt = places.need("ckpt", given.ckpt, also=" (the model that labels)")
    listed = places.need("json_file", given.json_file, also=" (the list of images to label)")
    data = _rooted("kitti360", _images(listed), places) | {"dataset": "kitti360", "listed": listed}
    out.settings = {"output_stride": given.output_stride}
    out.checkpoints = _foreign(ckpt)
    limit = {} if given.num_samples is None else {"limit": given.num_samples}
    rules = {"models": [ckpt], "quantile": 0, "entropy_max": given.entropy_threshold}
    out.labelling = {"data": data | limit, "split": "all", "rules": rules, "out": given.output_dir}


def _trained(model: str) -> list[str]:
    """Parameters with ``layer1.`` in their name, and the head."""
    return [r"^encoder\.layer1\."] * ("resnet" in MODELS[model]["encoder"]) + [r"^(?!encoder\.)"]


def _optim(given: Training) -> dict[str, Any]:
    """Its rate is the head's; the encoder's is a tenth of it."""
    schedule: dict[str, Any] = {"name": "poly", "power": 0.9}
    if given.lr_policy == "step":
        steps = range(given.step_size, given.total_itrs, given.step_size)
        schedule = {"name": "step", "step_at": [step / given.total_itrs for step in steps], "step_factor": 0.1}
    return {
        "name": "sgd",
        "lr": given.lr / 10,
        "momentum": 0.9,
        "weight_decay": given.weight_decay,
        "schedule": schedule,
    }


def _scored(
    lists: Mapping[str, str], places: _Places, limit: int | None, others: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Both validation sets, KITTI-360 first: the published lists, or the official splits without."""
    data: dict[str, Any] = {}
    evaluate = []
    for key, name, split in (("json_file2", "kitti360", "every"), ("json_file1", "cityscapes", "val")):
        if key in lists:
            entry = {"dataset": name, **_rooted(name, _images(lists[key]), places), "listed": lists[key]}
            data[f"{name}_val"] = entry | ({} if limit is None else {"limit": limit})
            evaluate.append(f"{name}_val:{split}")
        else:
            data[name] = _rooted(name, others, places)
            evaluate.append(f"{name}:val")
    return data, evaluate


def _lists(places: _Places) -> dict[str, str]:
    """The validation lists that ``testing_pipeline.json`` beside the file names, or those of the published tree."""
    beside = places.beside(TESTING)
    named = read_object(beside) if beside is not None else {}
    found = {key: places.find(str(named.get(key, usual))) for key, usual in PUBLISHED_LISTS.items()}
    for key, text in found.items():
        places.notes.append(
            f"scored on {text or f'the official split ({named.get(key, PUBLISHED_LISTS[key])} is absent)'}"
        )
    return {key: text for key, text in found.items() if text is not None}


def _entropy(places: _Places) -> float:
    beside = places.beside(WEAK_LABELS)
    value = read_object(beside).get("entropy_threshold", 0.3) if beside is not None else 0.3
    if not isinstance(value, int | float) or value <= 0:
        places.faults.append(f"{beside}: entropy_threshold must be a number above 0, it is {value!r}")
        return 0.3
    places.notes.append(f"entropy_threshold {value} of {beside or 'the published file'}")
    return float(value)


def _score(given: Training, ranking: str, out: Translated) -> str:
    """What the images are sorted by; at random, nothing that a file must have."""
    if given.buckets_order == "rand":
        return "stream"
    records = _records(ranking)
    known = next((name for name in SCORES if any(name in record for record in records)), SCORES[0])
    out.notes.append(f"buckets_order {given.buckets_order}: by {known}")
    return known


def _rooted(name: str, images: Sequence[str], places: _Places) -> dict[str, Any]:
    """Where a data set lies: above the folder that its pictures are in, or where the published tree has it."""
    inside, usual = {
        "kitti360": ("data_2d_raw", "datasets/data/KITTI-360"),
        "cityscapes": ("leftImg8bit", "datasets/data/cityscapes"),
    }[name]
    above = (image.partition(f"/{inside}/")[0] for image in images if f"/{inside}/" in image)
    root = places.find(next(above, usual)) or places.find(usual)
    return {} if root is None else {"root": root}


def _checkpoints(folder: Path) -> dict[str, str]:
    """Stage name -> file: those whose names tell an order, or all; of a run of ours, its stages."""
    held = sorted(p for p in folder.glob("*.pth")) or sorted(p for p in folder.glob("stages/*_*") if p.is_dir())
    held = [p for p in held if (p / "checkpoints").is_dir() or p.is_file()]
    named = [p for order in ORDERS for p in held if order in p.name]
    out: dict[str, str] = {}
    for path in dict.fromkeys(named or held):
        plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in path.stem).strip("_")
        name = plain if plain[:1].isalpha() else f"model_{plain}"
        while name in out:
            name += "_"
        out[name] = path.as_posix()
    return out


def _foreign(*texts: str) -> list[str]:
    return [text for text in dict.fromkeys(texts) if Path(text).is_file() and Path(text).name != "model.safetensors"]


def _images(text: str) -> list[str]:
    return [str(r.get("image", r.get("image_path", ""))).replace("\\", "/") for r in _records(text)[:1]]


def _records(text: str) -> list[dict[str, Any]]:
    """Entries of a list of images; none where it cannot be read, which is told when it is used."""
    try:
        rows = json.loads(Path(text).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
