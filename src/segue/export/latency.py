"""How long a network takes from a float image on the device to train ids on the device, in each of several forms.

Forms take turns run by run, so that a machine whose speed swings treats them alike; a ratio to ``eager`` is the median
of the ratios of one turn. Knobs that matter: ``runs`` (percentile 99 of few runs is their maximum), threads
(``OMP_NUM_THREADS``). ``speed`` above 1 is faster than ``eager``.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import segue
from segue.data.dataset import Dataset
from segue.data.images import resize_image
from segue.export.forms import FORMS, Call, Form, Unavailable, Workshop, first_picture
from segue.export.session import OnnxNetwork, Size, pictures
from segue.labels import LabelSpace
from segue.models.base import SegModel
from segue.models.classify import to_input
from segue.scoring import score

WHAT = "float image on the device to train ids on the device"
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured: ``sizes`` (height, width) of the image, ``batch`` images at once, ``runs`` after ``warmup``."""

    sizes: Sequence[Size] = ((512, 1024),)
    batch: int = 1
    runs: int = 30
    warmup: int = 5
    forms: Sequence[Form] = FORMS


def measure(
    model: SegModel,
    labels: LabelSpace,
    plan: Plan,
    device: torch.device,
    *,
    calibration: Dataset | None = None,
    scored: Dataset | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Times in ms of every form at every size; a form that cannot run has ``skipped`` and says why.

    ``calibration``: pictures that set the ranges of int8. ``scored``: labelled data; with it ``quality`` holds the mIoU
    of the ONNX forms (shares 0..1, protocol ``native``, whatever size the data set gives).
    """
    model = model.deployed().to(device)
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(model, device, Path(folder), plan.sizes[0], calibration)
        ready, skipped = _prepare(shop, plan.forms)
        tables = []
        for number, size in enumerate(plan.sizes):
            image = _image(calibration or scored, plan.batch, size).to(device)
            rows = _time_all(ready, image, plan, partial(_tell, progress, plan, number))
            rows |= {form: {"form": form, "skipped": why} for form, why in skipped.items()}
            tables.append({"size": list(size), "rows": [rows[form] for form in plan.forms]})
        quality = None if scored is None else _quality(shop, ready, labels, scored)
        return {
            "what": WHAT,
            "model": model.config.of_network(),
            "classes": len(labels),
            "batch": plan.batch,
            "runs": plan.runs,
            "warmup": plan.warmup,
            "calibration_pictures": shop.calibrated_with,
            "machine": machine(device),
            "versions": versions(),
            "sizes": tables,
            "quality": quality,
        }


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, threads and, on CUDA, the GPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found: dict[str, Any] = {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": next(named, platform.processor()),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def versions() -> dict[str, str]:
    """Of the libraries whose kernels run; one that is not installed is left out."""
    found = {"segue": segue.__version__, "torch": torch.__version__}
    for name in ("onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _prepare(shop: Workshop, forms: Sequence[Form]) -> tuple[dict[Form, Call], dict[Form, str]]:
    ready: dict[Form, Call] = {}
    skipped: dict[Form, str] = {}
    for form in forms:
        try:
            ready[form] = shop.make(form)
        except Unavailable as error:
            skipped[form] = str(error)
    return ready, skipped


def _image(data: Dataset | None, batch: int, size: Size) -> Tensor:
    """A picture of the data, or a made-up one: the time of ``eager`` depends on what is seen."""
    found = first_picture(data)
    images = pictures(batch, size) if found is None else [resize_image(found, size)] * batch
    return to_input(images, torch.device("cpu"))


def _time_all(ready: dict[Form, Call], image: Tensor, plan: Plan, progress: Callable[[int], object]) -> dict[Form, Row]:
    rows: dict[Form, Row] = {}
    answers: dict[Form, Tensor] = {}
    with torch.inference_mode():
        for form, call in ready.items():
            try:
                for _ in range(max(1, plan.warmup)):
                    answers[form] = call(image)
            except Exception as error:  # compilers and runtimes raise many kinds
                if form == "eager":
                    raise
                reason = str(error).strip().partition("\n")[0]
                rows[form] = {"form": form, "skipped": f"cannot run here ({type(error).__name__}: {reason})"}
        timed = [form for form in ready if form in answers and form not in rows]
        seconds: dict[Form, list[float]] = {form: [] for form in timed}
        memory = dict.fromkeys(timed, 0)
        for turn in range(plan.runs):
            for form in timed:
                spent, peak = _once(ready[form], image)
                seconds[form].append(spent)
                memory[form] = max(memory[form], peak)
            progress(turn + 1)
    base = seconds.get("eager")
    for form in timed:
        rows[form] = {"form": form, **_row(seconds[form], base, image.shape[0])}
        if image.is_cuda and form not in ("onnx", "int8"):
            rows[form]["peak_memory_mb"] = memory[form] / 1e6
        if "eager" in answers:
            rows[form]["ids_as_eager"] = float((answers[form] == answers["eager"]).float().mean())
    return rows


def _once(call: Call, image: Tensor) -> tuple[float, int]:
    """Seconds of one call, all of its kernels included, and bytes at the peak above what was there (torch on CUDA)."""
    _synchronise(image.device)
    held = 0
    if image.is_cuda:
        torch.cuda.reset_peak_memory_stats(image.device)
        held = torch.cuda.memory_allocated(image.device)
    start = time.perf_counter()
    call(image)
    _synchronise(image.device)
    spent = time.perf_counter() - start
    return spent, torch.cuda.max_memory_allocated(image.device) - held if image.is_cuda else 0


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _row(seconds: Sequence[float], base: Sequence[float] | None, batch: int) -> Row:
    times = 1e3 * np.array(seconds)
    p50, p90, p99 = (float(p) for p in np.percentile(times, (50, 90, 99)))
    row: Row = {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "mean_ms": float(times.mean()), "fps": 1e3 * batch / p50}
    if base is not None:
        low, median, high = (float(p) for p in np.percentile(1e3 * np.array(base) / times, (5, 50, 95)))
        row |= {"speed": median, "speed_p05": low, "speed_p95": high}
    return row


def _tell(progress: Callable[[int, int], object] | None, plan: Plan, before: int, done: int) -> None:
    if progress is not None:
        progress(before * plan.runs + done, len(plan.sizes) * plan.runs)


def _quality(shop: Workshop, ready: Container[Form], labels: LabelSpace, data: Dataset) -> dict[str, Any]:
    files: dict[Form, Callable[[], Path]] = {"onnx": shop.float_file, "int8": shop.int8_file}
    found: dict[str, Any] = {}
    for form, file in files.items():
        if form in ready:
            result = score.evaluate(OnnxNetwork(file(), len(labels)), data, labels)
            found |= {"num_images": len(result.per_image.ids), form: result.scores().miou}
    if {"onnx", "int8"} <= found.keys():
        found["cost_points"] = 100 * (found["onnx"] - found["int8"])
    return found
