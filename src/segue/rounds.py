"""Stages that are repeated (``rounds``), written out as stages that follow one another.

Plain containers in and out: this happens before a recipe is checked, and what is malformed is left for those checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def written_out(stages: list[Any]) -> list[Any]:
    """Stage NAME with ``rounds: n`` becomes NAME_1 … NAME_n.

    From the second on a round starts from the one before it, which also makes its pseudo-labels; what is annotated is
    counted as round k of NAME. Where later stages name NAME the last round is meant; it alone keeps the role.
    """
    out: list[Any] = []
    last: dict[str, str] = {}
    for given in stages:
        if not isinstance(given, dict):
            out.append(given)
            continue
        stage = _renamed(given, last)
        number = stage.get("rounds")
        if not isinstance(number, int) or number < 1:
            out.append(stage)
            continue
        out += [_round(stage, k, number) for k in range(1, number + 1)]
        last[str(stage.get("name"))] = str(out[-1]["name"])
    return out


def _renamed(stage: dict[str, Any], last: dict[str, str]) -> dict[str, Any]:
    def meant(source: Any) -> Any:
        return last.get(source, source) if isinstance(source, str) else source

    out = dict(stage)
    if "start" in stage:
        out["start"] = meant(stage["start"])
    if isinstance(stage.get("references"), dict):
        out["references"] = {name: meant(source) for name, source in stage["references"].items()}
    return _labelled(out, lambda models: [meant(model) for model in models])


def _round(stage: dict[str, Any], k: int, number: int) -> dict[str, Any]:
    out = {key: value for key, value in stage.items() if key != "rounds" and (key != "role" or k == number)}
    out["name"] = f"{stage.get('name')}_{k}"
    if isinstance(stage.get("annotate"), dict):
        out["annotate"] = {**stage["annotate"], "group": stage.get("name"), "round": k}
    if isinstance(stage.get("follow"), dict):
        out["follow"] = {**stage["follow"], "group": stage.get("name"), "bucket": k, "total": number}
    if k == 1:
        return out
    before = f"{stage.get('name')}_{k - 1}"
    return _labelled({**out, "start": before}, lambda models: [before])


def _labelled(stage: dict[str, Any], change: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
    """The stage with other models behind its pseudo-labels."""
    blocks = stage.get("pseudo_labels")
    if not isinstance(blocks, dict):
        return stage
    changed = {
        stream: {**block, "models": change(list(block["models"]))}
        if isinstance(block, dict) and isinstance(block.get("models"), (list, tuple))
        else block
        for stream, block in blocks.items()
    }
    return {**stage, "pseudo_labels": changed}
