"""Generated tables of regions that hold every statistic."""

from __future__ import annotations

from typing import Any

import numpy as np

from segue.acquire.table import RegionTable


def table(
    rows: int, seed: int = 0, classes: int = 5, dims: int = 8, prefix: str = "city", **change: Any
) -> RegionTable:
    """``rows`` regions of a fourth as many images; ``change`` replaces statistics, or drops them if None."""
    rng = np.random.default_rng(seed)
    images = max(1, rows // 4)
    image = np.sort(rng.integers(0, images, rows))
    region = np.arange(rows) - np.searchsorted(image, image)
    area = rng.integers(20, 200, rows)
    prob = rng.dirichlet(np.full(classes, 0.5), rows)
    ordered = np.sort(prob, 1)
    logs = np.log(np.maximum(prob, 1e-12))
    statistics: dict[str, Any] = {
        "embedding": rng.standard_normal((rows, dims)),
        "prob": prob,
        "entropy": -(prob * logs).sum(1) / np.log(classes),
        "margin": ordered[:, -1] - ordered[:, -2],
        "confidence": ordered[:, -1],
        "impurity": rng.random(rows),
        "edge": rng.random(rows) * 0.2,
        "domain_prob": rng.random(rows),
        "source_log_density": rng.normal(-300, 100, rows),
        "target_log_density": rng.normal(-100, 30, rows),
    }
    statistics.update(change)
    return RegionTable.build(
        [f"{prefix}/{k:04d}.png" for k in range(images)],
        classes,
        image=image,
        region=region,
        area_px=area,
        ignored_px=rng.integers(0, 19, rows),
        predicted=prob.argmax(1),
        statistics={name: value for name, value in statistics.items() if value is not None},
    )
