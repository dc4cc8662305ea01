"""Every check of ``segue doctor`` finds its fault when the fault is there, and says how to mend it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command import segue
from segue import doctor
from segue.doctor import Finding

Patch = pytest.MonkeyPatch
Usage = namedtuple("Usage", "total used free")


def found(name: str) -> list[Finding]:
    """What one check says."""
    return list(doctor.CHECKS[name]())


def only(name: str) -> Finding:
    """The one thing that a check says."""
    (finding,) = found(name)
    return finding


@pytest.fixture()
def installed(monkeypatch: Patch) -> dict[str, str | None]:
    """Versions that override what is installed; None: not installed."""
    override: dict[str, str | None] = {}
    real = metadata.version

    def version(name: str) -> str:
        if name in override:
            if (given := override[name]) is None:
                raise metadata.PackageNotFoundError(name)
            return given
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    return override


def test_python(monkeypatch: Patch) -> None:
    assert only("python").status == "ok"
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.18")
    assert only("python").status == "fail" and ">=3.11" in only("python").fix


def test_packages(installed: dict[str, str | None]) -> None:
    assert only("packages").status == "ok"
    installed |= {"timm": None, "torch": "2.1.0"}
    finding = only("packages")
    assert finding.status == "fail" and "torch>=2.6" in finding.text and "2.1.0" in finding.text
    assert finding.fix.startswith("pip install") and "'timm'" in finding.fix


def test_any_opencv_satisfies(installed: dict[str, str | None]) -> None:
    installed |= {"opencv-contrib-python-headless": None, "opencv-python": "4.10.0"}
    assert only("packages").status == "ok"
    assert only("opencv").status == "warn" and "ximgproc" in only("opencv").text


def test_opencv(installed: dict[str, str | None]) -> None:
    installed |= dict.fromkeys(doctor.OPENCV)
    assert only("opencv").status == "fail"
    installed |= {"opencv-python": "4.10.0", "opencv-contrib-python-headless": "5.0.0"}
    finding = only("opencv")
    assert finding.status == "fail" and "uninstall -y opencv-python opencv-contrib-python-headless" in finding.fix
    installed["opencv-python"] = None
    assert only("opencv").status == "ok"


@pytest.mark.parametrize(("version", "status"), [(None, "ok"), ("2.5.0", "warn"), ("2.6.2", "fail")])
def test_lightning(version: str | None, status: str, installed: dict[str, str | None]) -> None:
    installed["lightning"] = version
    assert only("lightning").status == status


def test_torchvision(installed: dict[str, str | None], monkeypatch: Patch) -> None:
    assert only("torchvision").status == "ok"
    monkeypatch.setattr(doctor.importlib, "import_module", raising(RuntimeError("operator nms does not exist")))
    assert only("torchvision").status == "fail" and "nms" in only("torchvision").text
    installed["torch"] = "2.4.0+cpu"
    assert "needs torch" in only("torchvision").text


def raising(error: Exception) -> Callable[..., Any]:
    """A function that raises."""

    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def fake_torch(monkeypatch: Patch, *, available: bool, cuda: str | None, bf16: bool = True) -> None:
    """What torch says of the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def fake_driver(monkeypatch: Patch, folder: Path, answer: str) -> None:
    """An ``nvidia-smi`` on the path."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_gpu(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    fake_torch(monkeypatch, available=False, cuda=None)
    assert only("gpu").status == "warn"
    fake_torch(monkeypatch, available=True, cuda="13.2")
    assert only("gpu").status == "ok" and "Tesla T4" in only("gpu").text


def test_gpu_that_torch_cannot_use(monkeypatch: Patch, tmp_path: Path) -> None:
    fake_driver(monkeypatch, tmp_path, 'echo "NVIDIA H200, 535.104"')
    fake_torch(monkeypatch, available=False, cuda=None)
    assert only("gpu").status == "fail" and "CUDA build" in only("gpu").fix and "535.104" in only("gpu").text
    fake_torch(monkeypatch, available=False, cuda="13.2")
    assert only("gpu").status == "fail" and "driver" in only("gpu").fix
    fake_driver(monkeypatch, tmp_path, "exit 9")  # the tool is there, the driver is not
    assert only("gpu").status == "warn"


def test_bf16(monkeypatch: Patch) -> None:
    fake_torch(monkeypatch, available=True, cuda="13.2", bf16=False)
    assert only("bf16").status == "warn" and "fp16" in only("bf16").fix
    fake_torch(monkeypatch, available=True, cuda="13.2")
    assert only("bf16").status == "ok"


@pytest.mark.parametrize(("free_gb", "status"), [(0.2, "fail"), (5, "warn"), (500, "ok")])
def test_disk(free_gb: float, status: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free_gb * 1e9))
    assert [f.status for f in found("disk")] == [status, status]


def test_shared_memory(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(doctor, "SHM", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 64e6))
    assert only("shared_memory").status == "warn" and "shm-size" in only("shared_memory").fix
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 8e9))
    assert only("shared_memory").status == "ok"
    monkeypatch.setattr(doctor, "SHM", tmp_path / "none")
    assert only("shared_memory").status == "fail"


def test_threads(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert only("threads").status == "ok"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.usable_cores() == 16
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert doctor.usable_cores() == 2.5
    assert only("threads").status == "warn" and only("threads").fix == "OMP_NUM_THREADS=2"
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert only("threads").status == "fail"


def test_memory(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000000\n")
    assert only("memory").status == "warn" and "1.0 GB" in only("memory").text


def test_data(monkeypatch: Patch, tmp_path: Path) -> None:
    for name in ("SEGUE_DATA", "IFN_DIR_DATASET", "CITYSCAPES_DATASET", "KITTI360_DATASET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert only("data").status == "warn", "nothing found"
    (tmp_path / "data/camvid").mkdir(parents=True)
    assert [f.status for f in found("data") if "camvid" in f.text] == ["warn"], "an empty folder"
    (tmp_path / "data/camvid/train").mkdir()
    assert [f.status for f in found("data")] == ["ok", "ok"]
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "typo"))
    assert [f.fix for f in found("data") if f.status == "fail"] == ["correct or unset CITYSCAPES_DATASET"]


def test_writable(monkeypatch: Patch, tmp_path: Path) -> None:
    assert {f.status for f in found("writable")} == {"ok"}
    real = tempfile.TemporaryFile

    def refuse(dir: Path) -> Any:
        if Path(dir) == tmp_path:
            raise PermissionError(13, "Permission denied")
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "not/yet/there"))
    (fault,) = [f for f in found("writable") if f.status == "fail"]
    assert "SEGUE_CACHE" in fault.fix
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_weights(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert only("weights").status == "warn" and "segue[lite0]" in only("weights").fix
    (tmp_path / "hf/hub/models--timm--resnet50.a1_in1k").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints/resnet101.pth").touch()
    finding = only("weights")
    assert finding.status == "ok" and "timm/resnet50.a1_in1k" in finding.text and "resnet101.pth" in finding.text


def test_no_check_is_untested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(doctor.CHECKS) <= tested, "a check needs a test in which it finds its fault"


def test_a_check_that_breaks_is_a_finding(monkeypatch: Patch) -> None:
    def broken() -> Iterator[Finding]:
        raise ImportError("libcudart.so")
        yield

    monkeypatch.setattr(doctor, "CHECKS", {"broken": broken, "python": doctor.CHECKS["python"]})
    first, second = doctor.examine()
    assert first.status == "fail" and "libcudart.so" in first.text and second.status == "ok"


def test_the_network_is_never_used(monkeypatch: Patch) -> None:
    monkeypatch.setattr(socket, "socket", raising(AssertionError("a check opened a socket")))
    monkeypatch.setattr(socket, "create_connection", raising(AssertionError("a check opened a connection")))
    assert not [f for f in doctor.examine() if "a check opened" in f.text]


def test_command(monkeypatch: Patch) -> None:
    fine, bad = Finding("a", "ok", "well"), Finding("b", "fail", "ill", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda: [fine])
    assert segue("doctor").code == 0
    monkeypatch.setattr(doctor, "examine", lambda: [fine, bad])
    shown = segue("doctor")
    assert shown.code == 2 and "mend it" in shown.out and "fail" in shown.out and not shown.err
    told = segue("doctor", "--json")
    assert told.code == 2
    assert [tuple(f.values()) for f in json.loads(told.out)] == [
        ("a", "ok", "well", ""),
        ("b", "fail", "ill", "mend it"),
    ]
