"""Two processes train like one, for every registered method and preset, with unevenly ignored pixels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers import processes
from helpers.fingerprint import fingerprint
from helpers.recipes import presets_beside, recipe, seldom, trained_methods
from segue import api, checkpoint
from segue.files import read_json

STOPPED = "stopped"
BOUND = {"32": 1e-5, "64": 1e-12}
"""Largest difference, relative to the largest value of a tensor."""
BATCH_NORM = "supervised, batch norm"
LAYOUTS = {"channels last": {"channels_last": True}, "sync": {}, "accumulate": {"accumulate": 2}}
"""Further settings of which two processes compute the same as one."""
SINGLE = ("supervised",)
"""Methods that are also compared in single precision; 64 bits are the sharper comparison."""
STOOD_FOR = ("cil", "fda", "pseudo_labels", "mic")
"""Another one goes the same ways between processes (``ewc``, ``supervised``, ``dida``): slow tests try them."""
CASES = [
    (method, precision)
    for method in [*trained_methods(), *presets_beside()]
    for precision in BOUND
    if precision == "64" or method in SINGLE
]


def case_name(method: str, precision: str) -> str:
    return f"{method}-{precision}"


def rare(method: str) -> bool:
    return method in STOOD_FOR or seldom(method)


def cases(data: Path) -> dict[str, dict[str, Any]]:
    """One recipe a method and precision with frozen norms, and one with batch norm."""
    out = {case_name(method, p): small(data, method, p) for method, p in CASES if not rare(method)}
    for name, train in LAYOUTS.items():
        out[name] = small(data, "supervised", "64")
        out[name]["train"] |= train
        out[name]["model"]["norm"] = "sync" if name == "sync" else "frozen"
    out[BATCH_NORM] = small(data, "supervised", "64")
    out[BATCH_NORM]["model"]["norm"] = "train"
    out[BATCH_NORM]["train"]["evaluate_every"] = 3
    out[BATCH_NORM]["evaluate"] = {"data": ["city:val"], "samples": 0}
    return out


def small(data: Path, method: str, precision: str) -> dict[str, Any]:
    given = recipe(data, method, precision=precision, iterations=3, batch_size=4, evaluate_every=None)
    given["model"]["norm"] = "frozen"
    # SGD: Adam divides by the size of a gradient, which makes rounding of a tiny one as large as any step.
    given["optim"] = {"name": "sgd", "lr": 0.1}
    given["evaluate"] = {"data": []}
    given["stages"][0]["train"] = {"iterations": 1}
    return given


@pytest.fixture(scope="module")
def uneven(scene_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes with labels that are void from row 10 n on in image n: one has no label at all."""
    root = tmp_path_factory.mktemp("uneven") / "data"
    shutil.copytree(scene_data, root)
    for n, path in enumerate(sorted(root.glob("game/labels/*.png"))):
        with Image.open(path) as image:
            palette, ids = image.getpalette(), np.array(image)
        ids[10 * n :] = 0
        label = Image.fromarray(ids, mode="P")
        label.putpalette(palette or [])
        label.save(path)
    return root


@pytest.fixture(scope="module")
def trained(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Run folders of every case: trained by one process, and by two."""
    root = tmp_path_factory.mktemp("devices")
    stopped = small(uneven, "supervised", "32")
    more: list[processes.Job] = [(stopped, str(root / "stopped"), what) for what in ("stop", "resume")]
    pairs = by_one_and_two(cases(uneven), root, [*more, (stopped, str(root / "whole"), "run")])
    return pairs | {STOPPED: [root / "stopped", root / "whole"]}


def by_one_and_two(
    given: dict[str, dict[str, Any]], root: Path, more: list[processes.Job] | None = None
) -> dict[str, list[Path]]:
    for name, one in given.items():
        api.run(one, root / "one" / name, device="cpu")
    jobs: list[processes.Job] = [(one, str(root / "two" / name), "run") for name, one in given.items()]
    processes.launch([*jobs, *(more or [])], root / "jobs.json")
    return {name: [root / world / name for world in ("one", "two")] for name in given}


def state(run: Path, stage: str = "1_second") -> dict[str, Tensor]:
    newest = checkpoint.newest(run / "stages" / stage / "checkpoints")
    assert newest is not None
    found: dict[str, Tensor] = checkpoint.load_state(newest)["method"]
    return found


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of any tensor, relative to its largest value."""
    assert a.keys() == b.keys()
    pairs = [(a[k].double(), b[k].double()) for k in a if a[k].numel()]
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-30)) for x, y in pairs)


@pytest.mark.slow
def test_two_processes_train_all_others_as_one(uneven: Path, tmp_path: Path) -> None:
    given = {case_name(m, p): small(uneven, m, p) for m, p in CASES if rare(m)}
    pairs = by_one_and_two(given, tmp_path)
    for method, precision in (case for case in CASES if rare(case[0])):
        compare(pairs[case_name(method, precision)], BOUND[precision])


@pytest.mark.parametrize(("method", "precision"), [case for case in CASES if not rare(case[0])])
def test_two_processes_train_as_one(method: str, precision: str, trained: dict[str, list[Path]]) -> None:
    compare(trained[case_name(method, precision)], BOUND[precision])


def compare(pair: list[Path], bound: float) -> None:
    one, two = (state(folder) for folder in pair)
    assert difference(two, one) <= bound
    folder = pair[0]
    if '"loss/' in (folder / "stages/1_second/metrics.jsonl").read_text():
        start = state(folder, "0_first")
        same = [k for k in start if k in one and one[k].shape == start[k].shape]  # but for outputs that it has added
        moved = max(float((one[k].double() - start[k].double()).abs().max()) for k in same)
        assert moved > 1e-4, "the bound would hold for a method that does nothing"


@pytest.mark.parametrize("name", LAYOUTS)
def test_settings_that_change_nothing(name: str, trained: dict[str, list[Path]]) -> None:
    one, two = (state(folder) for folder in trained[name])
    # A norm divides by a deviation, which magnifies the rounding of its sums.
    assert difference(two, one) <= (1e-10 if name == "sync" else BOUND["64"])


def test_batch_norm_sees_its_own_process_only(trained: dict[str, list[Path]]) -> None:
    """As everywhere, plain batch norm uses the statistics of its own images, ``norm: sync`` does not."""
    one, two = (state(folder) for folder in trained[BATCH_NORM])
    assert all(value.isfinite().all() for value in two.values())
    assert difference(two, one) > 1e-4


@pytest.mark.parametrize("world", [0, 1])
def test_validation_shares_images_and_scores_what_is_stored(world: int, trained: dict[str, list[Path]]) -> None:
    """Each process scores its part, with the norm statistics that the checkpoint will hold."""
    stage = trained[BATCH_NORM][world] / "stages/1_second"
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    told = [row["miou/city:val"] for row in rows if "miou/city:val" in row]
    stored = read_json(stage / "stage.json")["evaluations"]["city:val"]
    assert stored["num_images"] == 6 and told == [pytest.approx(stored["miou"], abs=1e-9)]


def test_a_signal_to_one_process_stops_all_with_all_saved(trained: dict[str, list[Path]]) -> None:
    stopped, whole = trained[STOPPED]
    assert fingerprint(stopped) == fingerprint(whole)


def test_double_precision_is_double(trained: dict[str, list[Path]]) -> None:
    found = state(trained[case_name("supervised", "64")][0])
    assert {v.dtype for v in found.values() if v.is_floating_point()} == {torch.float64}
