"""The published tree of the vDNA project in miniature: its three JSON files as committed, its lists, generated data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from helpers.deeplab_files import File
from segue.data import scenes

R50 = (3, 4, 6, 3)
DRIVE = "2013_05_28_drive_0000_sync"
CHECKPOINT = "checkpoints/best_deeplabv3plus_resnet101_cityscapes_os16.pth"
TRAINING: dict[str, Any] = {
    "random_seed": 1,
    "data_processor": {"json_file": "./assets/ranked_2k_class.json", "num_buckets": 1, "train_ratio": 0.8},
    "gpu_id": "0",
    "lr": 0.01,
    "weight_decay": 1e-4,
    "lr_policy": "poly",
    "total_itrs": 20,
    "step_size": 600,
    "loss_type": "cross_entropy",
    "dataset": "KITTI-360",
    "batch_size": 16,
    "continue_training": False,
    "crop_size": 370,
    "buckets_order": "rand",
    "buckets_num": 1,
    "model": "deeplabv3plus_resnet101",
    "num_classes": 19,
    "output_stride": 16,
    "ckpt": f"./{CHECKPOINT}",
    "teacher_ckpt": f"./{CHECKPOINT}",
    "labelgenerator": {"num_samples": 2000},
}
TESTING: dict[str, Any] = {
    "gpu_id": "0",
    "random_seed": 1,
    "val_batch_size": 4,
    "model": "deeplabv3plus_resnet101",
    "num_classes": 19,
    "output_stride": 16,
    "checkpoint_dir": "./checkpoints",
    "json_file1": "./tests/cityscapes_val_set.json",
    "json_file2": "./tests/kitti-360_val_set_v3.json",
    "num_test": 2200,
}
WEAK_LABELS: dict[str, Any] = {
    "confidence_threshold": 0.7,
    "entropy_threshold": 0.3,
    "base_source_dir": "./datasets/data/KITTI-360/data_2d_raw",
    "output_dir": "./outputs/weaklabels/KITTI-360",
    "normalization": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
}
README: dict[str, Any] = {
    "random_seed": 42,
    "data_processor": {"json_file": "path/to/data_processor_config.json", "num_buckets": 5, "train_ratio": 0.8},
    "buckets_order": "asc",
    "model": "DeepLabV3Plus",
    "ckpt": "path/to/checkpoint.pth",
    "teacher_ckpt": "path/to/teacher_checkpoint.pth",
    "num_classes": 19,
    "output_stride": 16,
    "labelgenerator": {"num_samples": 100},
}


def write(path: Path, data: Any) -> Path:
    """A JSON file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def ranking(frames: int, validation: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """A list as ``ranked_2k_class.json`` is, nearest first."""
    image = f"./datasets/data/KITTI-360/data_2d_raw/{DRIVE}/image_00/data_rect/{{:010d}}.png"
    return [
        {
            "image": image.format(n),
            "val_set": n in validation,
            "emd_block_11": 16.5 + n,
            "entropy": 0.1,
            "confidence": 0.95,
            "class_count": 9 + n % 3,
        }
        for n in range(frames)
    ]


def settings(root: Path) -> Path:
    """The JSON files, lists and an empty checkpoint, without data."""
    write(root / "configs/training_pipeline.json", TRAINING)
    write(root / "configs/testing_pipeline.json", TESTING)
    write(root / "configs/weak_label_kitti_360.json", WEAK_LABELS)
    write(root / "assets/ranked_2k_class.json", ranking(6, validation=(1,)))
    (root / CHECKPOINT).parent.mkdir()
    (root / CHECKPOINT).write_bytes(b"")
    return root


def tree(root: Path, encoder: str = "mobilenet") -> Path:
    """All of it with scenes of 64x128 in both layouts and a random DeepLabV3+ in the published layout.

    ``encoder``: mobilenet, which is a tenth of the work, or resnet50.
    """
    settings(root)
    city, size = scenes.domain("city"), (64, 128)
    kitti, cityscapes = root / "datasets/data/KITTI-360", root / "datasets/data/cityscapes"
    scenes.write(kitti, num=6, seed=0, domain=city, size=size, layout="kitti360", split="train")
    scenes.write(cityscapes, num=2, seed=1, domain=scenes.domain("game"), size=size, split="val")
    rows = ranking(2)
    for row in rows:
        place = row["image"].replace("data_2d_raw", "data_2d_semantics/train").replace("data_rect", "semantic")
        row |= {"ground_truth": place, "image_exists": True, "ground_truth_exists": True}
    write(root / "tests/kitti-360_val_set_v3.json", rows)
    pictures = sorted(cityscapes.glob("leftImg8bit/val/*/*.png"))
    write(root / "tests/cityscapes_val_set.json", [{"image": f"./{p.relative_to(root).as_posix()}"} for p in pictures])
    file = File()
    if encoder == "mobilenet":
        file.mobilenet()
        file.v3_head(320, 24, 19, final=False)
    else:
        file.resnet(R50, "backbone.")
        file.v3_head(2048, 256, 19, final=False)
    torch.save({"cur_itrs": 1, "model_state": file.state, "best_score": 0.7}, root / CHECKPOINT)
    return root
