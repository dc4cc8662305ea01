"""What the drift alarm promises: valid p-values whatever the distances, power by layers, clear limits."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, mannwhitneyu
from torch import nn

from helpers.command import refused, segue
from segue.data import scenes
from segue.files import read_json
from segue.gap.between import ImageSet
from segue.gap.distances import ImageDistances, image_distances
from segue.gap.errors import GapError
from segue.gap.layers import Probe
from segue.gap.networks import Extractor
from segue.gap.reading import open_images
from segue.gap.watch import Watch, calibrate, needed


def distances(values: np.ndarray) -> ImageDistances:
    """Of images (M) or images and layers (M,L)."""
    table = torch.from_numpy(np.asarray(values, float).reshape(len(values), -1))
    return ImageDistances(table.mean(1), {f"layer{k}": table[:, k] for k in range(table.shape[1])})


@pytest.mark.parametrize("ties", [False, True])
def test_over_all_ways_to_deal_the_images_every_p_value_comes_as_often_as_it_says(ties: bool) -> None:
    values = np.random.default_rng(0).standard_cauchy((12, 2))
    values = np.sign(values) if ties else values
    found = []
    for window in itertools.combinations(range(12), 3):
        rest = [k for k in range(12) if k not in window]
        found.append(Watch(distances(values[rest]), 3).judge(distances(values[list(window)])).p)
    every = len(found)
    assert every == math.comb(12, 3) and min(found) < (0.3 if ties else 0.02)
    for p in Counter(found):
        assert sum(own <= p + 1e-12 for own in found) == pytest.approx(p * every)


def test_one_layer_is_the_exact_rank_sum_test() -> None:
    generator = np.random.default_rng(1)
    for shift in (0, 0.5, -1, 2):
        window, source = generator.normal(shift, 1, 5), generator.normal(0, 1, 8)
        found = Watch(distances(source), 5).judge(distances(window))
        assert found.p == pytest.approx(mannwhitneyu(window, source, method="exact").pvalue)
        assert np.sign(found.deviation) == np.sign(mannwhitneyu(window, source).statistic - 20)
        assert found.distance == pytest.approx(window.mean())


def test_a_sample_of_the_ways_gives_nearly_the_exact_p() -> None:
    generator = np.random.default_rng(2)
    window, source = generator.normal(0.6, 1, 20), generator.normal(0, 1, 60)
    exact = mannwhitneyu(window, source, method="exact").pvalue
    found = Watch(distances(source)).judge(distances(window)).p
    assert 0.005 < exact < 0.2 and abs(found - exact) < 4 * math.sqrt(exact / 10_000)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_first_windows_without_drift_alarm_at_the_rate(rate: float) -> None:
    generator = np.random.default_rng(3)
    mixed = generator.normal(size=(6, 6))
    alarms = 0
    for _ in range(400):
        images = np.exp(generator.standard_t(2, (60, 6)).clip(-9, 9)) @ mixed
        alarms += Watch(distances(images[:50]), 10, rate).judge(distances(images[50:])).alarm
    low, high = binom.interval(0.999, 400, rate)
    assert low <= alarms <= high


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_one_layer_of_many_is_found_and_told(shift: float) -> None:
    generator = np.random.default_rng(4)
    common = generator.normal(size=(120, 1))
    images = common + 0.5 * generator.normal(size=(120, 5))
    images[100:, 3] += shift
    found = Watch(distances(images[:100])).judge(distances(images[100:]), first=40)
    assert found.alarm and found.layer == "layer3" and np.sign(found.deviation) == np.sign(shift)
    assert (found.first, found.last) == (40, 59)
    whole = distances(images.mean(1))
    halves = [ImageDistances(whole.numbers[k], {"all": whole.numbers[k]}) for k in (slice(100), slice(100, 120))]
    assert Watch(halves[0]).judge(halves[1]).p > found.p


def test_layers_that_move_against_each_other_are_drift() -> None:
    generator = np.random.default_rng(5)
    images = generator.normal(size=(120, 1)) + 0.1 * generator.normal(size=(120, 2))
    images[100:, 0] += 0.2
    images[100:, 1] -= 0.2
    assert Watch(distances(images[:100])).judge(distances(images[100:])).alarm
    alone = Watch(distances(images[:100, 0])).judge(distances(images[100:, 0]))
    assert not alone.alarm


def test_equal_distances_are_no_drift_and_hide_none() -> None:
    same = np.full((40, 2), 3.0)
    assert Watch(distances(same[:30]), 10).judge(distances(same[30:])).p == 1
    moving = np.column_stack([same[:, 0], np.arange(40)])
    assert Watch(distances(moving[:30]), 10).judge(distances(moving[30:])).alarm
    repeated = np.random.default_rng(6).normal(size=(40, 1)) @ np.ones((1, 3))
    assert np.isfinite(Watch(distances(repeated[:30]), 10).judge(distances(repeated[30:])).p)


@pytest.mark.parametrize(("window", "rate"), [(1, 0.01), (1, 0.05), (2, 0.01), (3, 0.001), (20, 0.01)])
def test_with_as_many_images_as_needed_an_alarm_can_ring_and_with_one_less_it_is_refused(
    window: int, rate: float
) -> None:
    least = needed(window, rate)
    assert least == next(m for m in itertools.count(window) if math.comb(m + window, window) >= 2 / rate - 1e-9)
    calibration, far = distances(np.arange(least)), distances(1000 + np.arange(window))
    assert Watch(calibration, window, rate).judge(far).alarm
    with pytest.raises(GapError, match=rf"{least - 1} calibration images.*{least} are needed"):
        Watch(distances(np.arange(least - 1)), window, rate)


def test_of_a_large_window_as_many_images_are_needed() -> None:
    assert needed(600, 0.01) == 600
    with pytest.raises(GapError, match="600 are needed"):
        Watch(distances(np.arange(40)), 600)


def test_settings_out_of_range_and_other_layers_are_refused() -> None:
    values = np.random.default_rng(7).normal(size=(40, 2))
    for window, rate in ((0, 0.01), (5, 0.0), (5, 0.7)):
        with pytest.raises(GapError, match="at least and a rate from"):
            Watch(distances(values), window, rate)
    watch = Watch(distances(values), 5)
    with pytest.raises(GapError, match="different layers"):
        watch.judge(distances(values[:5, 0]))
    with pytest.raises(GapError, match="5 images, not 4"):
        watch.judge(distances(values[:4]))


def test_windows_follow_each_other_and_the_rest_is_left_out() -> None:
    values = np.random.default_rng(8).normal(size=(60, 2))
    watch = Watch(distances(values[:43]), 5)
    found = list(watch.windows(distances(values[43:])))
    assert [(w.first, w.last) for w in found] == [(0, 4), (5, 9), (10, 14)]
    assert found[1] == watch.judge(distances(values[48:53]), 5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pictures of the source, of a stream that drifts, and of one that does not."""
    root = tmp_path_factory.mktemp("streams")
    city = scenes.domain("city")
    for name, num, seed, to in (("source", 40, 1, None), ("drift", 32, 2, city), ("still", 12, 3, None)):
        game = scenes.domain("game")
        scenes.write(root / name, num=num, seed=seed, domain=game, to=to, size=(64, 64), layout="gta5")
    return {name: str(root / name / "images") for name in ("source", "drift", "still")}


def test_one_half_of_the_source_is_the_reference_and_the_other_calibrates(folders: dict[str, str]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
    extractor = Extractor(Probe(network, ["0", "2"]))
    source = ImageSet(open_images(folders["source"]))
    alarm = calibrate(extractor, source, 5)
    assert (alarm.reference.images, alarm.watch.images) == (20, 20)
    everything = image_distances(extractor.probe, alarm.reference, source.batches(extractor)).numbers
    order = np.random.default_rng(0).permutation(40)
    assert alarm.watch.distance == pytest.approx(float(everything[sorted(order[20:])].mean()))
    found = list(alarm.windows(ImageSet(open_images(folders["drift"]))))
    assert [(w.first, w.last) for w in found] == [(k, k + 4) for k in range(0, 30, 5)]
    assert found[-1].alarm and found[-1].deviation > 0
    with pytest.raises(GapError, match="3 images, which fill no window of 5"):
        next(alarm.windows(ImageSet(open_images(folders["still"]), limit=3)))


def test_the_command_tells_where_it_rang(folders: dict[str, str], tmp_path: Path) -> None:
    network = ("--network", "timm:resnet18@random", "--layers", "layer1.0", "--size", "64x64", "--device", "cpu")
    out = tmp_path / "watch.json"
    asked = ("gap", "watch", folders["source"], folders["drift"], *network, "--window", "8", "--json", out)
    done = segue(*asked)
    told = read_json(out)
    assert done.code == 0 and len(told["windows"]) == 4
    first = next(row for row in told["windows"] if row["p"] <= 0.01)
    assert told["alarm"] == first and first["to"] == f"{first['last'] + 1:05d}"
    assert f"first alarm at image {first['last'] + 1}, {first['to']}" in done.out.splitlines()[-1]
    assert done.out.count("ALARM") == sum(row["alarm"] for row in told["windows"])
    assert segue(*asked, "--fail").code == 1
    calm = segue("gap", "watch", folders["source"], folders["still"], *network, "--window", "6", "--fail")
    assert calm.code == 0 and "no alarm; 0.02 of 2 windows" in calm.out
    refused(segue(*asked[:-3], "30"), "20 calibration images", "30 are needed")
    unread = segue("gap", "watch", folders["source"], folders["still"], *network, "--window", "13")
    refused(unread, "12 images, which fill no window of 13")
    assert "looking at" not in unread.err  # told before the source is read
