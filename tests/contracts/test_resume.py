"""Exact resume, for every registered method and preset: killed anywhere, the resumed run ends with the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.fingerprint import fingerprint
from helpers.recipes import recipe, seldom, trained_methods
from segue import checkpoint, recipes
from segue.jobs import stages
from segue.jobs.run import run
from segue.methods.base import METHODS
from segue.presets import presets
from segue.scoring import score

KILL_AT = 3
TRAINED = [*trained_methods(), "dida", "mic", "dida_as_published"]
STOOD_FOR = ("mic", "dida_as_published")
"""Presets with as many buffers as ``dida``, or fewer: slow tests try them."""
POINTS = ("inside an iteration", "between two yields", "during evaluation", "before the rename", "between two stages")
EVERYWHERE = ("adversarial", "dida")
"""Methods that are killed at all points at every change, the others at the first: the later ones know no method."""
WITH_WORKERS = ("adversarial", "dida")
"""Methods that are tried with loader processes at every change, which know no method either."""


def case(method: str, often: bool, *more: str) -> Any:
    late = not often or method in STOOD_FOR or seldom(method)
    return pytest.param(method, *more, marks=pytest.mark.slow if late else ())


class Kill(BaseException):
    """Stands for the end of the process: nothing but ``finally`` blocks runs after it."""


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Make ``owner.name`` raise Kill the first time ``when(*args)`` holds."""
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            raise Kill
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def arm(monkeypatch: pytest.MonkeyPatch, point: str, method: str) -> None:
    """Arrange for the run to die at ``point``."""
    cls = METHODS.get("self_training" if method in presets() else method)
    if point in POINTS[:2]:
        real = cls.losses

        def dying(self: Any, batches: Any, iteration: int) -> Iterator[Any]:
            doomed = iteration == KILL_AT and self.key[1] == "second"
            if doomed and point == POINTS[0]:
                raise Kill
            for terms in real(self, batches, iteration):
                yield terms
                if doomed:
                    raise Kill

        monkeypatch.setattr(cls, "losses", dying)
    elif point == POINTS[2]:
        calls: list[int] = []
        once(monkeypatch, score, "measure_models", lambda *a: calls.append(1) is None and len(calls) == 3)
    elif point == POINTS[3]:
        once(monkeypatch, checkpoint.os, "replace", lambda a, b: "second" in str(b) and "00000004" in str(b))
    else:
        once(monkeypatch, stages, "_run_stage", lambda job, stage, resume: stage.name == "second")


@pytest.fixture(scope="module")
def uninterrupted(scene_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Fingerprint of the run that nobody killed, once a method."""
    known: dict[str, dict[str, str]] = {}

    def get(method: str) -> dict[str, str]:
        if method not in known:
            folder = tmp_path_factory.mktemp(method)
            run(recipes.load(recipe(scene_data, method)), folder, device="cpu")
            known[method] = fingerprint(folder)
        return known[method]

    return get


@pytest.mark.parametrize(
    ("method", "point"), [case(m, p == POINTS[0] or m in EVERYWHERE, p) for m in TRAINED for p in POINTS]
)
def test_resume_is_exact(
    method: str,
    point: str,
    scene_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[str], dict[str, str]],
) -> None:
    given = recipes.load(recipe(scene_data, method))
    with monkeypatch.context() as patch:
        arm(patch, point, method)
        with pytest.raises(Kill):
            run(given, tmp_path, device="cpu")
    run(given, tmp_path, resume=True, device="cpu")
    assert fingerprint(tmp_path) == uninterrupted(method)


@pytest.mark.parametrize("method", [case(m, m in WITH_WORKERS) for m in TRAINED])
def test_resume_with_workers_is_exact(
    method: str,
    scene_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[str], dict[str, str]],
) -> None:
    given = recipes.load(recipe(scene_data, method, workers=2))
    with monkeypatch.context() as patch:
        arm(patch, POINTS[0], method)
        with pytest.raises(Kill):
            run(given, tmp_path, device="cpu")
    run(given, tmp_path, resume=True, device="cpu")
    assert fingerprint(tmp_path) == uninterrupted(method)


def test_state_loads_without_pickled_objects(scene_data: Path, tmp_path: Path) -> None:
    run(recipes.load(recipe(scene_data)), tmp_path, device="cpu")
    for path in tmp_path.rglob("state.pt"):
        assert torch.load(path, weights_only=True)["iteration"] > 0
