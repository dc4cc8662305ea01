"""Does the distance follow drift, and is the alarm as rare and as quick as it says: ``python benchmarks/drift.py``.

Generated scenes of 128x256 between ``game`` and ``city``; three networks: random (ResNet-18), ImageNet
(EfficientNet-Lite0) and trained (BiSeNet of width 0.25, 200 iterations on ``game``, here). Writes
docs/results/drift.json.

Distances: 40 fresh images at each of 11 levels, three seeds (of images, and of the random network), against 40 others
of ``game``; the floor is the distance between two halves of one domain. Reported: Spearman's rank correlation with the
level.

Alarm: the reference is 200 images of ``game``. Streams without drift, 200 of them: each draws its 200 calibration and
its 500 stream images without replacement from one pool of 800 other images of ``game``, which makes them exchangeable
given the pool. Their first windows are 200 independent trials; those of 2000 streams more are counted for the window in
use. Streams with drift, 50 of them: image i lies at i / 499 of the way; it is one of 2 images rendered between
(i - 0.5) / 499 and (i + 0.5) / 499, so that two streams share half of their images. Beside the alarm in use, one on the
mean over all neurons without layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from common import cpu, record
from scenes import Pair
from scipy.stats import binom, spearmanr

from segue.data import scenes
from segue.gap.distances import ImageDistances, emd, image_distances
from segue.gap.fingerprint import count
from segue.gap.networks import Extractor, extractor_of, open_network
from segue.gap.ranges import measure
from segue.gap.watch import RATE, WINDOW, Watch
from segue.labels import U8

SIZE = (128, 256)
BATCH = 10
TRAIN_ITERATIONS = 200
NETWORKS = {"random": "timm:resnet18@random", "imagenet": "timm:tf_efficientnet_lite0@lite0-package", "trained": ""}
LAYERS = {"random": ["layer[1-4]\\.1"]}
"""The last block of each stage."""
LEVELS, PER_LEVEL, SEEDS = 11, 40, 3
REFERENCE, POOL, CALIBRATION, STREAM, CHOICE = 200, 800, 200, 500, 2
STILL, MORE, DRIFTING = 200, 2000, 50
WINDOWS = (10, WINDOW, 40)
BAR_RANK, BAR_FIRED = 0.95, 0.95
Images = list[U8]


def rendered(shares: Iterable[float], name: str) -> Images:
    """One fresh scene at each share of the way from game to city; ``name`` and place are its seed."""
    game, city = scenes.domain("game"), scenes.domain("city")
    return [
        scenes.render(scenes.drift(game, city, float(np.clip(share, 0, 1))), scenes.scene_seed(7, name, k), SIZE).image
        for k, share in enumerate(shares)
    ]


def batches(network: Extractor, images: Images) -> Iterator[torch.Tensor]:
    """What the probe takes."""
    for start in range(0, len(images), BATCH):
        yield network.batch(images[start : start + BATCH], SIZE)


def trained() -> Extractor:
    """BiSeNet after some training on the source, the images of which are not used again."""
    pair = Pair()
    pair.domain = scenes.domain("game")
    for _ in range(TRAIN_ITERATIONS):
        pair.render()
        pair.train()
    return extractor_of(pair.model.eval())


def follow(name: str, networks: Sequence[Extractor], sets: Sequence[Sequence[Images]]) -> dict[str, Any]:
    """Distances of all levels and seeds to the reference of each seed."""
    rows: list[dict[str, Any]] = []
    for seed, (network, images) in enumerate(zip(networks, sets, strict=True)):
        reference, *others = images
        ranges = measure(network.probe, batches(network, reference))
        source, *found = (count(network.probe, ranges, batches(network, own)) for own in (reference, *others))
        distances = [emd(source, own).number for own in found[:LEVELS]]
        correlation = float(spearmanr(range(LEVELS), distances).statistic)
        floor = {"game": distances[0], "city": emd(found[LEVELS - 1], found[LEVELS]).number}
        rows.append({"seed": seed, "distances": distances, "floor": floor, "spearman": correlation})
        print(f"{name}, seed {seed}: Spearman {correlation:.3f}, floor {floor}, {np.round(distances, 2)}", flush=True)
    lowest: float = min(row["spearman"] for row in rows)
    return {
        "network": name,
        "what": "distance",
        "lowest_spearman": lowest,
        "verdict": _verdict(lowest >= BAR_RANK),
        "seeds": rows,
    }


def taken(images: ImageDistances, places: Sequence[int] | np.ndarray[Any, Any], whole: bool = False) -> ImageDistances:
    """Some of the images; ``whole``: only the mean over all neurons, as if it were a layer."""
    index = torch.as_tensor(np.asarray(places))
    layers = {"all": images.numbers} if whole else images.layers
    return ImageDistances(images.numbers[index], {name: values[index] for name, values in layers.items()})


def alarm(name: str, network: Extractor, source: Images, pool: Images, moving: Images) -> list[dict[str, Any]]:
    """The alarm on streams without and with drift, by window, and once without layers.

    Of streams without drift all windows are judged for the window in use, the first ones for others.
    """
    ranges = measure(network.probe, batches(network, source))
    reference = count(network.probe, ranges, batches(network, source))
    still, drifting = (image_distances(network.probe, reference, batches(network, own)) for own in (pool, moving))
    rows = []
    for window, whole in [*((w, False) for w in WINDOWS), (WINDOW, True)]:
        row: dict[str, Any] = {"network": name, "what": "alarm", "window": window, "layers": not whole}
        row |= _false_alarms(still, window, whole) | _delays(still, drifting, window, whole)
        rows.append(row)
        print({k: v for k, v in row.items() if not isinstance(v, list)}, flush=True)
    return rows


def _alarms(still: ImageDistances, window: int, whole: bool, seed: int, judged: int) -> list[bool]:
    """Of the windows of one stream without drift, as many images as are judged."""
    order = np.random.default_rng([1, seed]).permutation(POOL)
    watch = Watch(taken(still, order[:CALIBRATION], whole), window)
    images = taken(still, order[CALIBRATION : CALIBRATION + judged], whole)
    return [found.alarm for found in watch.windows(images)]


def _false_alarms(still: ImageDistances, window: int, whole: bool) -> dict[str, Any]:
    judged = STREAM if (window, whole) == (WINDOW, False) else window
    streams = [_alarms(still, window, whole, seed, judged) for seed in range(STILL)]
    first = sum(alarms[0] for alarms in streams)
    low, high = binom.interval(0.95, STILL, RATE)
    told: dict[str, Any] = {
        "first_windows_alarmed": first,
        "binomial_interval": [int(low), int(high)],
        "verdict_rate": _verdict(low <= first <= high),
    }
    if window == WINDOW:
        more = sum(_alarms(still, window, whole, STILL + seed, window)[0] for seed in range(MORE))
        told["first_windows_of_more"] = {"alarmed": more, "of": MORE}
    if judged == window:
        return told
    shares = [sum(alarms) / len(alarms) for alarms in streams]
    rate = float(np.mean(shares))
    error = 1.96 * float(np.std(shares, ddof=1)) / STILL**0.5
    return told | {
        "all_windows_rate": rate,
        "all_windows_interval": [rate - error, rate + error],
        "streams_with_an_alarm": float(np.mean(np.array(shares) > 0)),
        "alarms_by_stream": [sum(alarms) for alarms in streams],
    }


def _delays(still: ImageDistances, drifting: ImageDistances, window: int, whole: bool) -> dict[str, Any]:
    delays: list[int | None] = []
    for stream in range(DRIFTING):
        generator = np.random.default_rng([2, stream])
        watch = Watch(taken(still, generator.permutation(POOL)[:CALIBRATION], whole), window)
        chosen = CHOICE * np.arange(STREAM) + generator.integers(0, CHOICE, STREAM)
        found = next((k for k in watch.windows(taken(drifting, chosen, whole)) if k.alarm), None)
        delays.append(None if found is None else found.last + 1)
    fired = [delay for delay in delays if delay is not None]
    return {
        "fired": len(fired) / DRIFTING,
        "verdict_fired": _verdict(len(fired) / DRIFTING >= BAR_FIRED),
        "median_delay_images": float(np.median(fired)) if fired else None,
        "median_drift_then": float((np.median(fired) - 1) / (STREAM - 1)) if fired else None,
        "longest_delay_images": max(fired, default=None),
        "delays_images": delays,
    }


def _verdict(holds: bool) -> str:
    return "holds" if holds else "MISSED"


def main() -> int:
    """Render, train, measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    start = cpu()
    shares = [0.0, *np.linspace(0, 1, LEVELS), 1.0]
    sets = [[rendered([s] * PER_LEVEL, f"{seed}-{k}") for k, s in enumerate(shares)] for seed in range(SEEDS)]
    places = (np.arange(STREAM * CHOICE) // CHOICE + (np.arange(STREAM * CHOICE) % CHOICE + 0.5) / CHOICE - 0.5) / (
        STREAM - 1
    )
    source, pool, moving = rendered([0] * REFERENCE, "reference"), rendered([0] * POOL, "pool"), rendered(places, "on")
    rows: list[dict[str, Any]] = []
    for name, text in NETWORKS.items():
        layers = LAYERS.get(name, ())
        networks = (
            [open_network(text, layers=layers, seed=seed) for seed in range(SEEDS)] if text else [trained()] * SEEDS
        )
        rows.append(follow(name, networks, sets))
        rows += alarm(name, networks[0], source, pool, moving)
    shape = {"size": SIZE, "train_iterations": TRAIN_ITERATIONS, "cpu_s": round(cpu() - start)}
    bars = {"spearman": BAR_RANK, "fired": BAR_FIRED}
    record("drift", RATE, rows, bars=bars, interval="95 %: binomial; of all windows by streams", shape=shape)
    return 1 if "MISSED" in str(rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
